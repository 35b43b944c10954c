"""From sums to a report: who is in, what each metric says, whether to trust any of it, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from app.experiments.events.aggregates import ArmSums, Moments, PhaseSums
from app.experiments.experiment import Experiment
from app.experiments.latches import Latches, Latching
from app.experiments.rollout import Evidence
from app.experiments.stats import power, report_summary, sample_ratio, thompson
from app.experiments.stats.comparisons import Context, compare, with_holm
from app.experiments.stats.dose_response import doses_of
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.report_schema import (
    Amended,
    ArmFigures,
    BanditArm,
    Interval,
    MetricReport,
    Outlook,
    Report,
    SampleRatio,
)
from app.experiments.stats.sequential_tests import ALPHA, looks_at
from app.weights.auto_recipe import Auto
from app.weights.recipe import Recipe

MOST_LOOKS = 30
"""For the outlook's power: more daily looks than this change it little."""

OVERRUN = 1.02
"""Units, as part of the plan, above which the report warns that nobody has paid for further looks."""

MANY_WITHOUT = 0.2
"""Part of the units without a covariate that is worth a warning."""


def report(
    experiment: Experiment,
    phases: Sequence[PhaseSums],
    now: float,
    recipes: Mapping[str, Recipe | Auto] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Report:
    """What the sums say at `now` (seconds since 1970), to somebody who looks for the first time."""
    return judge(experiment, phases, now, recipes, left_out)[0]


def judge(
    experiment: Experiment,
    phases: Sequence[PhaseSums],
    now: float,
    recipes: Mapping[str, Recipe | Auto] | None = None,
    left_out: Mapping[str, str] | None = None,
    amendments: Sequence[Amendment] = (),
    latched: Mapping[str, str] | None = None,
) -> tuple[Report, Latches]:
    """What the sums say at `now`, and what is to be latched of it.

    With the recipe of each arm, arms that are t's of one variant get a curve over t. `left_out` says which arms of a
    bandit get no new units, and which guardrail failed when that was decided. An experiment that was amended has no
    plan any more.
    """
    left_out = left_out or {}
    if amendments:
        experiment = experiment.model_copy(update={"planned_units": None})
    doses = doses_of({arm.name: recipes[arm.name] for arm in experiment.shown}) if recipes else None
    by_day = _units_by_day(experiment, phases)
    units = sum(_units(phases, arm.name) for arm in experiment.shown)
    looks = _looks(experiment.planned_units, by_day, units)
    context = Context(experiment, phases, looks, thompson.decisive(experiment), doses, amendments)
    ratio = _sample_ratio(experiment, phases)
    arms = [_figures(experiment, phases, arm.name) for arm in experiment.arms]
    since, young = min((p.phase for p in phases), default=1), sum(a.units - a.mature for a in arms if not a.shadow)
    latching = Latching(experiment, latched or {}, now, since, young)
    metrics = _judged(context, latching)
    outlook = _outlook(experiment, metrics, by_day, units, looks)
    metrics = [_spoken(experiment.control, metric, outlook) for metric in metrics]
    failing = _failures(experiment.control, metrics)
    failures = [sentence for sentences in failing.values() for sentence in sentences]
    failures += [why for arm, why in left_out.items() if arm not in failing]
    deciding = next((metric for metric in metrics if metric.decides), None)
    standing = _standing(experiment, phases, now, doses, left_out) if experiment.mode == "bandit" else None
    if standing and context.deciding and units and not failures:
        sentence = report_summary.bandit_sentence(standing, context.deciding.name)
    else:
        sentence = report_summary.sentence_of(experiment.control, arms, ratio, failures, deciding, outlook)
    trustworthy = not (ratio and ratio.alarm)
    made = Report(
        sentence=sentence,
        trustworthy=trustworthy,
        at=now,
        mode=experiment.mode,
        control=experiment.control,
        amended=[Amended(at=one.at, by=one.by, what=one.what) for one in amendments],
        arms=arms,
        metrics=metrics,
        guardrail_failures=failures,
        sample_ratio=ratio,
        outlook=outlook,
        bandit=standing,
        warnings=[
            *report_summary.amended_warnings(amendments),
            *map(report_summary.left_out_warning, left_out),
            *_warnings(phases, arms, metrics, outlook),
        ],
    )
    return made, latching.fresh if trustworthy else {}


def _judged(context: Context, latching: Latching) -> list[MetricReport]:
    """Each metric that is judged, with what was said of it before."""
    experiment = context.experiment
    # Shares that follow outcomes bend a test of those outcomes, but not one of what harm arms do within a phase.
    judged = [m for m in experiment.metrics if experiment.mode == "test" or m.role == "guardrail"]
    metrics = with_holm([compare(context, metric) for metric in judged], amended=bool(context.amendments))
    metrics = latching.crossings(metrics)
    return latching.at_end(metrics) if context.looks and context.looks[-1] >= 1 else metrics


def with_uncounted(made: Report, uncounted: Mapping[str, int]) -> Report:
    """The report, with the outcomes that count nowhere and a sentence about them."""
    warnings = [*made.warnings, *report_summary.uncounted_warning(uncounted)]
    return made.model_copy(update={"uncounted": dict(uncounted), "warnings": warnings})


def failing_guardrails(experiment: Experiment, phases: Sequence[PhaseSums]) -> dict[str, list[str]]:
    """By arm that fails now, a sentence for each of its guardrails, as in the report, without the rest of it."""
    context = Context(experiment, phases, (), thompson.decisive(experiment), None)
    guardrails = [compare(context, metric) for metric in experiment.metrics if metric.role == "guardrail"]
    return _failures(experiment.control, guardrails)


def failing_arms(experiment: Experiment, phases: Sequence[PhaseSums]) -> dict[str, str]:
    """Arms with a guardrail that fails now, and the first sentence about it."""
    return {arm: sentences[0] for arm, sentences in failing_guardrails(experiment, phases).items()}


def rollout_evidence(experiment: Experiment, phases: Sequence[PhaseSums]) -> Evidence:
    """What the guardrails, units and sample ratio of a rollout say; `phases` are those of its present recipes."""
    arms = [_figures(experiment, phases, arm.name) for arm in experiment.shown]
    failing = failing_guardrails(experiment, phases)
    ratio = _sample_ratio(experiment, phases)
    silent = [
        metric.name
        for metric in experiment.metrics
        if metric.role == "guardrail" and metric.better == "higher" and not _outcomes(phases, metric.name)
    ]
    return Evidence(
        failures=[sentence for sentences in failing.values() for sentence in sentences],
        closed=min(arm.mature for arm in arms),
        mismatch=report_summary.mismatch_sentence(arms) if ratio and ratio.alarm else None,
        silent=tuple(silent),
    )


def _outcomes(phases: Sequence[PhaseSums], metric: str) -> float:
    return sum(arm.metrics[metric].yy for phase in phases for arm in phase.arms.values() if metric in arm.metrics)


def objections(found: Report, arm: str) -> list[str]:
    """What a report says against an arm: a sample ratio that is off, guardrails that fail, a deciding metric that is
    worse. Nothing says no to control."""
    if arm == found.control:
        return []
    against = [] if found.trustworthy else [report_summary.mismatch_sentence(found.arms)]
    against += _failures(found.control, found.metrics).get(arm, [])
    for metric in found.metrics:
        worse = [one for one in metric.comparisons if one.arm == arm and one.verdict == "worse"]
        if metric.decides and worse:
            against.append(report_summary.worse_sentence(found.control, metric, worse[0]))
    return against


def _units(phases: Sequence[PhaseSums], arm: str) -> int:
    return sum(phase.arms[arm].units for phase in phases if arm in phase.arms)


def _units_by_day(experiment: Experiment, phases: Sequence[PhaseSums]) -> list[int]:
    """New units of all arms on each day in UTC, oldest first."""
    shown = {arm.name for arm in experiment.shown}
    days: dict[str, int] = {}
    for phase in phases:
        for date, arms in phase.days.items():
            days[date] = days.get(date, 0) + sum(day.units for name, day in arms.items() if name in shown)
    return [days[date] for date in sorted(days)]


def _looks(planned: int | None, by_day: Sequence[int], units: int) -> tuple[float, ...]:
    """One at the end of each day so far, and one now, as parts of the plan."""
    if planned is None or not units:
        return ()
    seen, fractions = 0, []
    for new in by_day[:-1]:
        seen += new
        fractions.append(seen / planned)
    return looks_at([*fractions, units / planned])


def _figures(experiment: Experiment, phases: Sequence[PhaseSums], name: str) -> ArmFigures:
    arm = experiment.arm(name)
    sums = [phase.arms.get(name, ArmSums()) for phase in phases]
    exposures = sum(one.exposures for one in sums)
    agreement = sum(one.agreements for one in sums) / exposures if arm.shadow and exposures else None
    return ArmFigures(
        arm=name,
        recipe=str(arm.recipe),
        share=arm.share,
        shadow=arm.shadow,
        units=sum(one.units for one in sums),
        mature=sum(one.mature for one in sums),
        exposures=exposures,
        agreement=agreement,
    )


def _sample_ratio(experiment: Experiment, phases: Sequence[PhaseSums]) -> SampleRatio | None:
    """None for a bandit: who stays with his arm while shares change is not split by the shares of the phase."""
    found = sample_ratio.check(phases) if experiment.mode == "test" else None
    return SampleRatio(chi_square_p=found.chi_square_p, p=found.p, alarm=found.alarm) if found else None


def _outlook(
    experiment: Experiment, metrics: Sequence[MetricReport], by_day: Sequence[int], units: int, looks: tuple[float, ...]
) -> Outlook:
    planned, per_day = experiment.planned_units, power.pace(by_day)
    running = experiment.status == "running"
    return Outlook(
        planned_units=planned,
        units=units,
        fraction=units / planned if planned else None,
        looks=len(looks) if looks else None,
        units_per_day=per_day,
        days_to_go=power.days_to_go(planned, units, per_day) if planned and running else None,
        detectable=_detectable(experiment, metrics, per_day),
    )


def _detectable(experiment: Experiment, metrics: Sequence[MetricReport], per_day: float) -> float | None:
    """Of the deciding metric, by the arm of the smallest share, with as many looks as the plan has days."""
    planned, deciding = experiment.planned_units, next((metric for metric in metrics if metric.decides), None)
    compared = len(experiment.shown) - 1
    if planned is None or deciding is None or not compared:
        return None
    variance = next(arm.variance for arm in deciding.arms if arm.arm == experiment.control)
    units = int(planned * min(arm.share for arm in experiment.shown))
    if not variance or not units:
        return None
    looks = max(1, min(MOST_LOOKS, round(planned / per_day))) if per_day else 1
    left = variance * (1 - (deciding.variance_removed or 0.0))
    return power.detectable(units, left, looks, alpha=ALPHA / compared)


def _spoken(control: str, metric: MetricReport, outlook: Outlook) -> MetricReport:
    spoken = report_summary.metric_sentence(control, metric, outlook if metric.decides else None)
    return metric.model_copy(update={"sentence": spoken})


def _failures(control: str, metrics: Sequence[MetricReport]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for metric in metrics:
        for one in metric.comparisons:
            if metric.role == "guardrail" and one.verdict == "worse":
                found.setdefault(one.arm, []).append(report_summary.failure_sentence(control, metric, one))
    return found


def _standing(
    experiment: Experiment,
    phases: Sequence[PhaseSums],
    now: float,
    doses: Mapping[str, float] | None,
    left_out: Collection[str],
) -> list[BanditArm]:
    metric = thompson.decisive(experiment)
    known = thompson.standings(experiment, phases, now, doses, left_out=left_out) or {}
    shares = thompson.next_shares(experiment, phases, now, doses, left_out=left_out)
    found = []
    for arm in experiment.shown:
        sums = [phase.arms[arm.name] for phase in phases if arm.name in phase.arms]
        estimate = (
            thompson.weighted_mean(
                [(one.metrics.get(metric.name, Moments()), one.units) for one in sums], metric.kind == "binary"
            )
            if metric
            else None
        )
        reach = 1.96 * estimate.error if estimate else math.nan
        standing = known.get(arm.name)
        found.append(
            BanditArm(
                arm=arm.name,
                estimate=estimate.value if estimate else None,
                interval=Interval(low=estimate.value - reach, high=estimate.value + reach) if estimate else None,
                probability_best=standing.probability_best if standing else None,
                expected_loss=standing.expected_loss if standing else None,
                next_share=shares[arm.name],
                left_out=arm.name in left_out,
            )
        )
    return found


def _warnings(
    phases: Sequence[PhaseSums], arms: Sequence[ArmFigures], metrics: Sequence[MetricReport], outlook: Outlook
) -> list[str]:
    """What a person should know before acting on it."""
    found = []
    shown = [arm for arm in arms if not arm.shadow]
    if outlook.fraction is not None and outlook.fraction > OVERRUN:
        found.append(report_summary.overrun_warning(outlook))
    for metric in metrics:
        found += report_summary.ended_warning(metric)
    with_units = [phase for phase in phases if any(one.units for one in phase.arms.values())]
    if len(with_units) > 1:
        found.append(report_summary.strata_warning(len(with_units)))
    without = _without_covariate(phases, {arm.arm for arm in shown})
    if without > MANY_WITHOUT and any(metric.variance_removed for metric in metrics):
        found.append(report_summary.covariate_warning(without))
    for metric in metrics:
        found += [w for one in metric.comparisons if (w := report_summary.twyman_warning(metric, one))]
    return found


def _without_covariate(phases: Sequence[PhaseSums], shown: set[str]) -> float:
    arms = [sums for phase in phases for name, sums in phase.arms.items() if name in shown and sums.metrics]
    units = sum(sums.units for sums in arms)
    missing = sum(next(iter(sums.metrics.values())).x_missing for sums in arms)
    return missing / units if units else 0.0
