"""What stands where the ledger would, in a service without Redis: experiments answer there, and nothing is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from app.errors import RedisUnavailable
from app.experiments.events.aggregates import PhaseSums
from app.experiments.events.aggregation import UnitRecord
from app.experiments.events.event import Exposure, Outcome
from app.experiments.events.unmet_units import Admitted
from app.experiments.experiment import Experiment

WHY = "this service has no Redis, and without one experiments are not counted; set REDIS_URL"


class NullLedger:
    """Forgets exposures; raises `RedisUnavailable` for everything else."""

    def expose(self, exposure: Exposure) -> None:
        pass

    async def record(
        self, name: str, experiment: Experiment, outcomes: Sequence[Outcome], who: str | None = None
    ) -> Admitted:
        raise RedisUnavailable(WHY)

    async def unmet(self, name: str) -> dict[str, int]:
        raise RedisUnavailable(WHY)

    async def sums(self, name: str) -> list[PhaseSums]:
        raise RedisUnavailable(WHY)

    async def uncounted(self, name: str) -> dict[str, int]:
        raise RedisUnavailable(WHY)

    async def forget(self, name: str, phases: int) -> None:
        """There is nothing to forget."""

    async def erase(self, name: str, unit: str) -> bool:
        return False

    async def latches(self, name: str) -> dict[str, str]:
        raise RedisUnavailable(WHY)

    async def latch(self, name: str, said: Mapping[str, str]) -> None:
        raise RedisUnavailable(WHY)

    async def records(self, name: str) -> AsyncIterator[tuple[str, UnitRecord]]:
        raise RedisUnavailable(WHY)
        yield
