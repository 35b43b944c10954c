"""Bandits at work: once a period, the shares of each are worked out anew from what has been counted.

When that was done last lies in the record, so whatever pod looks at it can do it next, in one compare-and-set. One
does, the one that holds a lease of a few seconds; when it dies, another does it. While Redis is away, or the ledger
cannot be read, shares stay as they are, and a period that has passed is made up for once.

Guardrails do not wait for a period: they are looked at every second, and an arm that fails one gets no new units from
then on, until people draw everybody anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from app.cluster.document_store import DocumentStore
from app.cluster.leader_loop import run_as_leader
from app.errors import ExperimentConflict, RedisUnavailable, UnknownExperiment
from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment_registry import ExperimentRegistry
from app.experiments.record import Record
from app.experiments.stats.dose_response import doses_of
from app.experiments.stats.report_builder import failing_arms
from app.experiments.stats.thompson import next_shares

log = logging.getLogger(__name__)

ACTOR = "bandit"

Sums = Callable[[str], Awaitable[Sequence[PhaseSums]]]
"""What units did, by the experiment's name; raises `RedisUnavailable` where nobody can tell."""


class BanditLoop:
    """Has shares follow outcomes."""

    def __init__(
        self,
        experiments: ExperimentRegistry,
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
        """Look at guardrails and work out the shares that are due, until cancelled."""
        expected = (RedisUnavailable, ExperimentConflict, UnknownExperiment)
        await run_as_leader(self._due, self._store, self._look_after, expected)

    def _due(self) -> list[Record]:
        return [one for one in self._experiments.all() if one.is_guarded or one.is_due(self.clock())]

    async def _look_after(self, record: Record) -> None:
        sums = [phase for phase in await self.sums(record.name) if phase.phase >= record.judged_from]
        # Intervals and draws take some milliseconds of numpy, which requests should not wait for.
        failing = await asyncio.to_thread(failing_arms, record.experiment, sums) if record.is_guarded else {}
        new = {arm: why for arm, why in failing.items() if arm not in record.left_out}
        if new:
            log.warning("%s gives no more units to %s: %s", record.name, ", ".join(new), " ".join(new.values()))
            await self._change(record, lambda current: current.without(new, ACTOR))
        elif record.is_due(self.clock()):
            await self._work_out(record, sums)

    async def _work_out(self, record: Record, sums: Sequence[PhaseSums]) -> None:
        doses, now = doses_of(self._experiments.recipes(record.name)), self.clock()
        shares = await asyncio.to_thread(
            next_shares, record.experiment, sums, now, doses, left_out=frozenset(record.left_out)
        )
        await self._change(record, lambda current: current.reckoned(shares, now, ACTOR))

    async def _change(self, record: Record, change: Callable[[Record], Record]) -> None:
        def changed(current: Record) -> Record:
            if current.version != record.version:
                raise ExperimentConflict(f"experiment {record.name!r} was changed meanwhile")
            return change(current)

        await self._experiments.roll(record.name, changed)
