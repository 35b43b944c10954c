"""The Redis tier against a real redis-server, whole and damaged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pods import KEY, PREFIX, SHAPE, VECTOR, P, fetched, name, with_pods, write
from redis import Redis
from servers import line_to, server

from app.cache.redis_tier import RedisTier
from app.cache.sharing_rule import SharingRule
from app.cluster import redis_client

USED = f"{PREFIX}:used"


def counted(tier: RedisTier, **expected: int) -> None:
    assert {event: count for event, count in tier.counters().items() if count} == expected


def test_a_blend_comes_back_bit_for_bit(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await fetched(tier) is None
        assert await write(tier)
        out = await fetched(tier)
        assert out is not None and torch.equal(out, VECTOR)
        counted(tier, hits=1, misses=1, writes=1)

    with_pods(redis_url, scenario)
    assert {key.decode() for key in redis.keys()} == {name(p) for p in ("0", "1", "2", "manifest")} | {USED}
    assert PREFIX.startswith("tween:blend:2:" + "f" * 16 + "-")
    assert all(0 < redis.ttl(key) <= 60 for key in redis.keys())


def test_a_blend_is_found_listed_and_deleted(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await write(tier)
        found = await tier.find(KEY)
        assert found is not None and (found.recipe, found.bytes) == ("finance@0.4", P * 4)
        assert abs(found.created - time.time()) < 5 and found.ttl is not None and 0 < found.ttl <= 60
        assert [blend.key for blend in await tier.stored()] == [KEY]
        assert await tier.delete(KEY) and not await tier.delete(KEY)
        assert await tier.find(KEY) is None and await tier.stored() == []

    with_pods(redis_url, scenario)
    assert redis.dbsize() == 0


@pytest.mark.parametrize("other", [{"fingerprint": "e" * 64}, {"layout": "e" * 64}, {"dtype": "bfloat16"}])
def test_what_is_of_another_bank_or_shape_is_neither_seen_nor_deleted(
    redis: Redis, redis_url: str, other: dict[str, str]
) -> None:
    async def look(tier: RedisTier) -> None:
        assert await fetched(tier) is None and await tier.stored() == []
        counted(tier, misses=1)

    async def put(tier: RedisTier) -> None:
        await write(tier)

    with_pods(redis_url, put)
    with_pods(redis_url, look, shape=replace(SHAPE, **other))
    assert redis.exists(name("manifest"))


def test_a_blend_that_is_there_is_not_written_again(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await write(tier)
        before = redis.get(name("manifest"))
        assert not await write(tier)
        assert redis.get(name("manifest")) == before
        counted(tier, writes=1)

    with_pods(redis_url, scenario)


def test_what_any_pod_was_asked_for_before_is_wanted(redis: Redis, redis_url: str) -> None:
    async def scenario(one: RedisTier, two: RedisTier) -> None:
        assert not await one.wants(KEY, 1) and await one.wants(KEY, 2)
        assert await two.wants(KEY, 1), "another pod was asked for it"
        assert not await two.wants("1" * 32, 1)
        assert 0 < redis.ttl(name("asked")) <= 60

    with_pods(redis_url, scenario, 2, rule=SharingRule("auto"))


def test_a_pod_that_cannot_build_leaves_a_note_and_writes_nothing(redis: Redis, redis_url: str) -> None:
    async def ask(tier: RedisTier) -> None:
        assert not tier.is_writable and not await tier.wants(KEY, 1)

    async def build(tier: RedisTier) -> None:
        assert tier.is_writable and await tier.wants(KEY, 1)

    with_pods(redis_url, ask, rule=SharingRule("never", builds=False))
    with_pods(redis_url, build, rule=SharingRule("auto"))


# -- damage --------------------------------------------------------------------------------------------


def flip_a_bit(redis: Redis) -> None:
    chunk = bytearray(redis.get(name("1")))
    chunk[1234] ^= 1
    redis.set(name("1"), bytes(chunk))


def edit_manifest(**changes: object) -> Callable[[Redis], None]:
    def damage(redis: Redis) -> None:
        redis.set(name("manifest"), json.dumps(json.loads(redis.get(name("manifest"))) | changes))

    return damage


def put_a_list(redis: Redis) -> None:
    redis.delete(name("1"))
    redis.lpush(name("1"), "x")


DAMAGE: dict[str, Callable[[Redis], object]] = {
    "a flipped bit": flip_a_bit,
    "a chunk cut short": lambda redis: redis.set(name("2"), redis.get(name("2"))[:-1]),
    "a chunk of one byte": lambda redis: redis.set(name("2"), b"x"),
    "a chunk of no byte": lambda redis: redis.set(name("2"), b""),
    "a chunk that grew": lambda redis: redis.append(name("1"), b"x" * 1_000_000),
    "a chunk gone": lambda redis: redis.delete(name("0")),
    "a chunk of another type": put_a_list,
    "chunks swapped": lambda redis: redis.rename(name("0"), name("1")),
    "another format": edit_manifest(format=1),
    "another blend's manifest": edit_manifest(key="1" * 32),
    "another bank's manifest": edit_manifest(fingerprint="e" * 64),
    "another layout": edit_manifest(layout="e" * 64),
    "another dtype": edit_manifest(dtype="bfloat16"),
    "another length": edit_manifest(bytes=P * 2),
    "another chunk size": edit_manifest(chunk=1),
    "too few checksums": edit_manifest(checksums=[]),
    "checksums of another kind": edit_manifest(checksums=[1, 2, 3]),
    "no recipe": edit_manifest(recipe=None),
    "a manifest that is not JSON": lambda redis: redis.set(name("manifest"), b"\xff{"),
    "a manifest that is a list": lambda redis: redis.set(name("manifest"), "[]"),
    "a checksum list that is a number": edit_manifest(checksums=7),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_bytes_are_a_miss_deleted_and_counted(redis: Redis, redis_url: str, damage: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await write(tier)
        DAMAGE[damage](redis)
        assert await fetched(tier) is None
        counted(tier, writes=1, misses=1, corrupt=1)
        assert redis.dbsize() == 0
        await write(tier)
        assert await fetched(tier) is not None

    with_pods(redis_url, scenario)


def test_a_half_written_blend_is_a_miss(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await write(tier)
        redis.delete(name("manifest"))
        assert await fetched(tier) is None
        counted(tier, writes=1, misses=1)

    with_pods(redis_url, scenario)


def test_a_manifest_of_another_type_is_an_error_that_nobody_sees(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        redis.lpush(name("manifest"), "x")
        assert await fetched(tier) is None and tier.errors == 1

    with_pods(redis_url, scenario)


def test_the_manifest_is_written_last(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        seen: list[tuple[bool, int]] = []

        def look() -> bool:
            seen.append((bool(redis.exists(name("manifest"))), len(redis.keys(name("[0-9]")))))
            return False

        assert await tier.put(KEY, "finance@0.4", VECTOR, look) is not None
        assert seen == [(False, 0), (False, 1), (False, 2)] and redis.exists(name("manifest"))

    with_pods(redis_url, scenario)


def test_a_write_that_is_called_off_leaves_nothing(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        answers = iter([False, False, True])
        assert await tier.put(KEY, "finance@0.4", VECTOR, lambda: next(answers)) is None
        counted(tier, called_off=1)

    with_pods(redis_url, scenario)
    assert redis.dbsize() == 0


# -- the server ----------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_left_alone_after_three_failures(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert not await tier.is_well()
        for _ in range(100):
            assert await fetched(tier) is None
        assert not await write(tier)
        assert await tier.find(KEY) is None and await tier.stored() == [] and not await tier.delete(KEY)
        assert tier.breakers()["small"].is_open and tier.errors <= 4

    with_pods(f"unix://{tmp_path}/nothing.sock", scenario)


def test_a_full_server_refuses_and_is_used_again_when_there_is_room(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert not await write(tier)
        counted(tier, errors=1)
        assert not tier.breakers()["small"].is_open and not tier.breakers()["weights"].is_open
        assert redis.keys() == [b"ballast"]
        redis.delete("ballast")
        assert await write(tier) and await fetched(tier) is not None

    with server(tmp_path, "maxmemory-policy noeviction") as made, made.client() as redis:
        redis.set("ballast", bytes(7 * 1024 * 1024))
        redis.config_set("maxmemory", redis.info("memory")["used_memory"])
        with_pods(made.url, scenario)


def test_a_restart_costs_a_reader_nothing_but_the_cache(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await write(tier) and await fetched(tier) is not None
        made.kill()
        made.start()
        assert await fetched(tier) is None
        assert await write(tier)
        out = await fetched(tier)
        assert out is not None and torch.equal(out, VECTOR)
        assert tier.errors == 0

    with server(tmp_path) as made:
        with_pods(made.url, scenario)


def test_a_server_that_hangs_costs_one_time_out(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "TIMEOUT", 0.1)

    async def scenario(tier: RedisTier) -> None:
        await write(tier)
        redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        started = time.perf_counter()
        for _ in range(50):
            assert await fetched(tier) is None
        # One time-out, then 49 look-ups that are not made.
        assert tier.errors == 1 and tier.breakers()["small"].is_open
        assert time.perf_counter() - started < 2

    with_pods(redis_url, scenario)
    time.sleep(1.5)


def test_a_thin_link_is_given_up_in_time_and_read_no_more(tmp_path: Path) -> None:
    rule = SharingRule("auto")
    rule.built("linear 2", 0.3)
    rule.fetched(0.1)

    async def scenario(tier: RedisTier) -> None:
        assert await write(tier) and await fetched(tier) is not None
        line.state = 50_000
        started = time.perf_counter()
        assert await fetched(tier) is None
        assert time.perf_counter() - started < 4
        assert tier.breakers()["weights"].is_open and not tier.breakers()["small"].is_open
        assert not rule.reads("linear 2")
        assert tier.hits == 1 and tier.errors == 1

    with server(tmp_path) as made, line_to(made.port) as line:
        with_pods(line.url, scenario, rule=rule)


# -- the budget ----------------------------------------------------------------------------------------


def test_beyond_the_budget_the_blend_unused_for_longest_goes(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        for key in ("1", "2", "3"):
            await write(tier, key)
        assert await fetched(tier, "1") is not None
        await write(tier, "4")
        assert redis.zrange(USED, 0, -1) == [b"3", b"1", b"4"]
        assert [blend.key for blend in await tier.stored()] == ["4", "1", "3"]
        assert await fetched(tier, "2") is None
        counted(tier, writes=4, hits=1, misses=1, evictions=1)

    with_pods(redis_url, scenario, limit=3 * P * 4)
    assert len(redis.keys("*:manifest")) == 3 and len(redis.keys()) == 3 * 4 + 1


def test_a_blend_that_is_listed_while_it_is_written_is_counted_all_the_same(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        loop = asyncio.get_running_loop()

        def list_them() -> bool:
            assert asyncio.run_coroutine_threadsafe(tier.stored(), loop).result() == []
            return False

        assert await tier.put(KEY, "finance@0.4", VECTOR, list_them) is not None
        assert [blend.key for blend in await tier.stored()] == [KEY]

    with_pods(redis_url, scenario)


def test_the_budget_heals_when_its_memory_is_lost(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        for key in ("1", "2", "3"):
            await write(tier, key)
        redis.delete(USED)
        await write(tier, "4")
        stored = {blend.key for blend in await tier.stored()}
        assert len(stored) == 3 and "4" in stored

    with_pods(redis_url, scenario, limit=3 * P * 4)
    assert len(redis.keys("*:manifest")) == 3


def test_the_key_space_is_walked_once_and_not_at_each_use_of_a_lone_blend(redis: Redis, redis_url: str) -> None:
    def walks() -> int:
        return int(redis.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"])

    async def scenario(tier: RedisTier) -> None:
        before = walks()
        await write(tier)
        assert walks() == before + 1, "the set was empty: there may be blends that it does not know"
        for _ in range(5):
            assert await fetched(tier) is not None
        assert walks() == before + 1 and redis.zcard(USED) == 1

    with_pods(redis_url, scenario)


def test_what_redis_evicted_or_flushed_is_forgotten(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await write(tier, "1")
        await write(tier, "2")
        redis.delete(name("manifest", "1"))
        assert [blend.key for blend in await tier.stored()] == ["2"]
        assert redis.zrange(USED, 0, -1) == [b"2"]
        redis.flushall()
        assert await tier.stored() == [] and await write(tier, "1")

    with_pods(redis_url, scenario)


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
def test_a_blend_too_large_for_the_server_is_never_sent(tmp_path: Path, policy: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert not await write(tier)
        counted(tier, too_large=1)

    with server(tmp_path, "maxmemory 4mb", f"maxmemory-policy {policy}") as made, made.client() as redis:
        redis.set("precious", "1")
        with_pods(made.url, scenario, shape=replace(SHAPE, bytes=3_000_000))
        assert redis.info("stats")["evicted_keys"] == 0 and redis.keys() == [b"precious"]


def test_a_budget_below_one_blend_sends_none(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert not await write(tier)
        counted(tier, too_large=1)

    with_pods(redis_url, scenario, limit=P * 4 - 1)
    assert redis.dbsize() == 0
