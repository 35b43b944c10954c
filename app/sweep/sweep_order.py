"""A sweep as it is ordered: plain values, which go through HTTP, Redis and pipes before they become a `SweepSpec`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from app.errors import BadData
from app.sweep.choose_t import Rule
from app.sweep.data.cv_splits import FOLDS
from app.sweep.data.dataset import Columns, Dataset, check_labels, dataset_of
from app.sweep.data.file_readers import Rows, csv_rows
from app.sweep.logits.line import Line
from app.sweep.metrics_of_t import CURVE_METRICS, METRICS
from app.sweep.sweep_spec import CONFIDENCE, Guard, SweepSpec, check_confidence
from app.weights.recipe import Cookbook

MOST_COLUMNS = 64
"""Of a CSV file that is sent."""


@dataclass(frozen=True)
class BankFacts:
    """What a sweep must know of a bank: inner products of the deltas are (V, V)."""

    labels: list[str]
    variants: list[str]
    products: list[list[float]]
    problem_type: str = "single_label_classification"


@dataclass(frozen=True)
class GivenData:
    """A data set as it was sent: rows, or a CSV file. A target counts by its weight; a guard must not get worse by more
    than its margin, with this confidence."""

    name: str
    content: list[dict[str, Any]] | str
    role: Literal["target", "guard"] = "target"
    weight: float = 1.0
    margin: float = 0.0
    metric: str = "accuracy"
    confidence: float = CONFIDENCE

    @property
    def rows(self) -> Rows:
        """Raises `BadData` where it reads what is no CSV."""
        if isinstance(self.content, str):
            file = io.StringIO(self.content.removeprefix("\ufeff"), newline="")
            return csv_rows(self.name, file, MOST_COLUMNS)
        return ((f"row {number}", row) for number, row in enumerate(self.content, start=1))


@dataclass(frozen=True)
class SweepOrder:
    """What is asked. Of several variants the best mix is looked for first; a line goes where it says."""

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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SweepOrder:
        """From what `values` gave."""
        return cls(**{**values, "data": [GivenData(**given) for given in values["data"]]})

    @property
    def values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def question_of(order: SweepOrder, facts: BankFacts, most_texts: int | None = None) -> SweepSpec:
    """The question that is ordered, on the bank of these facts.

    Raises `BadData`, `BadRecipe` or `UnknownVariant` with a sentence for whoever ordered it.
    """
    check_labels(facts.problem_type)
    cookbook = Cookbook(facts.variants)
    line = _line(order, cookbook)
    named = order.columns.get
    columns = Columns(named("text"), named("label"), named("group"), named("segment"), named("time"))
    sets = {given.name: _dataset(given, facts.labels, columns, most_texts) for given in order.data}
    if len(sets) < len(order.data):
        raise BadData("two data sets have one name; name them apart")
    texts = sum(map(len, sets.values()))
    if most_texts is not None and texts > most_texts:
        raise BadData(f"{texts} texts in all; a sweep takes at most {most_texts} here")
    targets = [given for given in order.data if given.role == "target"]
    if not targets:
        raise BadData("no data set is a target; there is nothing to choose t for")
    if order.objective not in METRICS:
        raise BadData(f"no objective {order.objective!r}; objectives: {', '.join(METRICS)}")
    return SweepSpec(
        line=line,
        targets=[sets[given.name] for given in targets],
        shares=[given.weight for given in targets],
        squared_length=line.squared_length(np.array(facts.products)),
        guards=[_guard(given, sets[given.name]) for given in order.data if given.role == "guard"],
        objective=order.objective,
        rule=order.rule,
        penalty=order.penalty,
        cost=_cost(order.cost, facts.labels),
        grid=order.grid,
        ramp=order.ramp,
        folds=order.folds,
        seed=order.seed,
    )


def _line(order: SweepOrder, cookbook: Cookbook) -> Line:
    """Where to move: along the line, else to the (first) variant, else to the only one there is."""
    for name in order.variants:
        cookbook.read(name)
    ways = [order.line] if order.line else order.variants or cookbook.variants
    if not ways or (len(ways) > 1 and not order.variants):
        loaded = ", ".join(cookbook.variants) or "none"
        raise BadData(f"which way? name a variant, or a line; loaded: {loaded}")
    return Line.read(ways[0], cookbook)


def _dataset(given: GivenData, labels: Sequence[str], columns: Columns, most_texts: int | None) -> Dataset:
    return dataset_of(given.name, _at_most(given, most_texts), labels, columns)


def _at_most(given: GivenData, most: int | None) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, row in enumerate(given.rows):
        if number == most:
            raise BadData(f"{given.name}: more than {most} texts; a sweep takes at most so many here")
        yield row


def _guard(given: GivenData, dataset: Dataset) -> Guard:
    if given.metric not in CURVE_METRICS:
        raise BadData(f"{given.name}: no metric {given.metric!r}; metrics: {', '.join(CURVE_METRICS)}")
    check_confidence(given.name, given.confidence)
    return Guard(dataset, given.metric, given.margin, given.confidence)


def _cost(rows: list[list[float]] | None, labels: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if rows is None:
        return None
    if len(rows) != len(labels) or any(len(row) != len(labels) for row in rows) or not np.isfinite(rows).all():
        raise BadData(f"cost has {len(labels)} rows of {len(labels)} numbers, a row for each true label")
    return np.array(rows, dtype=np.float64)
