from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch
from torch import Tensor

from app.cache.memory_tier import MemoryTier
from app.cache.tier import Stored
from app.cache.tiers import BlendPin, Ladder
from app.cluster.circuit_breaker import CircuitBreaker


class DictTier:
    """A further tier in a dict, at the seam that tiers share."""

    name = "dict"

    def __init__(self) -> None:
        self.vectors: dict[str, Tensor] = {}
        self.gets = 0
        self.is_writable = True
        self.at_once = True
        self.fails = False
        self.asked: list[tuple[str, int]] = []
        self.learnt: list[str] = []

    async def get(self, key: str, kind: str, out: Tensor) -> bool:
        self.gets += 1
        await asyncio.sleep(0)
        if key not in self.vectors:
            out.fill_(torch.nan)
            return False
        out.copy_(self.vectors[key])
        return True

    def built(self, kind: str, seconds: float) -> None:
        self.learnt.append(kind)

    async def wants(self, key: str, requests: int) -> bool:
        self.asked.append((key, requests))
        return self.at_once or requests > 1

    async def put(self, key: str, recipe: str, vector: Tensor, called_off: Callable[[], bool]) -> float | None:
        for _ in range(5):
            await asyncio.sleep(0.002)
            if await asyncio.to_thread(called_off) or self.fails:
                return None
        self.vectors[key] = vector.clone()
        return 0.01

    async def renew(self, key: str) -> None:
        pass

    async def delete(self, key: str) -> bool:
        return self.vectors.pop(key, None) is not None

    async def find(self, key: str) -> Stored | None:
        return Stored(key, key, 64, 0.0, None) if key in self.vectors else None

    async def stored(self) -> list[Stored]:
        return [Stored(key, key, 64, 0.0, None) for key in self.vectors]

    async def is_well(self) -> bool:
        return True

    def counters(self) -> dict[str, int]:
        return {"gets": self.gets}

    def costs(self) -> list[tuple[str, str, float]]:
        return []

    def breakers(self) -> dict[str, CircuitBreaker]:
        return {}


class World:
    """A ladder over two slots and a dict, and a build that counts itself."""

    def __init__(self) -> None:
        self.memory = MemoryTier(torch.zeros(2, 16))
        self.further = DictTier()
        self.callers_wait = False
        self.ladder = Ladder(self.memory, [self.further], lambda: self.callers_wait)
        self.builds = 0
        self.fails = False

    def building(self, value: float) -> Callable[[Tensor], Awaitable[None]]:
        async def build(slot: Tensor) -> None:
            self.builds += 1
            await asyncio.sleep(0.02)
            if self.fails:
                raise RuntimeError("no memory")
            slot.fill_(value)

        return build

    async def use(self, key: str, value: float = 1.0, hold: float = 0.0) -> str:
        async with self.ladder.lease(key, key, self.building(value), "linear 2") as lease:
            await asyncio.sleep(hold)
            assert (lease.blend.vector == value).all()
            return lease.source

    def pins(self) -> int:
        return sum(blend.pins for blend in self.memory.blends())


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await scenario(world)
        await world.ladder.settle()
        assert world.pins() == 0

    asyncio.run(main())


def test_memory_then_the_further_tier_then_the_build() -> None:
    async def scenario(world: World) -> None:
        assert await world.use("a") == "built"
        assert await world.use("a") == "memory"
        await world.ladder.settle()
        world.memory.delete("a")
        assert await world.use("a") == "dict"
        assert await world.use("a") == "memory"
        assert world.builds == 1

    run(scenario)


def test_a_hundred_callers_of_one_cold_blend_share_one_build() -> None:
    async def scenario(world: World) -> None:
        sources = await asyncio.gather(*(world.use("a", hold=0.005) for _ in range(100)))
        assert set(sources) == {"built"} and world.builds == 1 and world.further.gets == 1

    run(scenario)


def test_callers_who_hang_up_leave_no_pin_and_do_not_stop_the_others() -> None:
    async def scenario(world: World) -> None:
        callers = [asyncio.create_task(world.use("a")) for _ in range(10)]
        await asyncio.sleep(0.005)
        for caller in callers[:9]:
            caller.cancel()
        assert await callers[9] == "built"
        assert await world.use("a") == "memory" and world.builds == 1

    run(scenario)


def test_a_build_goes_on_when_all_who_wait_hang_up() -> None:
    async def scenario(world: World) -> None:
        caller = asyncio.create_task(world.use("a"))
        await asyncio.sleep(0.005)
        caller.cancel()
        await asyncio.sleep(0.05)
        assert await world.use("a") == "memory" and world.builds == 1

    run(scenario)


def test_a_failed_build_fails_its_callers_and_is_tried_again() -> None:
    async def scenario(world: World) -> None:
        world.fails = True
        results = await asyncio.gather(*(world.use("a") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, RuntimeError) for result in results) and world.builds == 1
        world.fails = False
        assert await world.use("a") == "built"

    run(scenario)


def test_more_blends_than_slots_are_all_right_in_the_end() -> None:
    async def scenario(world: World) -> None:
        values = [float(i % 7) for i in range(200)]
        sources = await asyncio.gather(*(world.use(str(value), value) for value in values))
        assert set(sources) <= {"built", "memory", "dict"}
        assert world.memory.counters()["blends"] == 2

    run(scenario)


def test_a_tier_that_takes_nothing_is_offered_nothing() -> None:
    async def scenario(world: World) -> None:
        world.further.is_writable = False
        assert await world.use("a") == "built" and await world.use("a") == "memory"
        await world.ladder.settle()
        assert not world.further.vectors and not world.further.asked and world.further.learnt == ["linear 2"]

    run(scenario)


def test_a_build_that_fails_is_neither_learnt_nor_written() -> None:
    async def scenario(world: World) -> None:
        world.fails = True
        with pytest.raises(RuntimeError):
            await world.use("a")
        await world.ladder.settle()
        assert not world.further.asked and world.further.learnt == []

    run(scenario)


def test_a_blend_is_written_when_it_is_asked_for_again_and_then_no_more() -> None:
    async def scenario(world: World) -> None:
        world.further.at_once = False
        await world.use("a")
        await world.ladder.settle()
        assert not world.further.vectors
        for _ in range(3):
            await world.use("a")
            await world.ladder.settle()
        assert list(world.further.vectors) == ["a"] and world.further.asked == [("a", 1), ("a", 2)]

    run(scenario)


def test_a_request_that_comes_before_the_first_was_looked_at_counts() -> None:
    async def scenario(world: World) -> None:
        world.further.at_once = False
        world.callers_wait = True
        await world.use("a")
        await world.use("a")
        world.callers_wait = False
        await world.ladder.settle()
        assert list(world.further.vectors) == ["a"]

    run(scenario)


def test_two_callers_of_one_cold_blend_have_it_written() -> None:
    async def scenario(world: World) -> None:
        world.further.at_once = False
        await asyncio.gather(world.use("a"), world.use("a"))
        await world.ladder.settle()
        assert list(world.further.vectors) == ["a"]

    run(scenario)


def test_a_blend_that_was_fetched_is_not_offered_again() -> None:
    async def scenario(world: World) -> None:
        world.further.vectors["a"] = torch.ones(16)
        assert await world.use("a") == "dict" and await world.use("a") == "memory"
        await world.ladder.settle()
        assert not world.further.asked

    run(scenario)


def test_a_blend_knows_what_each_way_to_it_took() -> None:
    async def scenario(world: World) -> None:
        await world.use("a")
        await world.ladder.settle()
        blend = world.memory.peek("a")
        assert blend is not None and set(blend.costs) == {"build", "write"} and blend.costs["build"] >= 20
        world.memory.delete("a")
        await world.use("a")
        blend = world.memory.peek("a")
        assert blend is not None and set(blend.costs) == {"fetch"}

    run(scenario)


def test_delete_takes_a_blend_out_of_every_tier() -> None:
    async def scenario(world: World) -> None:
        await world.use("a")
        await world.ladder.settle()
        assert await world.ladder.delete("a") == ["memory", "dict"]
        assert await world.ladder.delete("a") == []
        assert await world.use("a") == "built"

    run(scenario)


@pytest.mark.parametrize("delay", [0.005, 0.022, 0.026])
def test_delete_waits_for_the_build_under_way_and_calls_off_the_write(delay: float) -> None:
    async def scenario(world: World) -> None:
        caller = asyncio.create_task(world.use("a"))
        await asyncio.sleep(delay)
        assert await world.ladder.delete("a") == ["memory"]
        assert await caller == "built"
        await world.ladder.settle()
        assert world.memory.peek("a") is None and not world.further.vectors

    run(scenario)


def test_a_ladder_without_further_tiers_builds() -> None:
    async def scenario() -> BlendPin:
        memory = MemoryTier(torch.zeros(2, 16))

        async def build(slot: Tensor) -> None:
            slot.fill_(3)

        async with Ladder(memory).lease("a", "a", build) as lease:
            return lease

    assert asyncio.run(scenario()).source == "built"


@pytest.mark.parametrize("hold", [0.0, 0.03])
def test_cancelling_at_any_moment_leaves_no_pin(hold: float) -> None:
    async def scenario(world: World) -> None:
        for i in range(40):
            caller = asyncio.create_task(world.use(str(i % 3), float(i % 3), hold))
            await asyncio.sleep(i / 1000)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
        await asyncio.sleep(0.1)

    run(scenario)
