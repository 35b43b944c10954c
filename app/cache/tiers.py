"""Where finished blends wait: the Tier protocol, and the Ladder that walks the tiers.

Memory first, then the tiers further away, then the build. However many callers ask for one cold blend,
one of them fetches or builds it and the others wait for the same result; a tier that other pods share may have him
wait for theirs. Writing to a further tier happens after the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from app.cache.memory_tier import Blend, MemoryTier
from app.cache.write_behind import WriteBehind
from app.cluster.circuit_breaker import CircuitBreaker

BUILT = "built"
RENEW_SECONDS = 30.0


@dataclass(frozen=True)
class Stored:
    """A blend as a further tier holds it. `created` is in seconds since the epoch, `ttl` in seconds."""

    key: str
    recipe: str
    bytes: int
    created: float
    ttl: float | None


class Tier(Protocol):
    """A place further away than this process's memory. None of its methods raises: an outage is a miss.

    `kind` says what a build is like (its method, how many members): builds of one kind cost about the same.
    """

    name: str

    async def get(self, key: str, kind: str, out: Tensor) -> bool:
        """Fill a slot (P,) with the blend, if that is the better way to get it.

        False leaves the build to the caller (`out` is then undefined), and others may wait for it: what was built
        is to be `put` here or, if it is not, `let_go`.
        """

    def built(self, kind: str, seconds: float) -> None:
        """Learn what a build took."""

    def wants(self, kind: str) -> bool:
        """Whether a blend of that kind should be put here."""

    async def put(self, key: str, recipe: str, vector: Tensor, called_off: Callable[[], bool]) -> float | None:
        """Store a blend, if it can be done; gives the seconds that it took. Stops soon after `called_off` (which is
        called on another thread) says so."""

    async def let_go(self, key: str) -> None:
        """Nobody needs to wait any longer for the build that `get` left to the caller."""

    async def renew(self, key: str) -> None:
        """Have a blend that lies here stay as long as one that is put here now."""

    async def delete(self, key: str) -> bool:
        """Remove a blend; False if it was not there."""

    async def find(self, key: str) -> Stored | None:
        """What is known of a blend without reading it."""

    async def stored(self) -> list[Stored]:
        """All blends here that belong to this bank."""

    async def is_well(self) -> bool:
        """Whether the tier answers now."""

    def counters(self) -> dict[str, int]:
        """What happened here since the process started."""

    def costs(self) -> list[tuple[str, str, float]]:
        """What each way costs: `build`, `fetch` or `write`, the kind of build (else empty), and seconds."""

    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """By name, what leaves this tier alone while it does not answer."""


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

    def __init__(self, memory: MemoryTier, further: Sequence[Tier] = ()) -> None:
        self.memory = memory
        self.further = list(further)
        self.writer = WriteBehind(memory)
        self.builds = 0
        self._flights: dict[str, _Flight] = {}
        self._chores: set[asyncio.Task[None]] = set()

    def holds(self, key: str) -> bool:
        """Whether the blend is in memory, or on its way there."""
        return self.memory.peek(key) is not None or key in self._flights

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
            self._let_go(key, self.further)
            raise
        finally:
            del self._flights[key]
        # No await since the flight left the table: all who wait are counted, and each gets a pin.
        costs = {"build" if source == BUILT else "fetch": seconds * 1e3}
        blend = self.memory.put(key, recipe, slot, pins=flight.waiters, costs=costs)
        if source == BUILT:
            self.builds += 1
            self.built(kind, seconds)
            writing = [tier for tier in self.further if tier.wants(kind) and self.writer.add(blend, tier)]
            self._let_go(key, [tier for tier in self.further if tier not in writing])
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

    def _let_go(self, key: str, tiers: Sequence[Tier]) -> None:
        for tier in tiers:
            chore = asyncio.create_task(tier.let_go(key))
            self._chores.add(chore)
            chore.add_done_callback(self._chores.discard)

    async def publish(self, key: str, recipe: str, vector: Tensor) -> None:
        """Put a blend, which the caller keeps as it is meanwhile, into every further tier, wanted there or not."""
        await self.writer.forget(key)
        for tier in self.further:
            seconds = await tier.put(key, recipe, vector, lambda: False)
            blend = self.memory.peek(key)
            if seconds is not None and blend is not None:
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
        if self._chores:
            await asyncio.wait(self._chores)

    async def close(self) -> None:
        """End what goes on after the answers."""
        await self.writer.close()
        await self.settle()

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
