"""A sweep as it is ordered, in plain values, and the spec that is made of it: the texts read, the line found.

A command line, an HTTP body and a worker's message become the same `SweepOrder`; `spec_from` makes it a `SweepSpec`,
which `run.py` answers.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import BadData
from app.sweep.choose_t import Rule
from app.sweep.data.cv_splits import FOLDS, REPEATS
from app.sweep.data.dataset import Columns, Dataset, check_labels, dataset_of, kept_rows
from app.sweep.data.file_readers import Rows, csv_rows, read_rows
from app.sweep.data.weighted_pool import DRAWS, WeightedPool
from app.sweep.logits.line import Line
from app.sweep.metrics_of_t import CURVE_METRICS, METRICS, ScoreMetric
from app.weights.recipe import Cookbook

TOGETHER = "all targets"
CONFIDENCE = 0.9
"""That a guard keeps its margin, unless asked otherwise."""
MOST_CONFIDENCE = 0.999
"""Beyond it the tail of a bootstrap says nothing."""
MOST_COLUMNS = 64
"""Of a CSV file that is sent."""


@dataclass(frozen=True)
class BankFacts:
    """The bank as a sweep needs it: inner products of the deltas are (V, V)."""

    labels: list[str]
    variants: list[str]
    products: list[list[float]]
    problem_type: str = "single_label_classification"


@dataclass(frozen=True)
class GivenData:
    """A data set as it was given: rows, the text of a CSV file, or a file here. A target counts by its weight; a guard
    must not get worse by more than its margin, with this confidence."""

    name: str
    content: list[dict[str, Any]] | str | Path
    role: Literal["target", "guard"] = "target"
    weight: float = 1.0
    margin: float = 0.0
    metric: str = "accuracy"
    confidence: float = CONFIDENCE

    @property
    def rows(self) -> Rows:
        """Raises `BadData` for a file that cannot be read, or what is no CSV."""
        if isinstance(self.content, Path):
            return read_rows(self.content)
        if isinstance(self.content, str):
            file = io.StringIO(self.content.removeprefix("\ufeff"), newline="")
            return csv_rows(self.name, file, MOST_COLUMNS)
        return ((f"row {number}", row) for number, row in enumerate(self.content, start=1))


@dataclass(frozen=True)
class SweepOrder:
    """What is asked. Of several variants the best mix is looked for first; a line goes where it says.

    `columns` names columns by role, and `where` keeps the rows with a value in a column.
    """

    data: list[GivenData]
    variants: list[str] = field(default_factory=list)
    line: str | None = None
    objective: str = "loss"
    rule: Rule = "best"
    penalty: float | Literal["folds"] = 0.0
    cost: list[list[float]] | None = None
    grid: list[float] = field(default_factory=list)
    ramp: bool = False
    folds: int = FOLDS
    robustness: bool = False
    seed: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    where: tuple[str, str] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SweepOrder:
        """From what `values` gave."""
        return cls(**{**values, "data": [GivenData(**given) for given in values["data"]]})

    @property
    def values(self) -> dict[str, Any]:
        """For JSON, once the data are read."""
        return asdict(self)


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
    considered too. Of several `mixed` variants the best mix is looked for first, and the line then goes there. Raises
    `BadData` for an objective that these data lack, and for what does not go together.
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
    mixed: Sequence[str] = ()
    robustness: bool = False

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


def spec_from(order: SweepOrder, bank: BankFacts, most_texts: int | None = None) -> SweepSpec:
    """The spec of an order, on the bank of these facts. Raises `BadData`, `BadRecipe` or `UnknownVariant`."""
    check_labels(bank.problem_type)
    variants = list(dict.fromkeys(order.variants))
    line = line_from(order.line, variants, Cookbook(bank.variants))
    targets, guards = ([given for given in order.data if given.role == role] for role in ("target", "guard"))
    for given in guards:
        _check_guard(given)
    several = {name for name, count in Counter(given.name for given in order.data).items() if count > 1}
    if several:
        raise BadData(f"two data sets have one name: {', '.join(sorted(several))}; name them apart")
    sets = {given.name: _dataset(given, order, bank.labels, most_texts) for given in order.data}
    texts = sum(map(len, sets.values()))
    if most_texts is not None and texts > most_texts:
        raise BadData(f"{texts} texts in all; a sweep takes at most {most_texts} here")
    if not targets:
        raise BadData("no data set is a target; there is nothing to choose t for")
    if order.objective not in METRICS:
        raise BadData(f"no objective {order.objective!r}; objectives: {', '.join(METRICS)}")
    return SweepSpec(
        line=line,
        targets=[sets[given.name] for given in targets],
        shares=[given.weight for given in targets],
        squared_length=line.squared_length(np.array(bank.products)),
        guards=[Guard(sets[given.name], given.metric, given.margin, given.confidence) for given in guards],
        objective=order.objective,
        rule=order.rule,
        penalty=order.penalty,
        cost=_cost(order.cost, len(bank.labels)),
        grid=order.grid,
        ramp=order.ramp,
        folds=order.folds,
        seed=order.seed,
        mixed=[] if order.line or len(variants) == 1 else variants,
        robustness=order.robustness,
    )


def line_from(line: str | None, variants: Sequence[str], cookbook: Cookbook) -> Line:
    """Where to move: along the line, else to the (first) variant, else to the only one there is."""
    for name in variants:
        cookbook.read(name)
    ways = [line] if line else variants or cookbook.variants
    if not ways or (len(ways) > 1 and not variants):
        loaded = ", ".join(cookbook.variants) or "none"
        raise BadData(f"which way? name a variant, or a line; loaded: {loaded}")
    return Line.read(ways[0], cookbook)


def _dataset(given: GivenData, order: SweepOrder, labels: Sequence[str], most_texts: int | None) -> Dataset:
    rows = _at_most(most_texts, given.name, kept_rows(given.name, given.rows, order.where))
    named = order.columns.get
    columns = Columns(named("text"), named("label"), named("group"), named("segment"), named("time"))
    return dataset_of(given.name, rows, labels, columns)


def _at_most(most: int | None, name: str, rows: Rows) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, row in enumerate(rows):
        if number == most:
            raise BadData(f"{name}: more than {most} texts; a sweep takes at most so many here")
        yield row


def _check_guard(given: GivenData) -> None:
    if given.metric not in CURVE_METRICS:
        raise BadData(f"{given.name}: no metric {given.metric!r}; metrics: {', '.join(CURVE_METRICS)}")
    if not 0.5 <= given.confidence <= MOST_CONFIDENCE:
        raise BadData(f"{given.name}: a confidence is a number from 0.5 to {MOST_CONFIDENCE:g}, such as {CONFIDENCE:g}")


def _cost(rows: list[list[float]] | None, classes: int) -> NDArray[np.float64] | None:
    if rows is None:
        return None
    if len(rows) != classes or any(len(row) != classes for row in rows) or not np.isfinite(rows).all():
        raise BadData(f"cost has {classes} rows of {classes} numbers, a row for each true label")
    return np.array(rows, dtype=np.float64)
