"""Pods without the members, beside one that has them, on one Redis."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pico
import pytest
import torch
from conftest import Service, running
from redis import Redis
from servers import Server, server, until
from transformers import AutoTokenizer

from app.errors import BadBank, TweenError
from app.models.bank import Bank, BankSpec, load_bank
from app.models.bank_manifest import PublishedBank, read_card, write_card
from app.models.classifier import Classifier
from app.models.tokenizer import TextTokenizer
from app.weights.recipe import Recipe

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

Serve = Callable[..., Service]
FEW = {"memory_tier_mib": 8, "prediction_cache": False}
"""Services start sooner with less memory to touch."""
CPU = torch.device("cpu")
TEXTS = ["the parcel came late", "works <pad> great, thanks!"]
BLEND = "angry@0.4+polite@0.3"


def publish(builder: Service, recipe: str) -> dict[str, object]:
    reply = builder.client.post("/v1/blends", json={"recipe": recipe})
    assert reply.status_code in (200, 201), reply.text
    result: dict[str, object] = reply.json()
    return result


def ask(service: Service, recipe: str, status: int = 200) -> dict[str, object]:
    body = {"texts": TEXTS, "recipe": recipe, "function": "none"}
    reply = service.client.post("/v1/predict", json=body)
    assert reply.status_code == status, reply.text
    result: dict[str, object] = reply.json()
    return result


def small_pod(serve: Serve, redis: Redis, **settings: object) -> Service:
    """A pod without members, once a card is there."""
    until(lambda: redis.get("tween:bank:1:current"))
    return serve(PublishedBank(), **{**FEW, **settings})


# -- the card ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", pico.CONFIGS)
def test_a_bank_from_its_card_reads_texts_and_runs_blends_as_the_bank_itself(tmp_path: Path, architecture: str) -> None:
    whole = load_bank(BankSpec.from_toml(pico.write_bank(tmp_path, architecture) / "bank.toml"), CPU)
    small = read_card(write_card(whole), whole.fingerprint, CPU)
    assert small.tokenizer.backend_tokenizer.to_str() == whole.tokenizer.backend_tokenizer.to_str()
    rows = TextTokenizer(whole.tokenizer, whole.config, 512).encode(TEXTS)
    assert TextTokenizer(small.tokenizer, small.config, 512).encode(TEXTS) == rows
    slot = small.arena.new_slots(1).rows[0]
    slot.copy_(whole.arena["angry"])
    logits = Classifier(whole).logits(whole.arena["angry"], rows)
    assert torch.equal(Classifier(small).logits(slot, rows), logits)
    recipe = Recipe((("angry", 400_000),))
    assert recipe.key(small.fingerprint) == recipe.key(whole.fingerprint)
    assert small.arena.layout.digest == whole.arena.layout.digest and small.problem_type == whole.problem_type


def test_a_bank_from_its_card_cuts_texts_on_the_side_where_the_bank_does(tmp_path: Path) -> None:
    folders = pico.write_bank(tmp_path, "bert")
    for name in ("base", "angry", "polite"):
        file = folders / name / "tokenizer_config.json"
        cut = {"truncation_side": "left", "split_special_tokens": True}
        file.write_text(json.dumps(json.loads(file.read_text()) | cut))
    whole = load_bank(BankSpec.from_toml(folders / "bank.toml"), CPU)
    small = read_card(write_card(whole), whole.fingerprint, CPU)
    texts = [" ".join(pico.WORDS * 3) + " <sep> late"]
    rows = TextTokenizer(whole.tokenizer, whole.config, 32).encode(texts)
    assert TextTokenizer(small.tokenizer, small.config, 32).encode(texts) == rows
    ids = AutoTokenizer.from_pretrained(folders / "base")(texts[0], truncation=True, max_length=32)["input_ids"]
    assert rows[0].ids == ids and rows[0].truncated


def test_a_card_of_a_card_is_the_same_card(bank: Bank) -> None:
    card = write_card(bank)
    assert write_card(read_card(card, bank.fingerprint, CPU)) == card


def damaged(card: bytes) -> Iterator[bytes]:
    text = zlib.decompress(card)
    yield b""
    yield b"not a card"
    yield card[: len(card) // 2]
    yield zlib.compress(text[:-40])
    yield zlib.compress(b"[]")
    yield zlib.compress(text.replace(b"negative", b"positive"))


def test_a_damaged_card_is_refused(bank: Bank) -> None:
    for wrong in damaged(write_card(bank)):
        with pytest.raises(BadBank, match="is damaged or of another version"):
            read_card(wrong, bank.fingerprint, CPU)


def test_a_card_of_another_bank_is_refused(bank: Bank) -> None:
    with pytest.raises(BadBank, match="not of ffffffffffffffff"):
        read_card(write_card(bank), "f" * 64, CPU)


def test_a_card_that_means_something_else_here_is_refused(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    card = write_card(bank)
    monkeypatch.setattr("app.models.bank.VOLATILE_CONFIG", frozenset())
    with pytest.raises(BadBank, match="in another way than the pod that wrote it"):
        read_card(card, bank.fingerprint, CPU)


# -- two services --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["auto", "never"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_small_pod_serves_what_a_builder_has_published(
    serve: Serve, spec: BankSpec, redis: Redis, policy: str, workers: int
) -> None:
    builder = serve(spec, **FEW, redis_blends=policy)
    small = small_pod(serve, redis, redis_blends=policy, workers=workers)
    published = publish(builder, BLEND)
    assert published["tiers"] == ["memory", "redis"]
    there, here = ask(builder, BLEND), ask(small, BLEND)
    assert (there["source"], here["source"]) == ("memory", "redis")
    assert here["predictions"] == there["predictions"] and here["key"] == there["key"] == published["key"]
    assert ask(small, BLEND)["source"] == "memory"


def test_members_are_published_like_any_blend(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    builder = serve(spec, **FEW)
    small = small_pod(serve, redis)
    for recipe in ("base", "angry@1"):
        ask(small, recipe, status=404)
        assert publish(builder, recipe)["tiers"] == ["memory", "redis"]
        assert ask(small, recipe)["predictions"] == ask(builder, recipe)["predictions"]
    assert {blend["recipe"]: blend["tiers"] for blend in builder.client.get("/v1/blends").json()["blends"]} == {
        "base": ["memory", "redis"],
        "angry@1": ["memory", "redis"],
    }


def test_a_published_member_says_where_it_lies(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    builder = serve(spec, **FEW)
    key = publish(builder, "base")["key"]
    assert builder.client.get(f"/v1/blends/{key}").json()["tiers"] == ["memory", "redis"]
    small = small_pod(serve, redis)
    assert small.client.delete(f"/v1/blends/{key}").json()["tiers"] == ["redis"]
    assert builder.client.get(f"/v1/blends/{key}").json()["tiers"] == ["memory"]


def test_publishing_again_makes_a_blend_stay_longer_and_makes_it_whole(
    serve: Serve, spec: BankSpec, redis: Redis
) -> None:
    builder = serve(spec, **FEW)
    publish(builder, BLEND)
    names = list(redis.scan_iter("tween:blend:*{*"))
    assert len(names) == 2
    for name in names:
        redis.expire(name, 100)
    publish(builder, BLEND)
    assert all(redis.ttl(name) > 3600 for name in names)
    redis.delete(*(name for name in names if name.endswith(b":0")))
    publish(builder, BLEND)
    assert redis.exists(*names) == len(names)


def test_what_does_not_lie_in_redis_is_404_with_what_to_do(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    serve(spec, **FEW)
    small = small_pod(serve, redis)
    problem = ask(small, BLEND, status=404)
    assert problem["type"] == "urn:tween:blend-not-published"
    assert str(problem["detail"]).startswith(f"there is no blend '{BLEND}' in Redis")
    assert "have a pod that has them run POST /v1/blends" in str(problem["detail"])
    assert small.client.post("/v1/blends", json={"recipe": BLEND}).status_code == 404
    mixed = {"texts": TEXTS, "recipe": ["base", BLEND]}
    assert small.client.post("/v1/predict", json=mixed).status_code == 404


def test_what_cannot_be_served_costs_nothing_that_can(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    builder = serve(spec, **FEW)
    small = small_pod(serve, redis, memory_tier_mib=1)
    slots = small.client.get("/v1/blends").json()["tiers"]["memory"]["slots"]
    for number in range(slots):
        publish(builder, f"angry@0.{number + 1:03}")
        ask(small, f"angry@0.{number + 1:03}")
    ask(small, BLEND, status=404)
    memory = small.client.get("/v1/blends").json()["tiers"]["memory"]
    assert memory["blends"] == slots and memory["evictions"] == 0


def test_a_small_pod_removes_nothing_for_lack_of_room(serve: Serve, spec: BankSpec, redis: Redis, bank: Bank) -> None:
    builder = serve(spec, **FEW)
    recipes = [f"angry@{number / 100}" for number in range(1, 3 + 2**20 // bank.arena.row_bytes)]
    for recipe in recipes:
        publish(builder, recipe)
    small = small_pod(serve, redis, redis_blends_mib=1)
    assert {ask(small, recipe)["source"] for recipe in recipes} == {"redis"}
    assert {blend["recipe"] for blend in small.client.get("/v1/blends").json()["blends"]} == set(recipes)
    assert len(list(redis.scan_iter("tween:blend:*:manifest"))) == len(recipes)


def test_a_damaged_blend_is_refused_until_it_is_published_again(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    builder = serve(spec, **FEW)
    small = small_pod(serve, redis)
    publish(builder, BLEND)
    (chunk,) = redis.scan_iter("tween:blend:*:0")
    redis.setrange(chunk, 100, b"damage")
    problem = ask(small, BLEND, status=404)
    assert str(problem["detail"]).startswith(f"blend '{BLEND}' could not be read from Redis, and this pod has no")
    publish(builder, BLEND)
    assert ask(small, BLEND)["predictions"] == ask(builder, BLEND)["predictions"]


def test_what_a_small_pod_has_in_memory_does_not_grow_old_in_redis(
    serve: Serve, spec: BankSpec, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cache.tiers.RENEW_SECONDS", 0.02)
    builder = serve(spec, **FEW)
    small = small_pod(serve, redis)
    publish(builder, BLEND)
    ask(small, BLEND)
    names = list(redis.scan_iter("tween:blend:*{*"))
    for name in names:
        redis.expire(name, 100)
    until(lambda: all(redis.ttl(name) > 3600 for name in names))


def test_a_small_pod_shows_the_bank_it_has_not_loaded(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    builder = serve(spec, **FEW)
    small = small_pod(serve, redis)
    whole, shown = builder.client.get("/v1/bank").json(), small.client.get("/v1/bank").json()
    assert whole.pop("members") is True and shown.pop("members") is False
    assert whole.pop("bytes") > 0 and shown.pop("bytes") == 0
    assert shown == whole


def test_a_small_pod_gives_a_blend_as_a_file(serve: Serve, spec: BankSpec, redis: Redis) -> None:
    builder = serve(spec, **FEW)
    small = small_pod(serve, redis)
    key = publish(builder, BLEND)["key"]
    path = f"/v1/blends/{key}/weights"
    assert small.client.get(path).content == builder.client.get(path).content


def test_small_pods_start_and_serve_when_the_builder_has_gone(spec: BankSpec, redis: Redis, redis_url: str) -> None:
    with running(spec, **FEW, redis_url=redis_url) as builder:
        publish(builder, BLEND)
        expected = ask(builder, BLEND)["predictions"]
        fingerprint = builder.client.get("/v1/bank").json()["fingerprint"]
    with running(PublishedBank(fingerprint), **FEW, redis_url=redis_url) as small:
        assert ask(small, BLEND)["predictions"] == expected


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may stop."""
    with server(tmp_path) as started:
        yield started


def test_what_is_in_memory_goes_on_without_redis(spec: BankSpec, own_redis: Server) -> None:
    with running(spec, **FEW, redis_url=own_redis.url) as builder:
        publish(builder, BLEND)
        publish(builder, "base")
    with running(PublishedBank(), **FEW, redis_url=own_redis.url) as small:
        expected = ask(small, BLEND)
        own_redis.kill()
        again = ask(small, BLEND)
        assert again["predictions"] == expected["predictions"] and again["source"] == "memory"
        problem = ask(small, "base", status=404)
        assert str(problem["detail"]).startswith("Redis does not answer now, blend 'base' is not in memory")
        assert ask(small, BLEND)["source"] == "memory"


def test_a_card_that_redis_has_lost_comes_back(
    serve: Serve, spec: BankSpec, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cache.bank_manifest_store.LOOK_SECONDS", 0.05)
    builder = serve(spec, **FEW)
    until(lambda: redis.get("tween:bank:1:current"))
    redis.flushall()
    small = small_pod(serve, redis)
    publish(builder, BLEND)
    assert ask(small, BLEND)["source"] == "redis"


def test_a_second_bank_is_the_current_one_and_the_first_stays_there(
    serve: Serve, spec: BankSpec, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cache.bank_manifest_store.LOOK_SECONDS", 0.05)
    first = serve(spec, **FEW).client.get("/v1/bank").json()["fingerprint"]
    until(lambda: redis.get("tween:bank:1:current"))
    second = serve(BankSpec(spec.base), **FEW).client.get("/v1/bank").json()["fingerprint"]
    until(lambda: redis.get("tween:bank:1:current") == second.encode())
    time.sleep(0.2)
    assert redis.get("tween:bank:1:current") == second.encode()
    assert serve(PublishedBank(), **FEW).client.get("/v1/bank").json()["fingerprint"] == second
    assert serve(PublishedBank(first), **FEW).client.get("/v1/bank").json()["fingerprint"] == first
    assert 0 < redis.ttl("tween:bank:1:current") <= 24 * 3600


def refusal(published: PublishedBank, **settings: object) -> TweenError:
    with running(published, wait=False, **settings) as service:
        until(lambda: service.failures)
    error = service.failures[0]
    assert isinstance(error, TweenError)
    return error


def test_a_pod_without_a_card_does_not_start(redis: Redis, redis_url: str, own_redis: Server) -> None:
    assert "Redis holds no bank in namespace 'tween'; first start" in str(refusal(PublishedBank(), redis_url=redis_url))
    named = refusal(PublishedBank("a" * 64), redis_url=redis_url)
    assert "Redis holds no bank aaaaaaaaaaaaaaaa in" in str(named)
    redis.set("tween:bank:1:current", "b" * 64)
    redis.set(f"tween:bank:1:{'b' * 64}", b"nonsense")
    assert "bbbbbbbbbbbbbbbb in Redis is damaged" in str(refusal(PublishedBank(), redis_url=redis_url))
    own_redis.kill()
    assert str(refusal(PublishedBank(), redis_url=own_redis.url)).startswith("Redis does not answer")
