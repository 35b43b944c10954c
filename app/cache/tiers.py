"""Where finished blends wait: the Tier protocol, and the Ladder that walks the tiers.

Memory first, then the tiers further away, then the build. However many callers ask for one cold blend,
one of them fetches or builds it and the others wait for the same result. Writing to a further tier happens
after the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from app.cache.memory import Blend, MemoryTier

log = logging.getLogger(__name__)

BUILT = "built"
MAX_WRITES = 8
"""Writes to further tiers that may wait; a blend beyond them is not written (it can be built again)."""


@dataclass(frozen=True)
class Stored:
    """A blend as a further tier holds it. `created` is in seconds since the epoch, `ttl` in seconds."""

    key: str
    recipe: str
    bytes: int
    created: float
    ttl: float | None


class Tier(Protocol):
    """A place further away than this process's memory. None of its methods raises: an outage is a miss."""

    name: str

    async def get(self, key: str, out: Tensor) -> bool:
        """Fill a slot (P,) with the blend. False on a miss; `out` is then undefined."""

    async def put(self, key: str, recipe: str, vector: Tensor) -> None:
        """Store a blend, if it can be done."""

    async def delete(self, key: str) -> bool:
        """Remove a blend; False if it was not there."""

    async def find(self, key: str) -> Stored | None:
        """What is known of a blend without reading it."""

    async def stored(self) -> list[Stored]:
        """All blends here that belong to this bank."""

    async def ping(self) -> bool:
        """Whether the tier answers now."""

    def counters(self) -> dict[str, int]:
        """What happened here since the process started."""


@dataclass(frozen=True)
class Lease:
    """A blend in use: where it came from, and what that took."""

    blend: Blend
    source: str
    milliseconds: float


@dataclass
class _Flight:
    """A fetch or build under way, and how many wait for it."""

    task: asyncio.Task[Lease]
    waiters: int = 0


class Ladder:
    """Memory, then further tiers in order, then the build that the caller brings."""

    def __init__(self, memory: MemoryTier, further: Sequence[Tier] = ()) -> None:
        self.memory = memory
        self.further = list(further)
        self.builds = 0
        self._flights: dict[str, _Flight] = {}
        self._writes: set[asyncio.Task[None]] = set()

    def holds(self, key: str) -> bool:
        """Whether the blend is in memory, or on its way there."""
        return self.memory.peek(key) is not None or key in self._flights

    @asynccontextmanager
    async def lease(self, key: str, recipe: str, build: Callable[[Tensor], Awaitable[None]]) -> AsyncIterator[Lease]:
        """The blend of that key, pinned while the context is open. `build` fills a slot (P,) on a miss."""
        blend = self.memory.pin(key)
        lease = Lease(blend, self.memory.name, 0.0) if blend else await self._join(key, recipe, build)
        try:
            yield lease
        finally:
            self.memory.unpin(lease.blend)

    async def _join(self, key: str, recipe: str, build: Callable[[Tensor], Awaitable[None]]) -> Lease:
        """Wait for the blend that one caller fetches for all; it comes pinned once for each who waits."""
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.create_task(self._fetch(key, recipe, build))
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

    async def _fetch(self, key: str, recipe: str, build: Callable[[Tensor], Awaitable[None]]) -> Lease:
        started = time.perf_counter()
        flight = self._flights[key]
        slot = await self.memory.take()
        try:
            source = await self._fill(key, slot, build)
        except BaseException:
            self.memory.give_back(slot)
            raise
        finally:
            del self._flights[key]
        # No await since the flight left the table: all who wait are counted, and each gets a pin.
        blend = self.memory.put(key, recipe, slot, pins=flight.waiters)
        if source == BUILT:
            self.builds += 1
            self._write_later(blend)
        return Lease(blend, source, (time.perf_counter() - started) * 1e3)

    async def _fill(self, key: str, slot: Tensor, build: Callable[[Tensor], Awaitable[None]]) -> str:
        for tier in self.further:
            if await tier.get(key, slot):
                return tier.name
        await build(slot)
        return BUILT

    def _write_later(self, blend: Blend) -> None:
        if not self.further or len(self._writes) >= MAX_WRITES:
            return
        blend.pins += 1
        task = asyncio.create_task(self._write(blend))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, blend: Blend) -> None:
        try:
            for tier in self.further:
                await tier.put(blend.key, blend.recipe, blend.vector)
        finally:
            self.memory.unpin(blend)

    async def settle(self) -> None:
        """Wait until what is being written has been written."""
        if self._writes:
            await asyncio.wait(self._writes)

    async def delete(self, key: str) -> list[str]:
        """Take a blend out of every tier; gives the names of the tiers that held it."""
        flight = self._flights.get(key)
        if flight is not None:
            await asyncio.wait([flight.task])
        await self.settle()
        held = [self.memory.name] if self.memory.delete(key) else []
        for tier in self.further:
            if await tier.delete(key):
                held.append(tier.name)
        return held
