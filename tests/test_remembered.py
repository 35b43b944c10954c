"""Predictions that are remembered, over HTTP: on one service, on two that share a Redis, and without Redis."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Service
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from servers import Server, server, until

from app.models.bank import BankSpec

TEXTS = ["the refund came fast, great!", "they never answer. awful", "late again"]


@pytest.fixture
def remembers(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Callable[[], httpx.Client]:
    """Start a service that remembers predictions."""
    return lambda: serve(spec, prediction_cache=True).client


def predict(client: httpx.Client, **body: object) -> dict[str, Any]:
    reply = client.post("/v1/predict", json=body)
    assert reply.status_code == 200, reply.text
    result: dict[str, Any] = reply.json()
    return result


def cached(reply: dict[str, Any]) -> list[bool]:
    return [prediction["cached"] for prediction in reply["predictions"]]


def scores(reply: dict[str, Any]) -> list[dict[str, float]]:
    return [prediction["probabilities"] for prediction in reply["predictions"]]


def metrics(client: httpx.Client) -> dict[str, float]:
    """What `/metrics` says of rows run, and of the predictions cache by event."""
    values = {"rows": 0.0}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "tween_rows_total":
                values["rows"] += sample.value
            elif sample.name == "tween_predictions_total":
                values[sample.labels["event"]] = sample.value
    return values


def written(client: httpx.Client, count: int) -> None:
    for _ in range(500):
        if metrics(client)["writes"] == count:
            return
    raise AssertionError(metrics(client))


def test_what_was_run_once_is_remembered_and_runs_no_more(remembers: Callable[[], httpx.Client]) -> None:
    client = remembers()
    first = predict(client, texts=TEXTS, recipe="angry@0.4")
    again = predict(client, texts=TEXTS, recipe={"variant": "angry", "t": 0.40})
    assert cached(first) == [False] * 3 and cached(again) == [True] * 3
    assert again["source"] == "memory" and again["key"] == first["key"]
    for one, other in zip(first["predictions"], again["predictions"], strict=True):
        assert {**one, "cached": True} == other
    timings = again["timings"]
    assert [timings[part] for part in ("queue", "blend", "tokenize", "forward")] == [0, 0, 0, 0]
    written(client, 3)
    assert metrics(client) == {
        "rows": 3,
        "memory": 3,
        "misses": 3,
        "redis": 0,
        "wrong": 0,
        "errors": 0,
        "writes": 3,
        "dropped": 0,
    }


def test_another_pod_finds_them_in_redis_by_tokens_and_needs_no_blend(remembers: Callable[[], httpx.Client]) -> None:
    one, two = remembers(), remembers()
    first = predict(one, texts=TEXTS, recipe="angry@0.4")
    written(one, 3)
    # This bank's tokenizer ignores capitals and blanks.
    found = predict(two, texts=[text.upper() + " " for text in TEXTS], recipe="angry@0.4")
    assert cached(found) == [True] * 3 and found["source"] == "redis" and scores(found) == scores(first)
    assert [p["tokens"] for p in found["predictions"]] == [p["tokens"] for p in first["predictions"]]
    tiers = two.get("/v1/blends").json()["tiers"]
    assert tiers["build"]["builds"] == 0 and tiers["memory"]["blends"] == 0 and metrics(two)["rows"] == 0
    again = predict(two, texts=[text.upper() + " " for text in TEXTS], recipe="angry@0.4")
    assert again["source"] == "memory" and scores(again) == scores(first)


def test_only_what_is_not_remembered_runs(remembers: Callable[[], httpx.Client]) -> None:
    one, two = remembers(), remembers()
    predict(one, texts=TEXTS[0], recipe="angry@0.4")
    written(one, 1)
    predict(two, texts=TEXTS[1], recipe="angry@0.4")
    reply = predict(two, texts=TEXTS, recipe="angry@0.4")
    assert cached(reply) == [True, True, False] and metrics(two)["rows"] == 2
    assert reply["source"] == "memory", "of the weights of the one that ran"
    fresh = predict(two, texts=TEXTS, recipe="angry@0.4", cache=False)
    for got, expected in zip(scores(reply), scores(fresh), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)
    apart = predict(two, texts=[TEXTS[0].title(), TEXTS[1]], recipe=["angry@0.4", "angry@0.4"])
    assert cached(apart) == [True, True] and apart["source"] == "mixed"


def test_every_blend_has_its_own_and_a_list_of_recipes_finds_each(remembers: Callable[[], httpx.Client]) -> None:
    client = remembers()
    recipes = ["angry@0.4", "polite@0.7", "base"]
    alone = [scores(predict(client, texts="late again", recipe=recipe))[0] for recipe in recipes]
    assert len({str(one) for one in alone}) == 3
    reply = predict(client, texts=["late again"] * 4, recipe=[*recipes, "angry@0.5"])
    assert cached(reply) == [True, True, True, False] and scores(reply)[:3] == alone
    assert [prediction["t"] for prediction in reply["predictions"]][:2] == [{"angry": 0.4}, {"polite": 0.7}]


def test_one_entry_serves_every_function(remembers: Callable[[], httpx.Client]) -> None:
    client = remembers()
    for function in ("softmax", "sigmoid", "none"):
        fresh = predict(client, texts="late again", recipe="angry", function=function, cache=False)
        if function == "softmax":
            assert cached(predict(client, texts="late again", recipe="angry")) == [False]
        found = predict(client, texts="late again", recipe="angry", function=function)
        assert cached(found) == [True] and scores(found)[0] == pytest.approx(scores(fresh)[0], abs=1e-5)


def test_pairs_and_cut_texts_are_remembered_as_what_they_are(remembers: Callable[[], httpx.Client]) -> None:
    client = remembers()
    texts = [["late", "again"], "late again", "late " * 5_000]
    first, again = predict(client, texts=texts), predict(client, texts=texts)
    assert cached(again) == [True] * 3 and scores(again) == scores(first)
    assert len({str(one) for one in scores(first)}) == 3
    assert [p["truncated"] for p in again["predictions"]] == [False, False, True]


def test_a_request_may_refuse_the_cache_and_then_reads_and_writes_nothing(
    remembers: Callable[[], httpx.Client], redis: Redis
) -> None:
    client = remembers()
    assert cached(predict(client, texts="late", cache=False)) == [False]
    assert cached(predict(client, texts="late", cache=False)) == [False]
    assert metrics(client)["rows"] == 2 and metrics(client)["misses"] == 0
    assert cached(predict(client, texts="late")) == [False]
    written(client, 1)
    assert len(redis.keys("*prediction*")) == 1
    assert cached(predict(client, texts="late")) == [True]
    assert cached(predict(client, texts="late", cache=False)) == [False]


def test_a_service_may_do_without(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    client = serve(spec, prediction_cache=False).client
    assert [cached(predict(client, texts="late")) for _ in range(2)] == [[False], [False]]
    assert "tween_predictions_total" not in client.get("/metrics").text and not redis.keys("*prediction*")


def test_without_redis_a_process_remembers_by_itself(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path
) -> None:
    client = serve(spec, prediction_cache=True, redis_url=f"unix://{tmp_path}/nothing.sock").client
    assert [cached(predict(client, texts="late")) for _ in range(2)] == [[False], [True]]
    assert metrics(client)["errors"] >= 1


def test_entries_in_redis_end_with_their_time(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    client = serve(spec, prediction_cache=True, prediction_ttl_s=77).client
    predict(client, texts="late")
    written(client, 1)
    (key,) = redis.keys("*prediction*")
    assert 70 < redis.ttl(key) <= 77


def kill(made: Server, redis: Redis) -> None:
    made.kill()
    made.start()


def stand_still(made: Server, redis: Redis) -> None:
    made.signal(signal.SIGSTOP)
    time.sleep(0.6)
    made.signal(signal.SIGCONT)


def flush(made: Server, redis: Redis) -> None:
    redis.flushall()


def fill(made: Server, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", 1)
    time.sleep(0.2)
    redis.config_set("maxmemory", 0)


def hang_up(made: Server, redis: Redis) -> None:
    redis.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.parametrize("fault", [kill, stand_still, flush, fill, hang_up], ids=lambda fault: fault.__name__)
def test_whatever_redis_does_predictions_are_answered_and_right(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path, fault: Callable[[Server, Redis], None]
) -> None:
    with server(tmp_path) as made, made.client() as redis:
        one, two = (serve(spec, prediction_cache=True, redis_url=made.url).client for _ in range(2))
        right = {text: scores(predict(one, texts=text, recipe="angry@0.4", cache=False))[0] for text in TEXTS}
        done = threading.Event()

        def traffic(client: httpx.Client) -> int:
            count = 0
            while not done.is_set():
                texts = [TEXTS[count % 3], f"late {count}"]  # one that is known soon, and one that never is
                found = scores(predict(client, texts=texts, recipe="angry@0.4"))[0]
                assert found == pytest.approx(right[texts[0]], abs=1e-5)
                count += 1
            return count

        with ThreadPoolExecutor(4) as callers:
            running = [callers.submit(traffic, (one, two)[i % 2]) for i in range(4)]
            for _ in range(3):
                fault(made, redis)
                time.sleep(0.1)
            done.set()
            assert all(task.result() > 0 for task in running)

        def is_shared() -> bool:
            text = f"order {time.monotonic_ns()}"
            predict(one, texts=text, recipe="angry@0.4")
            time.sleep(0.1)
            return predict(two, texts=text, recipe="angry@0.4")["source"] == "redis"

        until(is_shared)
