"""Write-behind: blends on their way to further tiers, after the answer, one at a time, and never while callers wait.

A blend that waits here is not pinned: if its slot is needed sooner, it is not written, and can be built again. The
one that is being written is pinned. The write pauses between two chunks while callers wait for the cores, and ends
there when a caller waits for a slot.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from app.cache.memory_tier import Blend, MemoryTier
from app.cache.tier import Tier

MAX_WAITING = 8
"""Blends that may wait; one beyond them is not written."""
END_SECONDS = 2.0
"""How long a service that stops goes on writing."""
PAUSE_SECONDS = 0.005
"""Between two looks whether callers still wait."""
RETRY_SECONDS = 10.0
"""After which a blend that could not be written is offered again, when it is asked for."""


class WriteBehind:
    """Writes blends in the order in which they came. Lives on one event loop."""

    def __init__(self, memory: MemoryTier, tiers: Sequence[Tier], callers_wait: Callable[[], bool]) -> None:
        """`callers_wait` is called on any thread."""
        self.dropped = 0
        self._memory = memory
        self._tiers = tiers
        self._callers_wait = callers_wait
        self._waiting: list[tuple[Blend, int]] = []
        self._writing: Blend | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def offer(self, blend: Blend, requests: int = 1) -> None:
        """Have a blend written soon if a tier wants it: after its hits in memory, and the `requests` it was made for.

        Nothing happens where it was written, waits to be, or could not be written a moment ago."""
        if time.monotonic() < blend.next_offer or not any(tier.is_writable for tier in self._tiers):
            return
        if self._closing or len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            blend.next_offer = time.monotonic() + RETRY_SECONDS
            return
        blend.next_offer = math.inf
        self._waiting.append((blend, requests))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def forget(self, key: str) -> None:
        """Do not write that blend; returns when it is not being written any more."""
        self._waiting = [(blend, requests) for blend, requests in self._waiting if blend.key != key]
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
            if self._callers_wait() and not self._closing:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            blend, requests = self._waiting.pop(0)
            if self._memory.peek(blend.key) is not blend:
                self.dropped += 1
                continue
            self._writing = blend
            blend.pins += 1
            try:
                for tier in self._tiers:
                    await self._write(blend, requests, tier)
            finally:
                self._writing = None
                self._memory.unpin(blend)

    async def _write(self, blend: Blend, requests: int, tier: Tier) -> None:
        def is_to_end() -> bool:
            return self._memory.is_short or blend.deleted or self._closing

        def called_off() -> bool:
            while self._callers_wait() and not is_to_end():
                time.sleep(PAUSE_SECONDS)
            return is_to_end()

        if not await tier.wants(blend.key, requests + blend.hits):
            blend.next_offer = 0.0
            return
        seconds = await tier.put(blend.key, blend.recipe, blend.vector, called_off)
        if seconds is None:
            blend.next_offer = time.monotonic() + RETRY_SECONDS
        elif seconds:
            blend.costs["write"] = seconds * 1e3
