"""What a sweep is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import BadData
from app.sweep.choose_t import Rule
from app.sweep.data.cv_splits import FOLDS, REPEATS
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import DRAWS, WeightedPool
from app.sweep.logits.line import Line
from app.sweep.metrics_of_t import METRICS, ScoreMetric

TOGETHER = "all targets"
CONFIDENCE = 0.9
"""That a guard keeps its margin, unless asked otherwise."""
MOST_CONFIDENCE = 0.999
"""Beyond it the tail of a bootstrap says nothing."""


def check_confidence(place: str, confidence: float) -> None:
    """Raises `BadData` for one that no upper bound has."""
    if not 0.5 <= confidence <= MOST_CONFIDENCE:
        raise BadData(f"{place}: a confidence is a number from 0.5 to {MOST_CONFIDENCE:g}, such as {CONFIDENCE:g}")


@dataclass(frozen=True)
class Guard:
    """A data set that must not get worse than at t = 0 by more than `margin`, in the metric's unit; 0.01 is a point.

    A t is allowed where that is so with this `confidence` on texts like these, and not on these alone.
    """

    dataset: Dataset
    metric: str
    margin: float
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class SweepSpec:
    """Which t of the line serves the targets best?

    `shares` are the targets' weights, `squared_length` is |tau|^2, `penalty` is lambda, or `folds` to let them choose
    it, and `cost` (C, C) is what answering the column costs where the row is true. With a `grid`, its t's (and both
    ends and the middle) are run, and nothing between them is considered. With `ramp`, t's that run over the layers are
    considered too. Raises `BadData` for an objective that these data lack, and for what does not go together.
    """

    line: Line
    targets: Sequence[Dataset]
    shares: Sequence[float]
    squared_length: float
    guards: Sequence[Guard] = ()
    objective: str = "loss"
    rule: Rule = "best"
    penalty: float | Literal["folds"] = 0.0
    cost: NDArray[np.float64] | None = None
    grid: Sequence[float] = ()
    ramp: bool = False
    draws: int = DRAWS
    folds: int = FOLDS
    repeats: int = REPEATS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective == "cost" and self.cost is None:
            raise BadData("the objective cost needs a cost matrix")
        if self.objective == "worst_group" and self.pool.groups is None:
            raise BadData("the objective worst_group needs a column of segments or groups, or several data sets")
        if self.ramp and (len(self.grid) or self.penalty or self.rule != "best"):
            raise BadData("a ramp is held against the t of the best score; leave grid, lambda and the rule nearest out")

    @property
    def datasets(self) -> list[Dataset]:
        """Targets, then guards."""
        return [*self.targets, *(guard.dataset for guard in self.guards)]

    @property
    def pool(self) -> WeightedPool:
        """All targets together."""
        return WeightedPool.of(self.targets, self.shares)

    @property
    def views(self) -> dict[str, tuple[tuple[int, ...], WeightedPool]]:
        """What is scored, by name: every data set alone, and all targets together where there are several.

        Each with the positions of its data sets among `datasets`.
        """
        alone: dict[str, tuple[tuple[int, ...], WeightedPool]] = {
            d.name: ((position,), WeightedPool.of([d])) for position, d in enumerate(self.datasets)
        }
        if len(self.targets) == 1:
            return alone
        return {**alone, TOGETHER: (tuple(range(len(self.targets))), self.pool)}

    @property
    def metric(self) -> ScoreMetric:
        return METRICS[self.objective]
