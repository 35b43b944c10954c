"""What a ledger must know of experiments, from those that this pod follows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

from app.errors import UnknownExperiment
from app.experiments.experiment import DAY, Experiment
from app.experiments.experiment_registry import ExperimentRegistry

LATE_SECONDS = 8 * DAY
"""No event is sent so long after it was taken."""


class KnownExperiments:
    """Definitions of the experiments that units may have met."""

    def __init__(self, experiments: ExperimentRegistry, records_seconds: float) -> None:
        """Units' records are kept for so long after an experiment has stopped and its last window has closed."""
        self._experiments = experiments
        self._records_seconds = records_seconds

    def names(self) -> Iterable[str]:
        """Those that have begun; stopped ones too, as outcomes come late, and archived ones until none can come."""
        late = time.time() - LATE_SECONDS
        return [one.name for one in self._experiments.all() if one.has_begun and (one.archived or math.inf) > late]

    def deleted_at(self, name: str) -> float:
        """When one of this name was deleted last, seconds since 1970; 0: never."""
        return self._experiments.deleted_at(name)

    def deleted(self) -> Iterable[tuple[str, int]]:
        """Name and last phase of those that were deleted lately."""
        return [(record.name, record.phase) for record in self._experiments.deleted()]

    def expired(self) -> Iterable[tuple[str, int]]:
        """Name and last phase of those whose units are to be forgotten."""
        now = time.time() - self._records_seconds
        return [
            (record.name, record.phase)
            for record in self._experiments.all()
            if record.ended_at is not None and record.ended_at + record.experiment.window < now
        ]

    def phase(self, name: str) -> int:
        """The number of the present one; raises `UnknownExperiment`."""
        return self._experiments.get(name).phase

    def definition(self, name: str) -> Experiment | None:
        try:
            return self._experiments.get(name).experiment
        except UnknownExperiment:
            return None

    def shares(self, name: str) -> Mapping[int, Mapping[str, float]]:
        """By phase and arm; of an experiment that exists."""
        return {phase.number: phase.shares for phase in self._experiments.get(name).phases}
