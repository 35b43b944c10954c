"""What the ledger says for or against bringing an arm behind an alias."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment_registry import ExperimentRegistry
from app.experiments.record import Record
from app.experiments.rollout import Evidence
from app.experiments.stats import report_builder


class Counted(Protocol):
    """What units did, and what reports go on saying; raises `RedisUnavailable` where nobody can tell."""

    async def sums(self, name: str) -> Sequence[PhaseSums]: ...

    async def latches(self, name: str) -> Mapping[str, str]: ...


class LedgerJudge:
    """Judges rollouts and promotions by what units did."""

    def __init__(self, experiments: ExperimentRegistry, ledger: Counted) -> None:
        self._experiments = experiments
        self._ledger = ledger

    async def evidence(self, name: str) -> Evidence:
        """On a rollout, by its name; raises `RedisUnavailable` and `UnknownExperiment`."""
        record = self._experiments.get(name)
        # Intervals take some milliseconds of numpy, which requests should not wait for.
        return await asyncio.to_thread(report_builder.rollout_evidence, record.experiment, await self._judged(record))

    async def objections(self, name: str, arm: str) -> list[str]:
        """What the report says against an arm, in sentences; raises as `evidence` does. Without a Redis nothing is
        counted, so nothing speaks against any arm."""
        if not self._experiments.shared:
            return []
        record = self._experiments.get(name)
        sums, latched = await self._judged(record), await self._ledger.latches(name)
        found, _ = await asyncio.to_thread(
            report_builder.judge, record.experiment, sums, time.time(), None, None, record.amendments, latched
        )
        against = report_builder.objections(found, arm)
        return against or [why for one, why in record.left_out.items() if one == arm]

    async def _judged(self, record: Record) -> list[PhaseSums]:
        return [phase for phase in await self._ledger.sums(record.name) if phase.phase >= record.judged_from]
