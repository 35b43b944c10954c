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
        self.writer = WriteBehind(self.memory)

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
        assert world.writer.add(await world.blend("a"), world.tier)
        assert world.writer.add(await world.blend("b"), world.tier)
        await asyncio.sleep(0.015)
        assert list(world.tier.vectors) == ["a"]
        await world.writer.settle()
        assert list(world.tier.vectors) == ["a", "b"]

    run(scenario)


def test_more_than_may_wait_are_dropped_and_counted() -> None:
    async def scenario(world: World) -> None:
        blend = await world.blend("a")
        taken = [world.writer.add(blend, world.tier) for _ in range(write_behind.MAX_WAITING + 3)]
        assert taken.count(True) == write_behind.MAX_WAITING and world.writer.dropped == 3

    run(scenario)


def test_a_blend_that_waits_does_not_hold_its_slot() -> None:
    async def scenario(world: World) -> None:
        for key in "abcd":
            world.writer.add(await asyncio.wait_for(world.blend(key), 1), world.tier)
        await world.writer.settle()
        # The first was already being written when the others pushed each other out of the second slot.
        assert list(world.tier.vectors) == ["a", "d"] and world.writer.dropped == 2
        assert world.tier.let_gos == ["b", "c"]

    run(scenario)


def test_a_write_is_given_up_when_somebody_waits_for_a_slot() -> None:
    async def scenario(world: World) -> None:
        world.writer.add(await world.blend("a"), world.tier)
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
        world.writer.add(blend, world.tier)
        world.writer.add(blend, world.tier)
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
                world.writer.add(await world.blend(key), world.tier)
            await world.writer.close()
        finally:
            write_behind.END_SECONDS = writer_time
        assert not world.tier.vectors and not world.writer.add(await world.blend("c"), world.tier)

    run(scenario)
