"""Aliases over HTTP: on real services that share a real Redis, which is flushed, cut off, killed and brought back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Service, running
from redis import Redis
from servers import messages_lost, server, until
from torch import Tensor

from app.cluster import replicated
from app.models.bank import BankSpec
from app.serving import aliases as module
from app.serving import prewarm
from app.weights.arena import Arena
from app.weights.methods import METHODS, Method

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


@pytest.fixture
def pod(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Callable[[], httpx.Client]:
    """Start a pod of one service; all that are started share a Redis."""
    return lambda: serve(spec).client


@pytest.fixture
def slow_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that take so long that nobody who does not wait for them meets a warm blend by luck."""
    linear = METHODS["linear"]

    def slowly(arena: Arena, weights: Mapping[str, float], out: Tensor) -> None:
        time.sleep(0.2)
        linear(arena, weights, out)

    monkeypatch.setitem(METHODS, "linear", Method(slowly, is_linear=True))


def put(client: httpx.Client, name: str, recipe: object, **more: object) -> dict[str, Any]:
    reply = client.put(f"/v1/aliases/{name}", json={"recipe": recipe, **more})
    assert reply.status_code in (200, 201), reply.text
    moved: dict[str, Any] = reply.json()
    return moved


def get(client: httpx.Client, name: str = "prod") -> dict[str, Any]:
    alias: dict[str, Any] = client.get(f"/v1/aliases/{name}").json()
    return alias


def predict(client: httpx.Client, **body: object) -> dict[str, Any]:
    reply = client.post("/v1/predict", json={"texts": "late order", **body})
    assert reply.status_code == 200, reply.text
    result: dict[str, Any] = reply.json()
    return result


def detail(reply: httpx.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json()["detail"])


def first_at(client: httpx.Client, recipe: str) -> dict[str, Any]:
    """The first prediction for which `@prod` means that recipe."""
    seen: list[httpx.Response] = []

    def arrived() -> bool:
        seen.append(client.post("/v1/predict", json={"texts": "late order", "recipe": "@prod"}))
        assert seen[-1].status_code in (200, 404)  # a pod may not have heard of it yet
        return bool(seen[-1].json().get("recipe") == recipe)

    until(arrived)
    reply: dict[str, Any] = seen[-1].json()
    return reply


# -- one pod -------------------------------------------------------------------------------------------


def test_an_alias_is_made_moved_shown_and_taken_away(pod: Callable[[], httpx.Client]) -> None:
    client = pod()
    made = client.put("/v1/aliases/prod", json={"recipe": {"variant": "angry", "t": 0.40}}, headers={"From": "a@b.c"})
    assert made.status_code == 201
    body = made.json()
    assert (body["name"], body["recipe"], body["version"], body["by"]) == ("prod", "angry@0.4", 1, "a@b.c")
    assert body["history"] == [] and body["shared"] and (body["pods_asked"], body["pods_warm"]) == (1, 1)
    assert body["key"] == predict(client, recipe="angry@0.4")["key"]
    moved = put(client, "prod", "polite@0.7")
    assert (moved["recipe"], moved["version"], moved["by"]) == ("polite@0.7", 2, None)
    shown = get(client)
    assert shown == {name: value for name, value in moved.items() if not name.startswith("pods")}
    (before,) = shown["history"]
    assert before == {"version": 1, "recipe": "angry@0.4", "changed": body["changed"], "by": "a@b.c"}
    assert before["changed"] < shown["changed"]
    put(client, "canary", "base")
    assert [alias["name"] for alias in client.get("/v1/aliases").json()["aliases"]] == ["canary", "prod"]
    assert 'tween_alias_version{alias="prod"} 2.0' in client.get("/metrics").text
    gone = client.delete("/v1/aliases/prod").json()
    assert (gone["version"], gone["recipe"]) == (3, None)
    assert detail(client.get("/v1/aliases/prod"), 404) == "no alias 'prod'; aliases: canary"
    assert "no alias 'prod'" in detail(client.delete("/v1/aliases/prod"), 404)
    again = client.put("/v1/aliases/prod", json={"recipe": "base"})
    assert again.status_code == 201 and again.json()["version"] == 4


def test_an_alias_stands_wherever_a_recipe_does_and_the_reply_names_what_is_behind(
    pod: Callable[[], httpx.Client],
) -> None:
    client = pod()
    put(client, "prod", "angry@0.4")
    put(client, "canary", "polite@0.7")
    assert predict(client, recipe="@prod")["recipe"] == "angry@0.4"
    listed = predict(client, texts=["late", "late", "late"], recipe=["@canary", "base", "@prod"])
    assert listed["recipe"] == ["polite@0.7", "base", "angry@0.4"]
    made = client.post("/v1/blends", json={"recipe": "@canary"})
    assert (made.status_code, made.json()["recipe"], made.json()["source"]) == (200, "polite@0.7", "memory")


def test_prod_is_the_default_while_it_exists(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    client = serve(spec, default_recipe="polite@0.25").client
    put(client, "canary", "angry@0.1")
    assert predict(client)["recipe"] == "polite@0.25"
    put(client, "prod", "angry@0.4")
    assert predict(client)["recipe"] == "angry@0.4"
    client.delete("/v1/aliases/prod")
    assert predict(client)["recipe"] == "polite@0.25"


def test_a_move_to_where_it_points_already_is_none(pod: Callable[[], httpx.Client]) -> None:
    client = pod()
    put(client, "prod", "angry@0.4")
    again = client.put("/v1/aliases/prod", json={"recipe": "angry@0.40"})
    assert again.status_code == 200 and again.json()["version"] == 1 and again.json()["history"] == []


def test_compare_and_set(pod: Callable[[], httpx.Client]) -> None:
    client = pod()
    url = "/v1/aliases/prod"
    missing = client.put(url, json={"recipe": "base", "version": 3})
    assert detail(missing, 409) == "alias 'prod' does not exist, so it is not at version 3; 0 stands for that"
    assert client.put(url, json={"recipe": "base", "version": 0}).status_code == 201
    exists = client.put(url, json={"recipe": "angry", "version": 0})
    assert detail(exists, 409) == "alias 'prod' is at version 1, not 0; look at it and decide again"
    assert client.put(url, json={"recipe": "angry", "version": 1}).json()["version"] == 2
    assert "at version 2, not 1" in detail(client.put(url, json={"recipe": "polite", "version": 1}), 409)
    assert "at version 2, not 1" in detail(client.post(f"{url}/rollback?version=1"), 409)
    assert "at version 2, not 1" in detail(client.delete(f"{url}?version=1"), 409)
    assert get(client)["recipe"] == "angry@1"
    assert client.post(f"{url}/rollback?version=2").json()["recipe"] == "base"
    assert client.delete(f"{url}?version=3").status_code == 200
    assert client.put(url, json={"recipe": "base", "version": 0}).status_code == 201


def test_rollback_walks_back_and_brings_back_what_was_deleted(pod: Callable[[], httpx.Client]) -> None:
    client = pod()
    for recipe in ("angry@0.1", "angry@0.2", "angry@0.3"):
        put(client, "prod", recipe)
    url = "/v1/aliases/prod/rollback"
    first = client.post(url, headers={"From": "me"}).json()
    assert (first["version"], first["recipe"], first["by"]) == (4, "angry@0.2", "me")
    assert predict(client, recipe="@prod")["recipe"] == "angry@0.2"
    assert client.post(url).json()["recipe"] == "angry@0.1"
    assert "alias 'prod' has no recipe before version 1" in detail(client.post(url), 409)
    client.delete("/v1/aliases/prod")
    assert client.post(url).json()["version"] == 7 and get(client)["recipe"] == "angry@0.1"
    assert "no alias 'nope'" in detail(client.post("/v1/aliases/nope/rollback"), 404)


def test_what_an_alias_points_at_stays_in_memory(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    client = serve(spec, memory_tier_mib=1).client
    slots = client.get("/v1/blends").json()["tiers"]["memory"]["slots"]
    put(client, "prod", "angry@0.4")
    for i in range(1, slots + 5):
        client.post("/v1/blends", json={"recipe": f"polite@{i / 1000}"})
    assert client.get("/v1/blends").json()["tiers"]["memory"]["evictions"] > 0
    assert predict(client, recipe="@prod")["source"] == "memory"
    put(client, "prod", "angry@0.5")
    time.sleep(0.1)
    for i in range(1, slots + 5):
        client.post("/v1/blends", json={"recipe": f"polite@{0.5 + i / 1000}"})
    keys = [blend["recipe"] for blend in client.get("/v1/blends").json()["blends"] if "memory" in blend["tiers"]]
    assert "angry@0.5" in keys


BAD: list[tuple[str, str, object, int, str]] = [
    ("a name with a dot", "a.b", {"recipe": "base"}, 422, "digits of any script, _ and -, 64 at most"),
    ("a name that is too long", "a" * 65, {"recipe": "base"}, 422, "64 at most"),
    ("a name with a blank", "a%20b", {"recipe": "base"}, 422, "letters and digits"),
    ("a name with an invisible character", "a%E2%80%8Bb", {"recipe": "base"}, 422, "letters and digits"),
    ("a name like the mark", ":mark", {"recipe": "base"}, 422, "letters and digits"),
    ("a name that begins with -", "-a", {"recipe": "base"}, 422, "does not begin with -"),
    ("an alias of an alias", "prod", {"recipe": "@canary"}, 422, "not at another alias"),
    ("an alias of itself", "prod", {"recipe": " @prod"}, 422, "not at another alias"),
    ("an unknown variant", "prod", {"recipe": "mild@0.4"}, 404, "no variant 'mild'; loaded: base, angry, polite"),
    ("a t out of bounds", "prod", {"recipe": {"variant": "angry", "t": 9}}, 422, "out of bounds"),
    ("no recipe", "prod", {}, 422, "field 'recipe' is missing"),
    ("recipe null", "prod", {"recipe": None}, 422, "recipe"),
    ("a list of recipes", "prod", {"recipe": ["base"]}, 422, "recipe"),
    ("a negative version", "prod", {"recipe": "base", "version": -1}, 422, "version"),
    ("a version that is a word", "prod", {"recipe": "base", "version": "new"}, 422, "version"),
    ("an unknown field", "prod", {"recipe": "base", "verison": 1}, 422, "field 'verison' is unknown"),
]


@pytest.mark.parametrize(
    ("name", "body", "status", "sentence"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_gets_one_clear_sentence(
    lasting: httpx.Client, name: str, body: object, status: int, sentence: str
) -> None:
    assert sentence in detail(lasting.put(f"/v1/aliases/{name}", json=body), status)
    assert lasting.get("/v1/aliases").json() == {"aliases": []}


@pytest.fixture(scope="module")
def lasting(redis_url: str, spec: BankSpec) -> Iterator[httpx.Client]:
    """One service for all bad input: it must not care."""
    with running(spec, redis_url=redis_url, redis_namespace="bad-input", memory_tier_mib=16) as service:
        yield service.client


def test_what_the_history_says_of_who_is_bounded(lasting: httpx.Client) -> None:
    reply = lasting.put("/v1/aliases/prod", json={"recipe": "base"}, headers={"From": "x" * 300})
    assert "at most 200 characters" in detail(reply, 422)


def test_aliases_are_bounded(pod: Callable[[], httpx.Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALIASES", 3)
    client = pod()
    for name in "abc":
        put(client, name, "base")
    assert "there are 3 aliases already" in detail(client.put("/v1/aliases/d", json={"recipe": "base"}), 409)
    put(client, "a", "angry")
    client.delete("/v1/aliases/a")
    put(client, "d", "base")


# -- two pods ------------------------------------------------------------------------------------------


def test_a_move_is_seen_by_every_pod_and_nobody_meets_it_cold(
    slow_builds: None, pod: Callable[[], httpx.Client]
) -> None:
    pods = [pod(), pod()]
    for i in range(1, 6):
        moved = put(pods[i % 2], "prod", f"angry@{i / 20}")
        assert (moved["pods_asked"], moved["pods_warm"]) == (2, 2)
        for client in pods:
            assert first_at(client, f"angry@{i / 20}")["source"] == "memory"
    assert [get(client)["version"] for client in pods] == [5, 5]


def test_a_lost_message_is_made_up_for_and_the_move_is_met_warm(pod: Callable[[], httpx.Client], redis: Redis) -> None:
    one, two = pod(), pod()
    put(one, "prod", "angry@0.1")
    first_at(two, "angry@0.1")
    with messages_lost(redis):
        for i in range(2, 5):
            put(one, "prod", f"angry@{i / 10}")
            assert first_at(two, f"angry@{i / 10}")["source"] == "memory"


def test_pods_hear_again_after_their_connections_were_killed(pod: Callable[[], httpx.Client], redis: Redis) -> None:
    pods = [pod(), pod()]
    redis.client_kill_filter(_type="pubsub")
    until(lambda: redis.pubsub_numsub("tween:aliases")[0][1] == 2)
    assert put(pods[0], "prod", "angry@0.4")["pods_warm"] == 2


def test_of_those_who_compare_and_set_at_once_one_wins(pod: Callable[[], httpx.Client]) -> None:
    pods = [pod(), pod()]
    put(pods[0], "prod", "base")

    def move(i: int) -> int:
        body = {"recipe": f"angry@{i / 100 + 0.01}", "version": 1}
        return pods[i % 2].put("/v1/aliases/prod", json=body).status_code

    with ThreadPoolExecutor(12) as callers:
        statuses = list(callers.map(move, range(12)))
    assert sorted(statuses) == [200] + [409] * 11
    winner = f"angry@{statuses.index(200) / 100 + 0.01:g}"
    for client in pods:
        first_at(client, winner)


def test_those_who_move_without_a_version_follow_one_another(pod: Callable[[], httpx.Client]) -> None:
    pods = [pod(), pod()]
    with ThreadPoolExecutor(4) as callers:
        moves = list(callers.map(lambda i: put(pods[i % 2], "prod", f"angry@{i / 10 + 0.1:g}"), range(4)))
    assert sorted(move["version"] for move in moves) == [1, 2, 3, 4]
    until(lambda: get(pods[0]) == get(pods[1]))
    assert get(pods[0])["recipe"] == max(moves, key=lambda move: move["version"])["recipe"]


def test_traffic_during_moves_never_fails_and_never_waits_for_a_build(pod: Callable[[], httpx.Client]) -> None:
    pods = [pod(), pod()]
    put(pods[0], "prod", "angry@0.01")
    first_at(pods[1], "angry@0.01")
    done = threading.Event()

    def traffic(client: httpx.Client) -> set[str]:
        sources = set()
        while not done.is_set():
            sources.add(predict(client, recipe="@prod")["source"])
        return sources

    with ThreadPoolExecutor(4) as callers:
        running = [callers.submit(traffic, pods[i % 2]) for i in range(4)]
        for i in range(2, 12):
            put(pods[i % 2], "prod", f"angry@{i / 100}")
        done.set()
        assert [task.result() for task in running] == [{"memory"}] * 4


def test_a_pod_that_never_answers_delays_a_move_and_does_not_stop_it(
    pod: Callable[[], httpx.Client], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prewarm, "WARM_SECONDS", 0.3)
    client = pod()
    with redis.pubsub() as deaf:
        deaf.subscribe("tween:aliases")
        until(lambda: redis.pubsub_numsub("tween:aliases")[0][1] == 2)
        moved = put(client, "prod", "angry@0.4")
    assert (moved["version"], moved["pods_asked"], moved["pods_warm"]) == (1, 2, 1)
    assert predict(client, recipe="@prod")["source"] == "memory"


def test_a_pod_whose_bank_lacks_the_variant_stays_where_it_is(
    serve: Callable[..., Service], folders: Path, spec: BankSpec, redis: Redis
) -> None:
    whole = serve(spec).client
    poor = serve(BankSpec.from_options(str(folders / "base"), [f"angry={folders / 'angry'}"])).client
    put(whole, "prod", "angry@0.4")
    first_at(poor, "angry@0.4")
    moved = put(whole, "prod", "polite@0.5")
    assert (moved["pods_asked"], moved["pods_warm"]) == (2, 1)
    until(lambda: get(poor)["version"] == 2)
    assert predict(poor, recipe="@prod")["recipe"] == "angry@0.4"
    assert get(poor)["recipe"] == "polite@0.5" and get(poor)["key"] is None
    put(whole, "prod", "angry@0.6")
    assert first_at(poor, "angry@0.6")["source"] == "memory"


# -- what Redis may do ---------------------------------------------------------------------------------


def test_a_pod_that_joins_knows_the_aliases_and_is_warm(
    slow_builds: None, pod: Callable[[], httpx.Client], redis: Redis
) -> None:
    one = pod()
    put(one, "prod", "angry@0.4")
    put(one, "prod", "angry@0.5")
    redis.flushall()  # the aliases come back, but not the blends
    until(lambda: redis.hexists("tween:aliases", "prod"))
    two = pod()
    reply = predict(two)
    assert (reply["recipe"], reply["source"]) == ("angry@0.5", "memory")
    assert get(two) == get(one)


def test_a_flush_loses_no_alias_while_a_pod_lives(pod: Callable[[], httpx.Client], redis: Redis) -> None:
    one, two = pod(), pod()
    for recipe in ("angry@0.1", "angry@0.2"):
        put(one, "prod", recipe)
    put(one, "old", "base")
    one.delete("/v1/aliases/old")
    until(lambda: get(two).get("version") == 2)
    redis.flushall()
    moved = put(two, "prod", "angry@0.3")
    assert moved["version"] == 3 and len(moved["history"]) == 2, "even before a pod has noticed"
    redis.flushall()
    until(lambda: redis.hexists("tween:aliases", "prod"))
    three = pod()
    assert get(three) == get(one) and predict(three)["recipe"] == "angry@0.3"
    assert "no alias 'old'" in detail(three.get("/v1/aliases/old"), 404)
    assert put(three, "old", "base")["version"] == 3


@pytest.mark.parametrize("damage", ["an older one", "nonsense", "gone"])
def test_a_document_that_is_lost_damaged_or_set_back_is_repaired(
    pod: Callable[[], httpx.Client], redis: Redis, damage: str
) -> None:
    one, two = pod(), pod()
    put(one, "prod", "angry@0.1")
    older = redis.hget("tween:aliases", "prod")
    put(one, "prod", "angry@0.2")
    first_at(two, "angry@0.2")
    right = redis.hget("tween:aliases", "prod")
    if damage == "gone":
        redis.hdel("tween:aliases", "prod")
    else:
        redis.hset("tween:aliases", "prod", older if damage == "an older one" else "{")
    redis.hset("tween:aliases", ":mark", "another")
    until(lambda: redis.hget("tween:aliases", "prod") == right)
    assert put(two, "prod", "angry@0.3")["version"] == 3


def test_a_message_that_is_none_of_ours_does_no_harm(pod: Callable[[], httpx.Client], redis: Redis) -> None:
    client = pod()
    for message in ("", "{", "[]", "3", '{"warm": {}, "ticket": []}', '{"warm": "mild@1", "ticket": "x"}'):
        redis.publish("tween:aliases", message)
    assert put(client, "prod", "angry@0.4")["pods_warm"] == 1


def test_deleted_aliases_are_forgotten_in_the_end(
    pod: Callable[[], httpx.Client], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pod()
    put(client, "old", "base")
    monkeypatch.setattr(replicated, "FORGET_SECONDS", 0)
    client.delete("/v1/aliases/old")
    until(lambda: not redis.hexists("tween:aliases", "old"))
    until(lambda: client.put("/v1/aliases/old", json={"recipe": "base", "version": 0}).json()["version"] == 1)


def test_redis_gone_and_back(serve: Callable[..., Service], spec: BankSpec, tmp_path: Path) -> None:
    with server(tmp_path) as made:
        made.kill()
        client = serve(spec, redis_url=made.url).client
        absent = client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"})
        assert "without it the pods cannot agree" in detail(absent, 503) and absent.headers["retry-after"] == "2"
        assert predict(client)["recipe"] == "base"
        made.start()
        until(lambda: client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"}).status_code == 201)
        other = serve(spec, redis_url=made.url).client
        assert predict(other)["recipe"] == "angry@0.4"
        made.kill()
        for pod in (client, other):
            assert predict(pod)["recipe"] == "angry@0.4" and get(pod)["version"] == 1
            assert detail(pod.delete("/v1/aliases/prod"), 503)
            assert detail(pod.put("/v1/aliases/prod", json={"recipe": "base"}), 503)
        assert predict(client)["recipe"] == "angry@0.4"
        made.start()
        with made.client() as redis:
            until(lambda: redis.hexists("tween:aliases", "prod"))
            until(lambda: redis.pubsub_numsub("tween:aliases")[0][1] == 2)
        moved = put(other, "prod", "angry@0.5")
        assert (moved["version"], moved["pods_warm"]) == (2, 2)
        assert first_at(client, "angry@0.5")["source"] == "memory"


def test_a_redis_that_refuses_to_write_moves_nothing(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prewarm, "WARM_SECONDS", 0.3)
    with server(tmp_path) as made, made.client() as redis:
        client = serve(spec, redis_url=made.url).client
        put(client, "prod", "angry@0.4")
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 1)
        refused = client.put("/v1/aliases/prod", json={"recipe": "base"})
        assert "redis does not answer or refuses" in detail(refused, 503)
        assert get(client)["version"] == 1 and predict(client)["recipe"] == "angry@0.4"
        redis.config_set("maxmemory", 0)
        assert put(client, "prod", "base")["version"] == 2


def test_without_redis_aliases_live_in_the_process_and_say_so(
    serve: Callable[..., Service], spec: BankSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap.find_server", lambda: None)
    client = serve(spec, redis_url=None).client
    assert client.get("/readyz").json()["redis"] == "none"
    made = put(client, "prod", "angry@0.4")
    assert not made["shared"] and (made["pods_asked"], made["pods_warm"]) == (1, 1)
    reply = predict(client)
    assert (reply["recipe"], reply["source"]) == ("angry@0.4", "memory")
    with ThreadPoolExecutor(8) as callers:
        statuses = list(
            callers.map(
                lambda i: (
                    client.put("/v1/aliases/prod", json={"recipe": f"angry@0.0{i + 1}", "version": 1}).status_code
                ),
                range(8),
            )
        )
    assert sorted(statuses) == [200] + [409] * 7
    assert client.post("/v1/aliases/prod/rollback").json()["recipe"] == "angry@0.4"
    client.delete("/v1/aliases/prod")
    assert predict(client)["recipe"] == "base" and json.loads(client.get("/v1/aliases").text) == {"aliases": []}
