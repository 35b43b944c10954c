"""Blends on their way to a further tier, after the answer: one at a time, and never at the price of serving.

A blend that waits here is not pinned: if its slot is needed sooner, it is not written, and can be built again. The
one that is being written is pinned, and is given up between two chunks when somebody waits for a slot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.cache.memory_tier import Blend, MemoryTier

if TYPE_CHECKING:
    from app.cache.tiers import Tier

MAX_WAITING = 8
"""Blends that may wait; one beyond them is not written."""
END_SECONDS = 2.0
"""How long a service that stops goes on writing."""


class WriteBehind:
    """Writes blends in the order in which they came. Lives on one event loop."""

    def __init__(self, memory: MemoryTier) -> None:
        self.dropped = 0
        self._memory = memory
        self._waiting: list[tuple[Blend, Tier]] = []
        self._writing: Blend | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def add(self, blend: Blend, tier: Tier) -> bool:
        """Have a blend written soon. False if too many wait already."""
        if self._closing or len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return False
        self._waiting.append((blend, tier))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return True

    async def forget(self, key: str) -> None:
        """Do not write that blend; returns when it is not being written any more."""
        self._waiting = [(blend, tier) for blend, tier in self._waiting if blend.key != key]
        while self._writing is not None and self._writing.key == key:
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait until all has been written."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=END_SECONDS)
        self._closing = True
        self._waiting.clear()
        await self.settle()

    async def _run(self) -> None:
        while self._waiting:
            blend, tier = self._waiting.pop(0)
            if self._memory.peek(blend.key) is not blend:
                self.dropped += 1
                await tier.let_go(blend.key)
                continue
            self._writing = blend
            blend.pins += 1
            try:
                await self._write(blend, tier)
            finally:
                self._writing = None
                self._memory.unpin(blend)

    async def _write(self, blend: Blend, tier: Tier) -> None:
        def called_off() -> bool:
            return self._memory.is_short or blend.deleted or self._closing

        seconds = await tier.put(blend.key, blend.recipe, blend.vector, called_off)
        if seconds is not None:
            blend.costs["write"] = seconds * 1e3
