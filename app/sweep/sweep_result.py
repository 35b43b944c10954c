"""What a sweep found, as plain values: what results.json holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from app.sweep.choose_t import McNemar
from app.sweep.logits.logit_curve import Check
from app.sweep.metrics_of_t import Bin

Against = Literal["start", "end", "baseline"]


@dataclass(frozen=True)
class Value:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class About:
    """A data set as it took part. `labels` counts the texts of each label, `repeated` those that occur again."""

    name: str
    role: str
    share: float
    texts: int
    repeated: int
    labels: list[int]
    columns: dict[str, str]
    digest: str


@dataclass(frozen=True)
class Best:
    """The recommendation; `recipe` has the temperature in it, held to three digits, and is a ramp's where that is
    clearly better than the one `t`. `interval` (95 %) is where the best t lies, or, where `interval_is` says so, the
    first and last t that are not shown to be worse than another. `as_good` is the first and last t within a paired
    standard error of the best, `at_an_end` how often the best t of a resample is 0 or 1."""

    t: float
    recipe: str
    temperature: float
    interval: tuple[float, float]
    interval_is: Literal["where the best t lies", "not shown to be worse"]
    as_good: tuple[float, float]
    t_of_best_score: float
    at_an_end: float


@dataclass(frozen=True)
class Point:
    """All scores at a t, at the temperature that fits there: by data set (or all targets together), then by metric."""

    t: float
    temperature: float
    data: dict[str, dict[str, Value]]


@dataclass(frozen=True)
class Compared:
    """The objective at a t (less is better), its difference from the best t's on the same texts, and whether the guards
    allow this t."""

    t: float
    value: float
    difference: Value
    allowed: bool


@dataclass(frozen=True)
class MeasuredBlend:
    """Scores of a blend that was really run, and its reliability with and without its temperature."""

    t: float
    recipe: str
    temperature: float
    data: dict[str, dict[str, Value]]
    reliability: list[Bin]
    reliability_raw: list[Bin]


@dataclass(frozen=True)
class More:
    """A t that a guard could allow, and with about how many texts it would, if they lose what these lose."""

    t: float
    texts: int


@dataclass(frozen=True)
class GuardResult:
    """A guard at the chosen t: its metric there and at t = 0, and the change for the worse, which is at most `upper`
    with the guard's `confidence`. `holds` is in which share of the resamples the change stays within the margin.

    `up_to` is the last t that `texts` texts promise; `more` is the best-scoring t that loses at most half the margin on
    them, where they are too few to promise that.
    """

    name: str
    metric: str
    margin: float
    confidence: float
    texts: int
    at_start: float
    at_chosen: float
    worse_by: Value
    upper: float
    holds: float
    up_to: float
    more: More | None


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of the whole procedure on texts that had no say in it. `optimism` is how much better the chosen t looks on
    the texts that chose it, in the objective."""

    scores: dict[str, float]
    optimism: float
    folds: int
    repeats: int
    by_time: bool


@dataclass(frozen=True)
class Penalty:
    """lambda, |tau|^2, and their product: what t = 1 costs."""

    weight: float
    squared_length: float
    at_the_end: float
    by_folds: bool


@dataclass(frozen=True)
class Steadiness:
    """At a t: the share of labels that flip, and the accuracy, on what perturbed texts became."""

    t: float
    flips: Value
    accuracy: Value


@dataclass(frozen=True)
class Direction:
    """How the line was found when several variants were asked for: the best t of each, from so many blends."""

    t: dict[str, Value]
    blends: int
    way: str


@dataclass(frozen=True)
class RampPoint:
    """The objective (less is better) where t is `first` in the first layer and `last` in the last, and whether the
    guards allow that."""

    first: float
    last: float
    value: float
    allowed: bool


@dataclass(frozen=True)
class Ramp:
    """The best t's in the first and in the last layer, of so many ramps that were run.

    `gained` is by how much the objective is better than at the one chosen t on the same texts, `error` the paired
    standard error of that, and `held_out` the same difference where t's and temperatures had to be chosen without the
    texts that judge them. `missed` tells how far the surface was off at the points that it proposed (mean of a logit).
    A ramp that is `better` is the recommended recipe. `surface` is what the fitted surface says of all t's that were
    looked at, `run` what true passes say, of those along the line too.
    """

    first: Value
    last: Value
    recipe: str
    temperature: float
    gained: Value
    error: float
    held_out: float
    missed: float
    blends: int
    better: bool
    surface: list[RampPoint]
    run: list[RampPoint]


@dataclass
class SweepResult:
    """All that a sweep found. `passes` counts the blends that it needed, `passes_run` those that were not stored.

    `gains` are of log loss and accuracy on held-out texts, more is better: of the whole procedure against the `start`
    and the `end` of the line, and against the label frequencies alone (`baseline`), whose own scores are there by data
    set. `groups` counts the independent ones among the targets' texts.
    """

    line: str
    start_name: str
    end_name: str
    labels: list[str]
    objective: str
    rule: str
    data: list[About]
    best: Best
    start: MeasuredBlend
    chosen: MeasuredBlend
    end: MeasuredBlend
    against_start: McNemar
    against_end: McNemar
    honest: HeldOutScores
    gains: dict[Against, dict[str, Value]]
    baseline: dict[str, dict[str, Value]]
    groups: int
    guards: list[GuardResult]
    penalty: Penalty
    first_guess: float
    curve: list[Point]
    compared: list[Compared]
    way: str
    checks: list[Check]
    passes: int
    passes_run: int
    seed: int
    sentence: str = ""
    warnings: list[str] = field(default_factory=list)
    robustness: dict[str, list[Steadiness]] = field(default_factory=dict)
    direction: Direction | None = None
    ramp: Ramp | None = None
    ramp_asked: bool = False
