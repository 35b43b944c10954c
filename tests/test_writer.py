from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import torch
from test_tiers import DictTier

from app.cache import write_behind
from app.cache.memory_tier import Blend, MemoryTier
from app.cache.write_behind import WriteBehind


class World:
    """Two slots, a further tier, and a writer between them."""

    def __init__(self) -> None:
        self.memory = MemoryTier(torch.zeros(2, 16))
        self.tier = DictTier()
        self.callers_wait = False
        self.writer = WriteBehind(self.memory, [self.tier], lambda: self.callers_wait)

    async def blend(self, key: str) -> Blend:
        return self.memory.put(key, key, await self.memory.take(), pins=0)


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await scenario(world)
        await world.writer.close()
        assert all(blend.pins == 0 for blend in world.memory.blends())

    asyncio.run(main())


def test_blends_are_written_one_after_the_other() -> None:
    async def scenario(world: World) -> None:
        world.writer.offer(await world.blend("a"))
        world.writer.offer(await world.blend("b"))
        while not world.tier.vectors:
            await asyncio.sleep(0.001)
        assert list(world.tier.vectors) == ["a"]
        await world.writer.settle()
        assert list(world.tier.vectors) == ["a", "b"]

    run(scenario)


def test_more_than_may_wait_are_dropped_and_counted() -> None:
    async def scenario(world: World) -> None:
        world.memory = MemoryTier(torch.zeros(write_behind.MAX_WAITING + 3, 16))
        for number in range(write_behind.MAX_WAITING + 3):
            world.writer.offer(await world.blend(str(number)))
        assert world.writer.dropped == 3

    run(scenario)


def test_a_blend_that_waits_does_not_hold_its_slot() -> None:
    async def scenario(world: World) -> None:
        for key in "abcd":
            world.writer.offer(await asyncio.wait_for(world.blend(key), 1))
        await world.writer.settle()
        # The first was already being written when the others pushed each other out of the second slot.
        assert list(world.tier.vectors) == ["a", "d"] and world.writer.dropped == 2

    run(scenario)


def test_a_write_is_given_up_when_somebody_waits_for_a_slot() -> None:
    async def scenario(world: World) -> None:
        world.writer.offer(await world.blend("a"))
        (await world.blend("b")).pins += 1
        await asyncio.sleep(0.003)
        slot = await asyncio.wait_for(world.memory.take(), 1)
        assert not world.tier.vectors and world.memory.peek("a") is None
        world.memory.give_back(slot)
        world.memory.peek("b").pins -= 1

    run(scenario)


def test_a_blend_that_is_forgotten_is_written_no_more() -> None:
    async def scenario(world: World) -> None:
        blend = await world.blend("a")
        world.writer.offer(blend)
        await asyncio.sleep(0.003)
        world.memory.delete("a")
        await world.writer.forget("a")
        await world.writer.settle()
        assert not world.tier.vectors

    run(scenario)


def test_closing_ends_what_would_take_too_long() -> None:
    async def scenario(world: World) -> None:
        writer_time, write_behind.END_SECONDS = write_behind.END_SECONDS, 0.003
        try:
            for key in "ab":
                world.writer.offer(await world.blend(key))
            await world.writer.close()
        finally:
            write_behind.END_SECONDS = writer_time
        world.writer.offer(await world.blend("c"))
        await world.writer.settle()
        assert not world.tier.vectors

    run(scenario)


def test_nothing_is_written_while_callers_wait_for_the_cores() -> None:
    async def scenario(world: World) -> None:
        world.callers_wait = True
        world.writer.offer(await world.blend("a"))
        await asyncio.sleep(0.05)
        assert not world.tier.asked
        world.callers_wait = False
        while not world.tier.asked:
            await asyncio.sleep(0.001)
        world.callers_wait = True
        await asyncio.sleep(0.05)
        assert not world.tier.vectors, "the write pauses between two pieces"
        world.callers_wait = False
        await world.writer.settle()
        assert list(world.tier.vectors) == ["a"]

    run(scenario)


def test_a_paused_write_ends_when_its_slot_is_needed() -> None:
    async def scenario(world: World) -> None:
        world.writer.offer(await world.blend("a"))
        (await world.blend("b")).pins += 1
        while not world.tier.asked:
            await asyncio.sleep(0.001)
        world.callers_wait = True
        world.memory.give_back(await asyncio.wait_for(world.memory.take(), 1))
        assert not world.tier.vectors
        world.memory.peek("b").pins -= 1

    run(scenario)


def test_a_blend_that_could_not_be_written_is_offered_again_later() -> None:
    async def scenario(world: World) -> None:
        blend = await world.blend("a")
        world.tier.fails = True
        world.writer.offer(blend)
        await world.writer.settle()
        world.tier.fails = False
        world.writer.offer(blend)
        await world.writer.settle()
        assert not world.tier.vectors, "not at once"
        blend.next_offer -= write_behind.RETRY_SECONDS
        world.writer.offer(blend)
        await world.writer.settle()
        assert list(world.tier.vectors) == ["a"]

    run(scenario)
