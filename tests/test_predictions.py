"""Predictions that were made before, over a real Redis: found, shared, expired, damaged, and without Redis."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import RedisCluster
from servers import cluster

from app.cache import prediction_cache as module
from app.cache.prediction_cache import Known, Name, PredictionCache
from app.cluster.redis_client import connect
from app.cluster.redis_url import RedisUrl

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

LOGITS = struct.pack("<3f", 0.25, -1.5, 3.0)
OTHERS = struct.pack("<3f", 1.0, 2.0, 3.0)
KNOWN = Known(LOGITS, 5, truncated=False)
BLEND, ANOTHER = "a" * 32, "b" * 32
NAME = Name.of(BLEND, [2, 7, 3], [0, 0, 0])


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may take its time here, as the machine may be busy."""
    monkeypatch.setattr(module, "PATIENCE", 10.0)


def run(
    url: str | None, scenario: Callable[[PredictionCache, AsyncRedis], Awaitable[None]], products: str = "float"
) -> PredictionCache:
    async def main() -> PredictionCache:
        redis = connect(RedisUrl.parse(url or "unix:///nothing")).redis
        made = PredictionCache(redis if url else None, "test", products, 3, ttl=60)
        await asyncio.wait_for(scenario(made, redis), 30)
        await made.close()
        await redis.aclose()
        return made

    return asyncio.run(main())


# -- names ---------------------------------------------------------------------------------------------


def test_in_this_process_a_text_is_known_exactly_as_it_came() -> None:
    async def scenario(predictions: PredictionCache, redis: AsyncRedis) -> None:
        predictions.remember(BLEND, "late order", KNOWN)
        assert predictions.recall(BLEND, "late order") == KNOWN
        for other in ("Late order", "late order ", "late  order", ("late", " order"), ("late order", "")):
            assert predictions.recall(BLEND, other) is None
        assert predictions.recall(ANOTHER, "late order") is None

    assert run(None, scenario).memory_hits == 1


def test_pairs_and_texts_do_not_collide_wherever_they_are_cut() -> None:
    texts = ["ab", "1:ab", "+1:ab", ("a", "b"), ("ab", ""), ("", "ab"), ("a", ":b"), ("a:", "b"), ("1", "1:ab")]
    keys = {module._near_key(blend, text) for blend in (BLEND, ANOTHER) for text in texts}
    assert len(keys) == 2 * len(texts)


def test_in_redis_an_input_is_its_tokens_and_their_types() -> None:
    names = {
        Name.of(BLEND, [2, 7, 3], [0, 0, 0]),
        Name.of(ANOTHER, [2, 7, 3], [0, 0, 0]),
        Name.of(BLEND, [2, 7, 3], [0, 0, 1]),
        Name.of(BLEND, [2, 7], [3, 0]),
        Name.of(BLEND, [2, 7, 3, 0], [0, 0, 0, 0]),
        Name.of(BLEND, [2, 7, 259], [0, 0, 0]),
    }
    assert len(names) == 6 and NAME in names


# -- redis ---------------------------------------------------------------------------------------------


def test_what_one_process_ran_another_finds_in_a_few_dozen_bytes(redis: Redis, redis_url: str) -> None:
    async def remembers(predictions: PredictionCache, redis: AsyncRedis) -> None:
        assert await predictions.look_up([NAME]) == [None]
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        assert await predictions.look_up([NAME, NAME]) == [LOGITS, LOGITS]

    async def finds(predictions: PredictionCache, redis: AsyncRedis) -> None:
        assert await predictions.look_up([Name(ANOTHER, NAME.digest), NAME]) == [None, LOGITS]

    counters = run(redis_url, remembers).counters()
    assert (counters["writes"], counters["redis"], counters["misses"]) == (1, 2, 1)
    counters = run(redis_url, finds).counters()
    assert (counters["redis"], counters["misses"], counters["errors"]) == (1, 1, 0)
    assert run(redis_url, remembers, products="int8").counters()["redis"] == 2, "its own, after a miss"
    (key,) = redis.keys("*float*")
    assert key == f"test:prediction:1:float:{{{BLEND}}}:{NAME.digest}".encode()
    assert len(redis.get(key)) == 21 and 50 < redis.ttl(key) <= 60


def test_look_ups_and_writes_of_many_requests_travel_together(redis: Redis, redis_url: str) -> None:
    names = [Name.of(blend, [i], [0]) for i in range(20) for blend in (BLEND, ANOTHER)]

    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        await client.ping()
        redis.config_resetstat()
        for name in names:
            predictions.remember(name.blend, name.digest, Known(LOGITS, 1, False), name)
        await predictions.settle()
        found = await asyncio.gather(*(predictions.look_up([name]) for name in names))
        assert found == [[LOGITS]] * 40
        predictions.remember(BLEND, "again", KNOWN, NAME)
        await predictions.settle()
        assert await asyncio.gather(*(predictions.look_up([NAME]) for _ in range(9))) == [[LOGITS]] * 9

    run(redis_url, scenario)
    calls = {name: stats["calls"] for name, stats in redis.info("commandstats").items()}
    assert calls["cmdstat_mget"] == 2 and calls["cmdstat_set"] == 41


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value[:-1],
        lambda value: value + b"x",
        lambda value: b"",
        lambda value: bytes([2]) + value[1:],
        lambda value: value[:5] + bytes([value[5] ^ 1]) + value[6:],
        lambda value: value[:-3] + bytes([value[-3] ^ 1]) + value[-2:],
    ],
    ids=["short", "long", "empty", "another format", "a flipped logit", "a flipped checksum"],
)
def test_a_wrong_value_is_a_miss_and_is_overwritten(
    redis: Redis, redis_url: str, damage: Callable[[bytes], bytes]
) -> None:
    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        (key,) = redis.keys()
        redis.set(key, damage(redis.get(key)))
        assert await predictions.look_up([NAME]) == [None]
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        assert await predictions.look_up([NAME]) == [LOGITS]

    assert run(redis_url, scenario).wrong == 1


def test_a_value_under_anothers_name_or_of_another_type_is_a_miss(redis: Redis, redis_url: str) -> None:
    other = Name.of(BLEND, [9], [0])

    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        (key,) = redis.keys()
        redis.copy(key, predictions._key(other))
        assert await predictions.look_up([NAME, other]) == [LOGITS, None]
        redis.delete(key)
        redis.lpush(key, "a list")
        assert await predictions.look_up([NAME]) == [None]

    counters = run(redis_url, scenario).counters()
    assert (counters["wrong"], counters["errors"]) == (1, 0)


def test_a_redis_that_hangs_is_waited_for_once_and_then_left_alone(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        redis.execute_command("CLIENT", "PAUSE", 1000, "ALL")
        for _ in range(10):
            assert await predictions.look_up([NAME]) == [None]
        assert predictions.errors == 1 and predictions.recall(BLEND, "late") == KNOWN
        predictions._no_reads_until = 0.0
        await asyncio.sleep(1.2)
        assert await predictions.look_up([NAME]) == [LOGITS]

    run(redis_url, scenario)


def test_all_who_wait_are_released_when_redis_fails(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    names = [[Name.of(BLEND, [i, j], [0, 0]) for j in range(200)] for i in range(100)]

    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        redis.execute_command("CLIENT", "PAUSE", 1000, "ALL")
        found = await asyncio.gather(*(predictions.look_up(some) for some in names))
        assert found == [[None] * 200] * 100

    counters = run(redis_url, scenario).counters()
    assert (counters["misses"], counters["errors"]) == (20_000, 1)


def test_callers_who_hang_up_disturb_nobody(redis: Redis, redis_url: str) -> None:
    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        asking = [asyncio.create_task(predictions.look_up([NAME])) for _ in range(10)]
        await asyncio.sleep(0)
        for task in asking[:9]:
            task.cancel()
        assert await asking[9] == [LOGITS]

    assert run(redis_url, scenario).errors == 0


def test_a_full_redis_refuses_writes_and_still_answers(redis: Redis, redis_url: str) -> None:
    other = Name.of(BLEND, [9], [0])

    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        predictions.remember(BLEND, "late", KNOWN, NAME)
        await predictions.settle()
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 1)
        for text in ("one", "two"):
            predictions.remember(BLEND, text, KNOWN, other)
            await predictions.settle()
        assert await predictions.look_up([NAME, other]) == [LOGITS, None]

    before = redis.config_get("maxmemory*")
    try:
        counters = run(redis_url, scenario).counters()
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            redis.config_set(name, before[name])
    assert (counters["writes"], counters["errors"], counters["dropped"], counters["redis"]) == (1, 1, 2, 1)


def test_writes_that_wait_are_bounded(redis: Redis, redis_url: str) -> None:
    async def scenario(predictions: PredictionCache, client: AsyncRedis) -> None:
        for i in range(module.MAX_UNWRITTEN + 10):
            predictions.remember(BLEND, str(i), KNOWN, Name.of(BLEND, [i], [0]))
        await predictions.settle()
        assert predictions.dropped == 10 and redis.dbsize() == module.MAX_UNWRITTEN

    run(redis_url, scenario)


def test_without_redis_this_process_remembers_alone_within_its_bound() -> None:
    async def scenario(predictions: PredictionCache, redis: AsyncRedis) -> None:
        assert await predictions.look_up([NAME]) == [None]
        for i in range(predictions._capacity + 5):
            predictions.remember(BLEND, str(i), KNOWN, NAME)
            if i == 1000:
                assert predictions.recall(BLEND, "0") == KNOWN
        assert len(predictions._near) == predictions._capacity
        assert predictions.recall(BLEND, "1") is None and predictions.recall(BLEND, "1000") == KNOWN

    counters = run(None, scenario).counters()
    assert (counters["misses"], counters["errors"], counters["dropped"]) == (1, 0, 0)


# -- a cluster -----------------------------------------------------------------------------------------


def test_on_a_cluster_blends_lie_on_different_nodes(tmp_path: Path) -> None:
    names = [Name.of(blend, [i], [0]) for blend in (BLEND, ANOTHER, "c" * 32) for i in range(5)]

    async def main(port: int) -> None:
        async with RedisCluster(host="127.0.0.1", port=port) as redis:
            predictions = PredictionCache(redis, "test", "float", 3, 60)
            for name in names:
                predictions.remember(name.blend, name.digest, Known(OTHERS, 1, False), name)
            await predictions.settle()
            assert await predictions.look_up(names) == [OTHERS] * 15
            assert await predictions.look_up(names[:5]) == [OTHERS] * 5
            assert predictions.counters()["errors"] == 0
            await predictions.close()

    with cluster(tmp_path) as nodes:
        asyncio.run(main(nodes[0].port))
