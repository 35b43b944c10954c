"""One build for all pods, and what happens when the pod that builds does not come back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
import torch
from pods import KEY, KIND, VECTOR, P, fetched, name, with_pods, write
from redis import Redis
from torch import Tensor

from app.cache import redis_policy as policies
from app.cache.memory_tier import MemoryTier
from app.cache.redis_policy import Policy
from app.cache.redis_tier import RedisTier
from app.cache.tiers import Ladder

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


class Pods:
    """Ladders of several pods above one Redis, and a build that takes its time and is counted."""

    def __init__(self, *tiers: RedisTier) -> None:
        self.ladders = [Ladder(MemoryTier(torch.zeros(2, P)), [tier]) for tier in tiers]
        self.tiers = tiers
        self.builds = 0

    async def build(self, slot: Tensor) -> None:
        self.builds += 1
        await asyncio.sleep(0.15)
        slot.copy_(VECTOR)

    async def ask(self, pod: int) -> str:
        async with self.ladders[pod].lease(KEY, "finance@0.4", self.build, KIND) as lease:
            assert torch.equal(lease.blend.vector, VECTOR)
            return lease.source

    async def settle(self) -> None:
        await asyncio.gather(*(ladder.settle() for ladder in self.ladders))


def run(url: str, scenario: Callable[[Pods], Awaitable[None]], count: int, policy: Policy | None = None) -> None:
    async def main(*tiers: RedisTier) -> None:
        pods = Pods(*tiers)
        await scenario(pods)
        await pods.settle()

    with_pods(url, main, count, policy=policy)


def test_sixty_four_callers_in_eight_pods_share_one_build(redis: Redis, redis_url: str) -> None:
    async def scenario(pods: Pods) -> None:
        sources = await asyncio.gather(*(pods.ask(number % 8) for number in range(64)))
        assert pods.builds == 1 and sources.count("built") == 8 and sources.count("redis") == 56
        assert sum(tier.waited for tier in pods.tiers) == 7

    run(redis_url, scenario, 8)
    assert not redis.exists(name("lock"))


def test_a_pod_whose_build_fails_leaves_it_to_the_next(redis: Redis, redis_url: str) -> None:
    async def fails(slot: Tensor) -> None:
        await asyncio.sleep(0.05)
        raise MemoryError

    async def scenario(pods: Pods) -> None:
        async def first() -> None:
            with pytest.raises(MemoryError):
                async with pods.ladders[0].lease(KEY, "finance@0.4", fails, KIND):
                    pass

        started = time.perf_counter()
        failing = asyncio.create_task(first())
        while not redis.exists(name("lock")):
            await asyncio.sleep(0.001)
        assert await pods.ask(1) == "built" and pods.builds == 1
        await failing
        assert time.perf_counter() - started < policies.UNKNOWN_PATIENCE

    run(redis_url, scenario, 2)


OWNER = """
import asyncio, sys
sys.path.insert(0, "tests")
from pods import KEY, KIND, P, pod
import torch

async def main():
    async with pod(sys.argv[1]) as tier:
        assert not await tier.get(KEY, KIND, torch.zeros(P))
        print("mine", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_dead_owner_delays_the_others_by_the_expiry_at_most(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, redis_url], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "mine\n"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    left = redis.pttl(name("lock")) / 1000
    assert 0 < left <= policies.UNKNOWN_PATIENCE

    async def scenario(pods: Pods) -> None:
        started = time.perf_counter()
        await asyncio.gather(*(pods.ask(number) for number in range(4)))
        assert pods.builds >= 1 and left - 0.5 < time.perf_counter() - started < left + 2

    run(redis_url, scenario, 4)


def test_who_waits_too_long_builds_for_himself(redis: Redis, redis_url: str) -> None:
    policy = Policy("always")
    policy.built(KIND, 0.1)

    async def scenario(pods: Pods) -> None:
        redis.set(name("lock"), "somebody", px=60_000)
        started = time.perf_counter()
        assert await pods.ask(0) == "built"
        assert policies.LEAST_PATIENCE <= time.perf_counter() - started < 5
        assert pods.tiers[0].waited_in_vain == 1
        await pods.settle()
        assert redis.get(name("lock")) == b"somebody"

    run(redis_url, scenario, 1, policy)


def test_a_lock_that_has_passed_to_another_is_not_released(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert not await tier.get(KEY, KIND, torch.zeros(P))
        redis.set(name("lock"), "somebody else")
        await tier.let_go(KEY)
        assert redis.get(name("lock")) == b"somebody else"

    with_pods(redis_url, scenario)


def test_a_flush_while_building_does_no_harm(redis: Redis, redis_url: str) -> None:
    async def scenario(pods: Pods) -> None:
        asking = [asyncio.create_task(pods.ask(number)) for number in range(4)]
        await asyncio.sleep(0.05)
        redis.flushall()
        assert set(await asyncio.gather(*asking)) <= {"built", "redis"} and pods.builds <= 2

    run(redis_url, scenario, 4)


def test_cheap_builds_are_neither_looked_up_nor_waited_for(redis: Redis, redis_url: str) -> None:
    policy = Policy("auto")
    policy.built(KIND, 0.00001)
    policy.fetched(10.0)

    async def scenario(pods: Pods) -> None:
        sources = await asyncio.gather(*(pods.ask(number) for number in range(3)))
        assert set(sources) == {"built"} and pods.builds == 3
        await pods.settle()
        assert all(not any(tier.counters().values()) for tier in pods.tiers)

    run(redis_url, scenario, 3, policy)


def test_a_pod_that_fetches_never_holds_the_lock(redis: Redis, redis_url: str) -> None:
    async def scenario(tier: RedisTier) -> None:
        await write(tier)
        assert await fetched(tier) is not None
        assert not redis.exists(name("lock"))

    with_pods(redis_url, scenario)


def test_a_blend_that_is_finished_between_look_and_claim_is_read(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(tier: RedisTier, other: RedisTier) -> None:
        claim = tier._claims.claim

        async def too_late(lock: str, seconds: float) -> bool:
            await write(other)
            return await claim(lock, seconds)

        monkeypatch.setattr(tier._claims, "claim", too_late)
        assert await tier.get(KEY, KIND, torch.zeros(P))
        assert not redis.exists(name("lock"))

    with_pods(redis_url, scenario, 2)
