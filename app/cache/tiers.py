"""The ladder of tiers: memory first, then the tiers further away, then the build.

Single flight: however many callers ask for one cold blend, it is fetched or built once, and all of them wait for the
same result. Writing to a further tier happens after the answer (`cache/write_behind.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from torch import Tensor

from app.cache.memory_tier import Blend, MemoryTier
from app.cache.tier import Tier
from app.cache.write_behind import WriteBehind

BUILT = "built"
RENEW_SECONDS = 30.0


@dataclass(frozen=True)
class BlendPin:
    """A blend in use: where it came from, and what that took."""

    blend: Blend
    source: str
    milliseconds: float


@dataclass
class _Flight:
    """A fetch or build under way, and how many wait for it."""

    task: asyncio.Task[BlendPin]
    waiters: int = 0


class Ladder:
    """Memory, then further tiers in order, then the build that the caller brings."""

    def __init__(
        self, memory: MemoryTier, further: Sequence[Tier] = (), callers_wait: Callable[[], bool] = lambda: False
    ) -> None:
        """`callers_wait`: whether callers wait for the cores, so that nothing is written meanwhile."""
        self.memory = memory
        self.further = list(further)
        self.writer = WriteBehind(memory, self.further, callers_wait)
        self.builds = 0
        self._flights: dict[str, _Flight] = {}

    def __contains__(self, key: str) -> bool:
        """Whether the blend is in memory, or on its way there."""
        return key in self.memory or key in self._flights

    def built(self, kind: str, seconds: float) -> None:
        """Tell every tier what a build of that kind takes."""
        for tier in self.further:
            tier.built(kind, seconds)

    @asynccontextmanager
    async def lease(
        self, key: str, recipe: str, build: Callable[[Tensor], Awaitable[None]], kind: str = ""
    ) -> AsyncIterator[BlendPin]:
        """The blend of that key, pinned while the context is open. `build` fills a slot (P,) on a miss."""
        blend = self.memory.pin(key)
        if blend and time.monotonic() >= blend.next_offer:
            self.writer.offer(blend)
        lease = BlendPin(blend, self.memory.name, 0.0) if blend else await self._join(key, recipe, build, kind)
        try:
            yield lease
        finally:
            self.memory.unpin(lease.blend)

    async def _join(self, key: str, recipe: str, build: Callable[[Tensor], Awaitable[None]], kind: str) -> BlendPin:
        """Wait for the blend that one caller fetches for all; it comes pinned once for each who waits."""
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.create_task(self._fetch(key, recipe, build, kind))
            # Looked at here too, for the case that everybody who waits hangs up before it fails.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            flight = self._flights[key] = _Flight(task)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.task.done() and not flight.task.cancelled() and flight.task.exception() is None:
                self.memory.unpin(flight.task.result().blend)
            else:
                flight.waiters -= 1
            raise

    async def _fetch(self, key: str, recipe: str, build: Callable[[Tensor], Awaitable[None]], kind: str) -> BlendPin:
        started = time.perf_counter()
        flight = self._flights[key]
        slot = await self.memory.take()
        try:
            source, seconds = await self._fill(key, slot, build, kind)
        except BaseException:
            self.memory.give_back(slot)
            raise
        finally:
            del self._flights[key]
        # No await since the flight left the table: all who wait are counted, and each gets a pin.
        costs = {"build" if source == BUILT else "fetch": seconds * 1e3}
        blend = self.memory.put(key, recipe, slot, pins=flight.waiters, costs=costs)
        if source == BUILT:
            self.builds += 1
            self.built(kind, seconds)
            self.writer.offer(blend, flight.waiters)
        else:
            blend.next_offer = math.inf
        return BlendPin(blend, source, (time.perf_counter() - started) * 1e3)

    async def _fill(
        self, key: str, slot: Tensor, build: Callable[[Tensor], Awaitable[None]], kind: str
    ) -> tuple[str, float]:
        """Where the blend came from, and the seconds that this way took."""
        for tier in self.further:
            started = time.perf_counter()
            if await tier.get(key, kind, slot):
                return tier.name, time.perf_counter() - started
        started = time.perf_counter()
        await build(slot)
        return BUILT, time.perf_counter() - started

    async def publish(self, key: str, recipe: str, vector: Tensor) -> None:
        """Put a blend, which the caller keeps as it is meanwhile, into every further tier, wanted there or not."""
        await self.writer.forget(key)
        for tier in self.further:
            seconds = await tier.put(key, recipe, vector, lambda: False)
            blend = self.memory.peek(key)
            if seconds and blend is not None:
                blend.costs["write"] = seconds * 1e3

    async def renew(self) -> None:
        """Until this is cancelled, see that further tiers do not lose for its age what lies in memory: for a pod that
        could not put it there again."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for blend in self.memory.blends():
                for tier in self.further:
                    await tier.renew(blend.key)

    async def settle(self) -> None:
        """Wait until what is being written has been written."""
        await self.writer.settle()

    async def close(self) -> None:
        """End what goes on after the answers."""
        await self.writer.close()

    async def delete(self, key: str) -> list[str]:
        """Take a blend out of every tier; gives the names of the tiers that held it."""
        flight = self._flights.get(key)
        if flight is not None:
            await asyncio.wait([flight.task])
        held = [self.memory.name] if self.memory.delete(key) else []
        await self.writer.forget(key)
        for tier in self.further:
            if await tier.delete(key):
                held.append(tier.name)
        return held
