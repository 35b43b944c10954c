"""What a ledger must know of experiments, from those that this pod follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.errors import UnknownExperiment
from app.experiments.experiment import Experiment
from app.experiments.running import Experiments


class Followed:
    """Definitions of the experiments that units may have met."""

    def __init__(self, experiments: Experiments) -> None:
        self._experiments = experiments

    def names(self) -> Iterable[str]:
        """Those that have begun; stopped ones too, as outcomes come late."""
        return [record.name for record in self._experiments.all() if record.has_begun]

    def definition(self, name: str) -> Experiment | None:
        try:
            return self._experiments.get(name).experiment
        except UnknownExperiment:
            return None

    def shares(self, name: str) -> Mapping[int, Mapping[str, float]]:
        """By phase and arm; of an experiment that exists."""
        return {phase.number: phase.shares for phase in self._experiments.get(name).phases}
