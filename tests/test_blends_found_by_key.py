"""A blend that is asked for again is found by its key: by a second pod, a restarted pod and a pod without members."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from conftest import Service, running
from redis import Redis
from servers import until

from app.models.bank import BankSpec
from app.models.bank_manifest import PublishedBank

RECIPE = "angry@0.4"
FEW = {"memory_tier_mib": 8, "prediction_cache": False, "redis_blends": "auto"}


def ask(client: httpx.Client, status: int = 200) -> dict[str, object]:
    reply = client.post("/v1/predict", json={"texts": "late order", "recipe": RECIPE, "function": "none"})
    assert reply.status_code == status, reply.text
    answer: dict[str, object] = reply.json()
    return answer


def written(redis: Redis) -> list[bytes]:
    return list(redis.scan_iter("tween:blend:*:manifest"))


def noted(redis: Redis) -> bool:
    return bool(list(redis.scan_iter("tween:blend:*:asked")))


@pytest.mark.parametrize("reader", ["a second pod", "a restarted pod", "a pod without members"])
def test_a_blend_that_is_asked_for_again_is_found_by_key(
    spec: BankSpec, redis: Redis, redis_url: str, reader: str
) -> None:
    with running(spec, **FEW, redis_url=redis_url) as one:
        first = ask(one.client)
        assert first["source"] == "built"
        until(lambda: noted(redis))
        assert not written(redis), "one request is not enough"
        assert ask(one.client)["source"] == "memory"
        until(lambda: written(redis))
        if reader == "a second pod":
            with running(spec, **FEW, redis_url=redis_url) as two:
                found = ask(two.client)
    if reader != "a second pod":
        with running(spec if reader == "a restarted pod" else PublishedBank(), **FEW, redis_url=redis_url) as again:
            found = ask(again.client)
            metrics = again.client.get("/metrics").text
            assert 'tween_blends_total{event="hits",tier="redis"} 1.0' in metrics
            assert 'tween_blend_cost_seconds{kind="",way="fetch"}' in metrics
    assert found["source"] == "redis" and found["key"] == first["key"] and found["predictions"] == first["predictions"]


def test_the_first_request_is_enough_where_another_pod_was_asked_before(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis
) -> None:
    one, two, three = (serve(spec, **FEW).client for _ in range(3))
    assert ask(one)["source"] == "built"
    until(lambda: noted(redis))
    assert ask(two)["source"] == "built"
    until(lambda: written(redis))
    assert ask(three)["source"] == "redis"


def test_what_a_pod_without_members_lacks_is_written_by_the_first_pod_that_builds_it(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis
) -> None:
    builder = serve(spec, **FEW)
    until(lambda: redis.get("tween:bank:1:current"))
    small = serve(PublishedBank(), **FEW).client
    ask(small, status=404)
    assert ask(builder.client)["source"] == "built"
    until(lambda: written(redis))
    assert ask(small)["source"] == "redis"


def test_never_writes_nothing_and_reads_nothing(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    client = serve(spec, **{**FEW, "redis_blends": "never"}).client
    assert [ask(client)["source"] for _ in range(3)] == ["built", "memory", "memory"]
    tiers = client.get("/v1/blends").json()["tiers"]
    assert tiers["redis"]["misses"] == tiers["redis"]["writes"] == 0 and not list(redis.scan_iter("tween:blend:*"))
