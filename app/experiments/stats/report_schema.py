"""What a report on an experiment holds: figures, intervals, verdicts and warnings, as they go over the wire.

Effects are in the metric's own unit (a share of 0.02 is 2 points) and always arm minus control, whichever way is
better.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Test = Literal["group-sequential", "confidence sequence"]
Verdict = Literal["better", "worse", "harmless", "undecided", "too few units", "too few outcomes"]


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Interval(_Figures):
    """Both ends of an interval."""

    low: float
    high: float


class ArmFigures(_Figures):
    arm: str
    recipe: str = Field(description="what it blends, in canonical text")
    share: float = Field(description="as configured now")
    shadow: bool
    units: int
    mature: int = Field(description="units whose window has closed; what others did may still grow")
    exposures: int
    agreement: float | None = Field(description="shadow arm: part of exposures with the label that was shown")


class ArmValue(_Figures):
    arm: str
    units: int
    mean: float | None = Field(description="over units, phases weighted as in the lift; of a ratio metric, sum / sum")
    variance: float | None = Field(description="of one unit's value; of a ratio metric, of its linearized value")


class FixedLook(_Figures):
    """The textbook test beside it: right for one look at a planned end, wrong when it is looked at again and again."""

    label: Literal["fixed horizon: valid for a single look"] = "fixed horizon: valid for a single look"
    interval: Interval
    p: float


class Crossing(_Figures):
    """The first look that told an arm from control. What a sequential test has shown once stays shown."""

    at: float = Field(description="seconds since 1970")
    verdict: Verdict
    lift: float
    interval: Interval
    test: Test


class Comparison(_Figures):
    """One arm against control. Interval and verdict stay valid as the report is looked at daily, a group-sequential
    test's up to the planned end."""

    arm: str
    verdict: Verdict
    lift: float = Field(description="arm minus control")
    interval: Interval
    relative: float | None = Field(description="lift over control's mean")
    relative_interval: Interval | None = Field(description="by Fieller; null where control's mean may be 0")
    test: Test
    confidence: float = Field(description="0.95, more where several arms share the error of the deciding metric")
    critical: float = Field(description="standard errors that the interval reaches")
    p: float | None = Field(description="always-valid, of the confidence sequence; null for the group-sequential test")
    p_holm: float | None = Field(None, description="secondary metrics: over all of these and all arms; decides there")
    fixed: FixedLook
    crossed: Crossing | None = Field(default=None, description="the look that decided, whose verdict this keeps")
    latched: bool = Field(
        default=False, description="the verdict is that of `crossed`, which today's interval no longer gives"
    )


class PhaseLift(_Figures):
    """One arm against control within one phase; fixed-horizon interval."""

    phase: int
    arm: str
    mean: float
    control: float = Field(description="mean of control in this phase")
    lift: float
    interval: Interval


class DoseReport(_Figures):
    """A quadratic over t through all arms, fixed horizon."""

    best: float
    interval: Interval
    shape: Literal["top inside", "best at an end", "flat", "flat from", "flat up to"] = Field(
        description="flat from, flat up to: a plateau, and `best` is where it begins or ends"
    )
    linear: float
    quadratic: float
    flat_p: float = Field(description="of no dependence on t at all")
    misfit_p: float | None = Field(description="of the quadratic being right; null where it goes through every arm")
    sentence: str


class MetricReport(_Figures):
    metric: str
    role: Literal["primary", "secondary", "guardrail"]
    better: Literal["higher", "lower"]
    unit: Literal["share", "amount"] = Field(description="a share is spoken of in percent and points")
    per: str | None = Field(None, description="a ratio metric: the count metric that it is divided by")
    decides: bool
    margin: float = Field(description="guardrail: how much worse is tolerated")
    arms: list[ArmValue]
    comparisons: list[Comparison]
    phases: list[PhaseLift] = Field(description="each phase apart, where there are several")
    variance_removed: float | None = Field(
        description="part of the variance that the covariate explains; null: none used"
    )
    dose: DoseReport | None
    ended: float | None = Field(
        default=None,
        description="the plan was complete at this look, and all figures of this metric are what they were then",
    )
    windows_open: int = Field(
        default=0, description="units whose window was open at that look; once closed, it is taken again"
    )
    sentence: str


class Amended(_Figures):
    """A change of the plan, or of what decides, while it ran."""

    at: float = Field(description="seconds since 1970")
    by: str | None
    what: str


class SampleRatio(_Figures):
    """Have the arms the units that their shares promise?"""

    chi_square_p: float = Field(description="valid for a single look")
    p: float = Field(description="of an e-process; valid at every look")
    alarm: bool = Field(description="p below 0.01: trust nothing else here until the cause is found")


class Outlook(_Figures):
    """How far the plan has come, and what it can find."""

    planned_units: int | None
    units: int
    fraction: float | None = Field(description="part of the planned units")
    looks: int | None = Field(description="looks that the bounds have paid for, one a day")
    units_per_day: float
    days_to_go: int | None
    detectable: float | None = Field(description="absolute effect that the planned units find with a power of 80 %")


class BanditArm(_Figures):
    arm: str
    estimate: float | None = Field(description="mean weighted by 1 / propensity")
    interval: Interval | None = Field(description="95 %, by a normal; of no use for a test")
    probability_best: float | None = Field(description="null during warm-up")
    expected_loss: float | None
    next_share: float
    left_out: bool = Field(False, description="a guardrail failed, so it gets no new units")


class UnmetOutcomes(_Figures):
    """Outcomes of units that the experiment has not met, on all pods."""

    waiting: int = Field(description="kept until their unit is met, or given up after the window, three days at most")
    untaken: dict[str, int] = Field(
        description="refused since the experiment began: `outside`, by the hash of their unit; `beyond` what is kept"
    )


class Report(_Figures):
    """What an experiment says now."""

    sentence: str
    trustworthy: bool = Field(description="false: the sample ratio is off, so nothing else is to be believed")
    at: float = Field(description="seconds since 1970")
    mode: Literal["test", "bandit"]
    control: str
    amended: list[Amended] = Field(
        default_factory=list, description="what was changed while it ran; any has confidence sequences decide"
    )
    arms: list[ArmFigures]
    metrics: list[MetricReport]
    guardrail_failures: list[str] = Field(description="a sentence each; any is a reason to stop")
    sample_ratio: SampleRatio | None
    outlook: Outlook
    bandit: list[BanditArm] | None
    uncounted: dict[str, int] = Field(
        default_factory=dict, description="outcomes that count nowhere, by why", examples=[{"before exposure": 3}]
    )
    warnings: list[str]
    unmet: UnmetOutcomes | None = Field(default=None, description="outcomes of units that were not met")
