"""Blends in memory and in Redis, on two pods and a redis-server that loses, damages and forgets them at random, against
a model that knows nothing but the weights of each recipe."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from pods import CHUNK, KIND, PREFIX, SHAPE, P, name
from pods import pod as redis_tier
from redis import Redis
from servers import Server, server
from steady import STEADY
from torch import Tensor

from app.cache.memory_tier import MemoryTier
from app.cache.redis_tier import RedisTier
from app.cache.tiers import BlendPin, Ladder
from app.cluster import circuit_breaker

pytestmark = pytest.mark.service

SLOTS, ROOM = 2, 3
"""Blends that fit into a pod's memory, and into Redis, of four."""
KEYS = [str(number) * 32 for number in range(4)]
WEIGHTS = {key: torch.randn(P, generator=torch.Generator().manual_seed(seed)) for seed, key in enumerate(KEYS)}
"""The model."""
BYTES = {key: bytes(memoryview(vector.numpy()).cast("B")) for key, vector in WEIGHTS.items()}
MANIFESTS = {
    key: {
        "format": 2,
        "key": key,
        "fingerprint": SHAPE.fingerprint,
        "layout": SHAPE.layout,
        "dtype": SHAPE.dtype,
        "bytes": SHAPE.bytes,
        "chunk": CHUNK,
        "checksums": [xxhash.xxh3_128_hexdigest(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)],
    }
    for key, data in BYTES.items()
}
"""What must be said of the weights in Redis, beside the recipe and the time."""
PARTS = ["manifest", "0", "1", "2"]
ANY_KEY = st.sampled_from(KEYS)
ANY_POD = st.integers(0, 1)


def is_right(key: str, vector: Tensor) -> bool:
    return torch.equal(vector.view(torch.int32), WEIGHTS[key].view(torch.int32))


def lose(redis: Redis, key: str, at: int) -> None:
    redis.delete(name(PARTS[at % 4], key))


def flip_a_bit(redis: Redis, key: str, at: int) -> None:
    part = name(PARTS[at % 4], key)
    value = redis.get(part)
    if value:
        redis.setrange(part, at % len(value), bytes([value[at % len(value)] ^ (1 << at % 8)]))


def cut_short(redis: Redis, key: str, at: int) -> None:
    part = name(PARTS[at % 4], key)
    if redis.exists(part):
        redis.set(part, redis.getrange(part, 0, at % redis.strlen(part))[:-1])


def replace_parts(redis: Redis, key: str, parts: list[str], at: int) -> None:
    """By those of another blend that is there."""
    others = [other for other in KEYS if other != key and redis.exists(*(name(part, other) for part in PARTS)) == 4]
    for part in parts if others else []:
        redis.copy(name(part, others[at % len(others)]), name(part, key), replace=True)


def expire(redis: Redis, key: str, at: int) -> None:
    for part in PARTS:
        redis.pexpire(name(part, key), 1)
    time.sleep(0.005)


DAMAGE: dict[str, Callable[[Redis, str, int], None]] = {
    "a part is evicted": lose,
    "a bit flips": flip_a_bit,
    "a part is cut short": cut_short,
    "a part is another blend's": lambda redis, key, at: replace_parts(redis, key, [PARTS[at % 4]], at),
    "all of it is another blend's": lambda redis, key, at: replace_parts(redis, key, PARTS, at),
    "it expires": expire,
}


class Pod:
    """The ladder of a service, with two slots, and who holds which blend there."""

    def __init__(self, stack: AsyncExitStack, tier: RedisTier) -> None:
        self.tier = tier
        self.memory = MemoryTier(torch.full((SLOTS, P), torch.nan))
        self.ladder = Ladder(self.memory, [tier])
        self.held: list[tuple[str, AbstractAsyncContextManager[BlendPin], BlendPin]] = []
        self._stack = stack

    @classmethod
    async def start(cls, url: str) -> Pod:
        stack = AsyncExitStack()
        tier = await stack.enter_async_context(redis_tier(url, limit=ROOM * P * 4))
        return cls(stack, tier)

    def lease(self, key: str) -> AbstractAsyncContextManager[BlendPin]:
        async def build(slot: Tensor) -> None:
            slot[: P // 2] = WEIGHTS[key][: P // 2]
            await asyncio.sleep(0)
            slot[P // 2 :] = WEIGHTS[key][P // 2 :]

        return self.ladder.lease(key, f"recipe {key[0]}", build, KIND)

    async def use(self, key: str) -> str:
        """Where the blend came from."""
        async with self.lease(key) as lease:
            assert is_right(key, lease.blend.vector), f"{lease.source} gave other weights"
            return lease.source

    def is_leaving_redis_alone(self) -> bool:
        return any(circuit_breaker.is_open for circuit_breaker in self.tier.breakers().values())

    async def hold(self, key: str) -> None:
        context = self.lease(key)
        self.held.append((key, context, await context.__aenter__()))

    async def let_go(self) -> None:
        _, context, _ = self.held.pop(0)
        await context.__aexit__(None, None, None)

    async def stop(self) -> None:
        while self.held:
            await self.let_go()
        await self.ladder.close()
        await self._stack.aclose()


class BlendMachine(RuleBasedStateMachine):
    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = self.server.client()
        self.redis.flushall()
        self.is_up = True
        self.pods = [self.run(Pod.start(self.server.url)) for _ in range(2)]

    def run(self, work: Awaitable[object]) -> object:
        async def within_time() -> object:
            async with asyncio.timeout(10):
                return await work

        return self.runner.run(within_time())

    # -- what callers do -------------------------------------------------------------------------------

    @rule(number=ANY_POD, key=ANY_KEY)
    def use_in_silence(self, number: int, key: str) -> None:
        """Nothing is being written, so that it is known where the blend must come from."""
        self.settle()
        pod = self.pods[number]
        left_alone = pod.is_leaving_redis_alone()
        expected = "memory" if pod.memory.peek(key) else "redis" if self.is_sound(key) else "built"
        troubles = pod.tier.errors
        source = self.run(pod.use(key))
        self.settle()
        if pod.tier.errors == troubles and not left_alone:
            assert source == expected
            assert source == "memory" or not self.is_up or self.is_sound(key), "what was built was not written"

    @rule(uses=st.lists(st.tuples(ANY_POD, ANY_KEY), min_size=2, max_size=8), slow=st.booleans())
    def use_many_at_once(self, uses: list[tuple[int, str]], slow: bool) -> None:
        if slow and self.is_up:  # so that what is being written is still there when its slot is wanted
            self.redis.client_pause(20, all=False)

        async def together() -> None:
            await asyncio.gather(*(self.pods[number].use(key) for number, key in uses))

        self.run(together())

    @rule(number=ANY_POD, key=ANY_KEY)
    def hold(self, number: int, key: str) -> None:
        pod = self.pods[number]
        if len(pod.held) == SLOTS - 1:  # with all slots in use, the next caller would wait
            self.run(pod.let_go())
        self.run(pod.hold(key))

    @rule(number=ANY_POD)
    def let_go(self, number: int) -> None:
        if self.pods[number].held:
            self.run(self.pods[number].let_go())

    @rule(number=ANY_POD, key=ANY_KEY)
    def publish(self, number: int, key: str) -> None:
        async def publish() -> None:
            async with self.pods[number].lease(key) as lease:
                await self.pods[number].ladder.publish(key, lease.blend.recipe, lease.blend.vector)

        self.run(publish())

    @rule(number=ANY_POD, key=ANY_KEY)
    def delete_what_is_being_written(self, number: int, key: str) -> None:
        self.delete(number, key)
        if self.is_up:
            self.redis.client_pause(20, all=False)
        self.run(self.pods[number].use(key))
        self.delete(number, key)

    @rule(number=ANY_POD, key=ANY_KEY)
    def delete(self, number: int, key: str) -> None:
        pod, other = self.pods[number], self.pods[1 - number]
        self.run(other.ladder.settle())  # or it might write the blend again
        left_alone, troubles = pod.is_leaving_redis_alone(), pod.tier.errors
        self.run(pod.ladder.delete(key))
        assert pod.memory.peek(key) is None
        self.run(pod.ladder.settle())
        if self.is_up and not left_alone and pod.tier.errors == troubles:
            assert not self.redis.exists(name("manifest", key))
        if key in (held for held, _, _ in pod.held):
            for one in KEYS:  # they want its slot, and must not get it
                self.run(pod.use(one))

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.005]))
    def time_passes(self, seconds: float) -> None:
        """What is being written gets on, and may be met by what comes next in the middle of it."""
        self.run(asyncio.sleep(seconds))

    @rule(number=ANY_POD)
    def a_pod_is_restarted(self, number: int) -> None:
        self.run(self.pods[number].stop())
        self.pods[number] = self.run(Pod.start(self.server.url))

    # -- what becomes of Redis -------------------------------------------------------------------------

    @precondition(lambda self: self.is_up)
    @rule(
        which=st.integers(0, 3),
        how=st.sampled_from(sorted(DAMAGE)),
        at=st.integers(0, 10**6),
        number=st.sampled_from([None, 0, 1]),
    )
    def a_blend_is_damaged(self, which: int, how: str, at: int, number: int | None) -> None:
        """And met, if there is a number, by a pod that has it no longer in memory."""
        sound = [key for key in KEYS if self.is_sound(key)]
        if not sound:
            return
        key = sound[which % len(sound)]
        DAMAGE[how](self.redis, key, at)
        if number is not None:
            self.pods[number].memory.delete(key)
            self.use_in_silence(number, key)

    @precondition(lambda self: self.is_up)
    @rule()
    def redis_forgets_what_was_used_when(self) -> None:
        self.redis.delete(f"{PREFIX}:used")

    @precondition(lambda self: self.is_up)
    @rule()
    def redis_is_flushed(self) -> None:
        self.redis.flushall()

    @precondition(lambda self: self.is_up)
    @rule()
    def redis_is_killed(self) -> None:
        self.server.kill()
        self.is_up = False

    @precondition(lambda self: not self.is_up)
    @rule()
    def redis_is_back(self) -> None:
        self.server.start()
        self.is_up = True

    # -- what holds after each step --------------------------------------------------------------------

    @invariant()
    def what_lies_in_memory_is_right(self) -> None:
        for pod in self.pods:
            for blend in pod.memory.blends():
                assert is_right(blend.key, blend.vector)

    @invariant()
    def what_is_held_stays_as_it_was(self) -> None:
        for pod in self.pods:
            for key, _, lease in pod.held:
                assert is_right(key, lease.blend.vector)

    def teardown(self) -> None:
        try:
            self.the_cache_is_whole_again()
        finally:
            for pod in self.pods:
                self.run(pod.stop())
            self.runner.close()
            self.redis.close()

    def the_cache_is_whole_again(self) -> None:
        if not self.is_up:
            self.redis_is_back()
        self.settle()
        time.sleep(2 * circuit_breaker.PROBE_SECONDS)
        for pod in self.pods:
            while pod.held:
                self.run(pod.let_go())
            for key in KEYS[:SLOTS]:  # as many at once as there are slots: none was lost
                self.run(pod.hold(key))
            while pod.held:
                self.run(pod.let_go())
        for key in KEYS:
            self.run(self.pods[0].use(key))
            self.settle()
        self.a_pod_is_restarted(1)
        assert self.run(self.pods[1].use(KEYS[-1])) == "redis"
        assert len(self.redis.keys(f"{PREFIX}:*:manifest")) <= ROOM

    # -- looking ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        for pod in self.pods:
            self.run(pod.ladder.settle())

    def is_sound(self, key: str) -> bool:
        """Whether all of the blend lies in Redis as it should."""
        if not self.is_up:
            return False
        manifest, *chunks = (self.redis.get(name(part, key)) for part in PARTS)
        if None in (manifest, *chunks) or b"".join(chunks) != BYTES[key]:
            return False
        try:
            told = json.loads(manifest)
        except ValueError:
            return False
        is_told = isinstance(told.pop("recipe", None), str) and isinstance(told.pop("created", None), float)
        return is_told and told == MANIFESTS[key]


def test_blends_on_two_pods_are_what_their_recipes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "PROBE_SECONDS", 0.05)
    with server(tmp_path) as made:

        class OnThisServer(BlendMachine):
            server = made

        run_state_machine_as_test(OnThisServer, settings=settings(STEADY, stateful_step_count=30))
