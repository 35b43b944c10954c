"""Arms against control, metric by metric: which interval applies, and what it says.

The deciding metric of an experiment with a planned end gets the group-sequential test; everything else (no planned end,
guardrails, secondary metrics) a confidence sequence. The fixed-horizon test stands beside both, labelled as such.
Phases are compared apart, and put together as strata. Holm's method corrects for multiple comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from app.experiments.events.aggregates import Moments, PhaseSums
from app.experiments.experiment import Experiment, Metric
from app.experiments.stats.dose_response import dose_response
from app.experiments.stats.estimators import (
    FEWEST,
    Estimate,
    adjusted,
    cochran,
    difference,
    fixed_critical,
    fixed_p,
    mean,
    ratio,
    relative,
    strata,
    varied,
)
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.regression import RegressionCell
from app.experiments.stats.report_schema import (
    ArmValue,
    Comparison,
    DoseReport,
    FixedLook,
    Interval,
    MetricReport,
    PhaseLift,
    Test,
    Verdict,
)
from app.experiments.stats.report_summary import ENOUGH, dose_sentence
from app.experiments.stats.sequential_tests import ALPHA, TUNED_FOR, bounds, sequence_critical, sequence_p


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), which keep the chance of any false finding at alpha.

    The i-th smallest p times (m - i + 1), never below a smaller one's, at most 1.
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


ENOUGH_OF_EACH = 10
"""Units of both arms together with, and without, a binary outcome below which nothing is decided."""

ByArm = dict[str, Estimate]


@dataclass(frozen=True)
class Context:
    """What all comparisons of one report share."""

    experiment: Experiment
    phases: Sequence[PhaseSums]
    looks: tuple[float, ...]
    """Parts of the planned units at which somebody may have looked, the last one being now; empty without a plan."""
    deciding: Metric | None
    doses: Mapping[str, float] | None
    amendments: Sequence[Amendment] = ()

    @property
    def planned(self) -> int | None:
        """The plan that it began with: a sequence that is tuned anew at each look holds for none of them."""
        return self.amendments[0].planned_units if self.amendments else self.experiment.planned_units

    @property
    def arms(self) -> list[str]:
        return [arm.name for arm in self.experiment.shown]

    @property
    def compared(self) -> list[str]:
        return [name for name in self.arms if name != self.experiment.control]

    def moments(self, metric: Metric, phase: PhaseSums) -> dict[str, tuple[Moments, int]]:
        """Of each arm that has units enough for a variance."""
        found = {}
        for name in self.arms:
            sums = phase.arms.get(name)
            if sums is not None and sums.units >= FEWEST:
                found[name] = (sums.metrics.get(metric.name, Moments()), sums.units)
        return found


def compare(context: Context, metric: Metric) -> MetricReport:
    """Everything about one metric but its sentence."""
    plain = [_estimates(context, metric, phase, covariate=False) for phase in context.phases]
    best = [_estimates(context, metric, phase, covariate=True) for phase in context.phases]
    control = context.experiment.control
    comparisons, phases = [], []
    for arm in context.compared:
        pairs = [(by_arm[arm], by_arm[control]) for by_arm in best if arm in by_arm and control in by_arm]
        if pairs and (found := _comparison(context, metric, arm, *strata(pairs))) is not None:
            comparisons.append(found)
            phases += _phase_lifts(context, arm, best) if len(pairs) > 1 else []
    return MetricReport(
        metric=metric.name,
        role=metric.role,
        better=metric.better,
        unit="share" if metric.kind == "binary" and metric.per is None else "amount",
        per=metric.per,
        decides=metric == context.deciding,
        margin=metric.margin,
        arms=[_value(context, metric, arm, plain) for arm in context.arms],
        comparisons=comparisons,
        phases=phases,
        variance_removed=_removed(plain, best),
        dose=_dose(context, metric, best),
        sentence="",
    )


def with_holm(metrics: Sequence[MetricReport], amended: bool = False) -> list[MetricReport]:
    """Secondary metrics are decided by their always-valid p after Holm, over all of them and all arms.

    Where the experiment was amended, so is the deciding one: it may have been picked after a look at all of them.
    """
    chosen = [
        (metric, one)
        for metric in metrics
        if (amended or not metric.decides) and metric.role != "guardrail"
        for one in metric.comparisons
    ]
    ps = {
        (metric.metric, one.arm): p
        for (metric, one), p in zip(chosen, holm([one.p or 0.0 for _, one in chosen]), strict=True)
    }
    return [
        metric.model_copy(
            update={"comparisons": [_held(metric, one, ps.get((metric.metric, one.arm))) for one in metric.comparisons]}
        )
        for metric in metrics
    ]


def _held(metric: MetricReport, one: Comparison, p: float | None) -> Comparison:
    if p is None:
        return one
    verdict = "undecided" if p > ALPHA and one.verdict in ("better", "worse") else one.verdict
    return one.model_copy(update={"p_holm": p, "verdict": verdict})


# -- one arm against control -------------------------------------------------------------------------------


def _comparison(context: Context, metric: Metric, name: str, arm: Estimate, control: Estimate) -> Comparison | None:
    """None while nothing varies, such as before the first outcome of a metric that is no share."""
    both = varied(arm, control)
    if both is None:
        return None
    arm, control = both
    change = difference(arm, control)
    decides = metric == context.deciding
    alpha = ALPHA / len(context.compared) if decides else ALPHA
    test: Test = "group-sequential" if decides and context.looks else "confidence sequence"
    tuned_for = _tuned_for(context, name)
    if test == "group-sequential":
        critical, p = bounds(context.looks, alpha)[-1], None
    else:
        critical = sequence_critical(change.units, tuned_for, alpha)
        p = sequence_p(change.value / change.error, change.units, tuned_for, alpha)
    interval = _span(change, critical)
    reach = fixed_critical(change.degrees, ALPHA)
    ends = relative(arm, control, critical)
    return Comparison(
        arm=name,
        verdict=_too_few(context, metric, name) or _verdict(metric, interval),
        lift=change.value,
        interval=interval,
        relative=change.value / control.value if control.value else None,
        relative_interval=Interval(low=ends[0], high=ends[1]) if ends else None,
        test=test,
        confidence=1 - alpha,
        critical=critical,
        p=p,
        p_holm=None,
        fixed=FixedLook(interval=_span(change, reach), p=fixed_p(change)),
    )


def _verdict(metric: Metric, interval: Interval) -> Verdict:
    """A guardrail fails (`worse`) where harm beyond its margin is shown, and is `harmless` where it is ruled out."""
    gain = (interval.low, interval.high) if metric.better == "higher" else (-interval.high, -interval.low)
    if metric.role == "guardrail":
        return "worse" if gain[1] < -metric.margin else "harmless" if gain[0] > -metric.margin else "undecided"
    return "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "undecided"


def _tuned_for(context: Context, arm: str) -> float:
    """Units of both arms at which a confidence sequence is narrowest: those of the plan."""
    if context.planned is None:
        return TUNED_FOR
    experiment = context.experiment
    share = experiment.arm(arm).share + experiment.arm(experiment.control).share
    return max(2.0 * ENOUGH, context.planned * share)


def _too_few(context: Context, metric: Metric, arm: str) -> Verdict | None:
    """What there is too little of for any decision; None where there is enough."""
    both = [_pooled(context, metric, name) for name in (arm, context.experiment.control)]
    if min(units for _, units in both) < ENOUGH:
        return "too few units"
    if metric.kind != "binary" or metric.per is not None:
        return None
    with_it = sum(moments.y for moments, _ in both)
    enough = min(with_it, sum(units for _, units in both) - with_it) >= ENOUGH_OF_EACH
    return None if enough else "too few outcomes"


def _span(change: Estimate, critical: float) -> Interval:
    return Interval(low=change.value - critical * change.error, high=change.value + critical * change.error)


def _phase_lifts(context: Context, arm: str, by_phase: Sequence[ByArm]) -> list[PhaseLift]:
    found = []
    for phase, by_arm in zip(context.phases, by_phase, strict=True):
        if arm in by_arm and context.experiment.control in by_arm:
            one, control = by_arm[arm], by_arm[context.experiment.control]
            change = difference(one, control)
            interval = _span(change, fixed_critical(change.degrees, ALPHA))
            means = {"mean": one.value, "control": control.value}
            found.append(PhaseLift(phase=phase.phase, arm=arm, lift=change.value, interval=interval, **means))
    return found


# -- estimates ---------------------------------------------------------------------------------------------


def _estimates(context: Context, metric: Metric, phase: PhaseSums, covariate: bool) -> ByArm:
    """Of each arm in a phase; of a ratio metric without the covariate, as its products with z are not summed."""
    arms = context.moments(metric, phase)
    if metric.per is not None:
        ratios = {name: ratio(moments, units) for name, (moments, units) in arms.items()}
        return {name: found for name, found in ratios.items() if found is not None}
    by_covariate = adjusted(arms, metric.kind == "binary") if covariate else None
    if by_covariate is not None:
        return by_covariate
    return {name: mean(moments, units, metric.kind == "binary") for name, (moments, units) in arms.items()}


def _removed(plain: Sequence[ByArm], best: Sequence[ByArm]) -> float | None:
    before = sum(one.squared_error * one.units**2 for by_arm in plain for one in by_arm.values())
    after = sum(one.squared_error * one.units**2 for by_arm in best for one in by_arm.values())
    return max(0.0, 1 - after / before) if before > 0 and after != before else None


def _value(context: Context, metric: Metric, arm: str, plain: Sequence[ByArm]) -> ArmValue:
    """All phases together, weighted as in the lift: were they pooled, a change of shares would pass for an effect in
    the means. Without the covariate."""
    moments, units = _pooled(context, metric, arm)
    found = None
    if units >= FEWEST:
        found = ratio(moments, units) if metric.per is not None else mean(moments, units, metric.kind == "binary")
    weighted = [(_weight(context, by_arm, arm), by_arm[arm].value) for by_arm in plain if arm in by_arm]
    whole = sum(weight for weight, _ in weighted)
    value = sum(weight * value for weight, value in weighted) / whole if whole else found.value if found else None
    return ArmValue(arm=arm, units=units, mean=value, variance=found.squared_error * units if found else None)


def _weight(context: Context, by_arm: ByArm, arm: str) -> float:
    """Of a phase, in an arm's mean; in control's, all that it has in the lifts."""
    control = context.experiment.control
    if control not in by_arm:
        return 0.0
    arms = context.compared if arm == control else [arm]
    return sum(cochran(by_arm[name], by_arm[control]) for name in arms if name in by_arm)


def _pooled(context: Context, metric: Metric, arm: str) -> tuple[Moments, int]:
    total, units = Moments(), 0
    for phase in context.phases:
        sums = phase.arms.get(arm)
        if sums is None:
            continue
        units += sums.units
        for name, amount in asdict(sums.metrics.get(metric.name, Moments())).items():
            setattr(total, name, getattr(total, name) + amount)
    return total, units


def _dose(context: Context, metric: Metric, best: Sequence[ByArm]) -> DoseReport | None:
    doses = context.doses
    if doses is None or metric.role == "guardrail":
        return None
    cells = [
        RegressionCell(phase.phase, name, one.units, one.value, one.squared_error * one.units)
        for phase, by_arm in zip(context.phases, best, strict=True)
        for name, one in by_arm.items()
        if name in doses
    ]
    found = dose_response(cells, doses, metric.better == "higher")
    if found is None:
        return None
    return DoseReport(
        best=found.best,
        interval=Interval(low=found.low, high=found.high),
        shape=found.shape,
        linear=found.linear,
        quadratic=found.quadratic,
        flat_p=found.flat_p,
        misfit_p=found.misfit_p,
        sentence=dose_sentence(found),
    )
