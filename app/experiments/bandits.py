"""Bandits at work: once a period, the shares of each are worked out anew from what has been counted.

When that was done last lies in the record, so whatever pod looks at it can do it next, in one compare-and-set. One
does, the one that holds a lease of a few seconds; when it dies, another does it. While Redis is away, or the ledger
cannot be read, shares stay as they are, and a period that has passed is made up for once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from app.cache.document_store import DocumentStore
from app.errors import ExperimentConflict
from app.experiments.bandit import next_shares
from app.experiments.dose import doses_of
from app.experiments.driving import drive
from app.experiments.record import Record
from app.experiments.running import Experiments
from app.experiments.sums import PhaseSums

ACTOR = "bandit"

Sums = Callable[[str], Awaitable[Sequence[PhaseSums]]]
"""What units did, by the experiment's name; raises `RedisAway` where nobody can tell."""


class Bandits:
    """Has shares follow outcomes."""

    def __init__(
        self,
        experiments: Experiments,
        store: DocumentStore | None,
        sums: Sums,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970."""
        self.clock = clock
        self.sums = sums
        self._experiments = experiments
        self._store = store

    async def run(self) -> None:
        """Work out the shares that are due, until cancelled."""
        await drive(self._experiments, self._store, lambda record: record.is_due(self.clock()), self._work_out)

    async def _work_out(self, record: Record) -> None:
        doses = doses_of(self._experiments.recipes(record.name))
        sums, now = await self.sums(record.name), self.clock()
        # Draws take some milliseconds of numpy, which requests should not wait for.
        shares = await asyncio.to_thread(next_shares, record.experiment, sums, now, doses)

        def with_shares(current: Record) -> Record:
            if current.version != record.version:
                raise ExperimentConflict(f"experiment {record.name!r} was changed meanwhile")
            return current.reckoned(shares, now, ACTOR)

        await self._experiments.roll(record.name, with_shares)
