"""The Redis tier against a real redis-server, whole and damaged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch
from redis import Redis

from app.cache import shared
from app.cache.private_redis import PrivateRedis, find_server
from app.cache.shared import RedisTier, connect

P = 50_000
KEY = "0" * 32
VECTOR = torch.arange(P, dtype=torch.float32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks for 200,000 bytes, the last one shorter."""
    monkeypatch.setattr(shared, "CHUNK", 80_000)


def with_tier(
    url: str, scenario: Callable[[RedisTier], Awaitable[None]], fingerprint: str = "f" * 64, ttl: int = 60
) -> None:
    async def main() -> None:
        client = connect(url)
        try:
            await scenario(RedisTier(client, fingerprint, torch.float32, P * 4, "tween", ttl))
        finally:
            await client.aclose()

    asyncio.run(main())


async def fetched(tier: RedisTier) -> torch.Tensor | None:
    out = torch.full((P,), torch.nan)
    return out if await tier.get(KEY, out) else None


def name(part: str) -> str:
    return f"tween:blend:1:{'f' * 16}:{{{KEY}}}:{part}"


def test_a_blend_comes_back_bit_for_bit(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await fetched(tier) is None
        await tier.put(KEY, "finance@0.4", VECTOR)
        out = await fetched(tier)
        assert out is not None and torch.equal(out, VECTOR)
        assert tier.counters() == {"hits": 1, "misses": 1, "writes": 1, "corrupt": 0, "errors": 0}

    with_tier(redis_url, scenario)
    assert sorted(redis.keys()) == sorted(name(p).encode() for p in ("0", "1", "2", "manifest"))
    assert all(0 < redis.ttl(key) <= 60 for key in redis.keys())


def test_a_blend_is_found_listed_and_deleted(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await tier.put(KEY, "finance@0.4", VECTOR)
        found = await tier.find(KEY)
        assert found is not None and (found.recipe, found.bytes) == ("finance@0.4", P * 4)
        assert abs(found.created - time.time()) < 5 and found.ttl is not None and 0 < found.ttl <= 60
        assert [blend.key for blend in await tier.stored()] == [KEY]
        assert await tier.delete(KEY) and not await tier.delete(KEY)
        assert await tier.find(KEY) is None and await tier.stored() == []

    with_tier(redis_url, scenario)
    assert redis.dbsize() == 0


def test_banks_do_not_see_each_other_s_blends(redis: Redis, redis_url: str) -> None:
    async def write(tier: RedisTier) -> None:
        await tier.put(KEY, "finance@0.4", VECTOR)

    async def look(tier: RedisTier) -> None:
        assert await fetched(tier) is None and await tier.stored() == []

    with_tier(redis_url, write)
    with_tier(redis_url, look, fingerprint="e" * 64)


def flip_a_bit(redis: Redis) -> None:
    chunk = bytearray(redis.get(name("1")))
    chunk[1234] ^= 1
    redis.set(name("1"), bytes(chunk))


def edit_manifest(**changes: object) -> Callable[[Redis], None]:
    def damage(redis: Redis) -> None:
        redis.set(name("manifest"), json.dumps(json.loads(redis.get(name("manifest"))) | changes))

    return damage


DAMAGE: dict[str, Callable[[Redis], object]] = {
    "a flipped bit": flip_a_bit,
    "a chunk cut short": lambda redis: redis.set(name("2"), redis.get(name("2"))[:-1]),
    "a chunk gone": lambda redis: redis.delete(name("0")),
    "chunks swapped": lambda redis: redis.rename(name("0"), name("1")),
    "another blend's manifest": edit_manifest(key="1" * 32),
    "another bank's manifest": edit_manifest(fingerprint="e" * 64),
    "another dtype": edit_manifest(dtype="bfloat16"),
    "another length": edit_manifest(bytes=P * 2),
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
        await tier.put(KEY, "finance@0.4", VECTOR)
        DAMAGE[damage](redis)
        assert await fetched(tier) is None
        assert tier.counters() | {"writes": 0} == {"hits": 0, "misses": 0, "writes": 0, "corrupt": 1, "errors": 0}
        assert redis.dbsize() == 0
        await tier.put(KEY, "finance@0.4", VECTOR)
        assert await fetched(tier) is not None

    with_tier(redis_url, scenario)


def test_a_half_written_blend_is_a_miss(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await tier.put(KEY, "finance@0.4", VECTOR)
        redis.delete(name("manifest"))
        assert await fetched(tier) is None and tier.misses == 1

    with_tier(redis_url, scenario)


def test_a_key_of_another_type_is_an_error_that_nobody_sees(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        redis.lpush(name("manifest"), "x")
        assert await fetched(tier) is None and tier.errors == 1

    with_tier(redis_url, scenario)


def test_a_server_that_is_not_there_costs_one_attempt_and_then_nothing(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert not await tier.ping()
        assert await fetched(tier) is None
        for _ in range(100):
            assert await fetched(tier) is None
        await tier.put(KEY, "finance@0.4", VECTOR)
        assert await tier.find(KEY) is None and await tier.stored() == [] and not await tier.delete(KEY)
        assert tier.errors == 1

    with_tier(f"unix://{tmp_path}/nothing.sock", scenario)


def test_a_server_that_comes_back_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "REST", 0.05)
    binary = find_server()
    assert binary is not None
    server = PrivateRedis(binary, maxmemory_mib=16)

    async def scenario(tier: RedisTier) -> None:
        await tier.put(KEY, "finance@0.4", VECTOR)
        redis = Redis.from_url(server.url)
        redis.flushall()
        redis.config_set("maxmemory", 1)
        redis.config_set("maxmemory-policy", "noeviction")
        await tier.put(KEY, "finance@0.4", VECTOR)
        assert (tier.writes, tier.errors) == (1, 1)
        redis.config_set("maxmemory", 0)
        await asyncio.sleep(0.06)
        await tier.put(KEY, "finance@0.4", VECTOR)
        assert await fetched(tier) is not None
        redis.close()

    try:
        with_tier(server.url, scenario)
    finally:
        server.stop()


def test_a_server_that_hangs_costs_one_time_out(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "TIMEOUT", 0.1)

    async def scenario(tier: RedisTier) -> None:
        await tier.put(KEY, "finance@0.4", VECTOR)
        redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        started = time.perf_counter()
        for _ in range(50):
            assert await fetched(tier) is None
        assert tier.errors == 1
        # The time-out and its one retry, then 49 look-ups that are not made.
        assert time.perf_counter() - started < 0.9

    with_tier(redis_url, scenario)
    time.sleep(1.5)
