"""A report in plain words: what beats what by how much, what cannot be told yet, and what to be wary of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from app.experiments.account import ArmFigures, BanditArm, Comparison, MetricReport, Outlook, SampleRatio, Span
from app.experiments.dose import Dose
from app.experiments.protocol import Amendment

TOO_GOOD = 0.05
"""A relative gain above this is more often a mistake in counting than a discovery (Twyman's law)."""


def sentence_of(
    control: str,
    arms: Sequence[ArmFigures],
    ratio: SampleRatio | None,
    failures: Sequence[str],
    deciding: MetricReport | None,
    outlook: Outlook,
) -> str:
    """The one sentence; what forbids trust comes first, then harm, then the deciding metric."""
    if not outlook.units:
        return "No units yet."
    if ratio is not None and ratio.alarm:
        return mismatch_sentence(arms)
    if failures:
        return failures[0]
    if deciding is None:
        return "No metric decides: name one as primary."
    return metric_sentence(control, deciding, outlook)


def mismatch_sentence(arms: Sequence[ArmFigures]) -> str:
    shown = [arm for arm in arms if not arm.shadow]
    counts = ", ".join(f"{arm.arm} {arm.units:,}" for arm in shown)
    return f"Sample-ratio mismatch: do not trust this experiment; its units ({counts}) are not split as configured."


def bandit_sentence(arms: Sequence[BanditArm], metric: str) -> str:
    best = max(arms, key=lambda arm: arm.probability_best or 0.0)
    if best.probability_best is None:
        return "Warming up: shares stay as they are until every arm has enough units whose window has closed."
    return f"{best.arm} is the best arm for {metric} with a probability of {100 * best.probability_best:.0f} %."


def left_out_warning(arm: str) -> str:
    return (
        f"{arm} gets no new units since its guardrail failed; units that drew it keep it until the experiment is "
        "paused, or another salt, recipe or list of arms draws everybody anew"
    )


def metric_sentence(control: str, metric: MetricReport, outlook: Outlook | None = None) -> str:
    """Each arm against control; the undecided ones are said to be so."""
    if not metric.comparisons:
        return f"Cannot tell yet: {metric.metric} has too few outcomes."
    if metric.role == "guardrail":
        return _guarded(control, metric)
    decided = [_decided(control, metric, one) for one in metric.comparisons if one.verdict in ("better", "worse")]
    unclear = [_unclear(control, metric, one) for one in metric.comparisons if one.verdict not in ("better", "worse")]
    if not unclear:
        return _joined(decided)
    wait = _wait(outlook) if outlook else ""
    over = outlook is not None and outlook.fraction is not None and outlook.fraction >= 1
    opening = "no difference was shown at the planned end" if over else "cannot tell yet"
    return _joined([*decided, f"{opening}: {', '.join(unclear)}{wait}"])


def failure_sentence(control: str, metric: MetricReport, one: Comparison) -> str:
    beyond = f", beyond the margin of {_amount(metric, metric.margin)}" if metric.margin else ""
    worse = _range(metric, _harm(metric, _telling(one)))
    return f"Guardrail {metric.metric} fails: {one.arm} is worse than {control} by {worse}{beyond}{_shown(one)}."


def worse_sentence(control: str, metric: MetricReport, one: Comparison) -> str:
    return _joined([_decided(control, metric, one)])


def twyman_warning(metric: MetricReport, one: Comparison) -> str | None:
    if one.verdict != "better" or one.relative is None or abs(one.relative) <= TOO_GOOD:
        return None
    return (
        f"{one.arm} changes {metric.metric} by {100 * one.relative:+.0f} %: gains above {100 * TOO_GOOD:.0f} % are "
        "more often mistakes than discoveries, so check exposures, double posts and outcomes by day first"
    )


UNCOUNTED = {
    "not met": "of units that have not met the experiment",
    "before exposure": "more than a minute before their unit met it",
    "after window": "after their unit's window",
    "too many": "beyond the most that one unit is counted for",
}


def uncounted_warning(uncounted: Mapping[str, int]) -> list[str]:
    """How many outcomes count nowhere, and why."""
    if not uncounted:
        return []
    parts = ", ".join(f"{count:,} {UNCOUNTED.get(why, why)}" for why, count in uncounted.items())
    total = sum(uncounted.values())
    return [f"{total:,} {'outcome counts' if total == 1 else 'outcomes count'} nowhere: {parts}; see docs/ledger.md"]


def amended_warnings(amendments: Sequence[Amendment]) -> list[str]:
    """Since when and why the confidence sequence decides."""
    if not amendments:
        return []
    changes = "; ".join(f"{_day(one.at)}: {one.what}" for one in amendments)
    return [
        f"since {_day(amendments[0].at)} the confidence sequence decides, because the plan was changed while the "
        f"experiment ran ({changes})"
    ]


def ended_warning(metric: MetricReport) -> list[str]:
    """That a metric says what it said at the planned end, and whether that may still change."""
    if metric.ended is None:
        return []
    said = f"{metric.metric} says what it said when the plan was complete, on {_day(metric.ended)}"
    if metric.windows_open:
        said += (
            f"; the windows of {metric.windows_open:,} units were open then, and once they have closed it is looked at "
            "one last time"
        )
    return [said]


def dose_sentence(dose: Dose) -> str:
    """Where the best t lies; that a curve is flat, or best at an end, is said instead of a false top."""
    between = f"between {dose.low:.2f} and {dose.high:.2f} (95 %)"
    opening = {
        "top inside": f"the best t is {dose.best:.2f}, {between}",
        "best at an end": f"the best t that was tried is the end {dose.best:g}; it lies {between}",
        "flat": f"no dependence on t is shown; the best one may lie {between}",
    }[dose.shape]
    misfit = "; a quadratic does not fit these arms" if dose.misfit_p is not None and dose.misfit_p < 0.05 else ""
    return opening[0].upper() + opening[1:] + ", for a single look" + misfit + "."


def _guarded(control: str, metric: MetricReport) -> str:
    words = {
        "worse": "fails for",
        "harmless": "holds for",
        "undecided": "cannot be told yet for",
        "too few units": "has too few units of",
        "too few outcomes": "has too few outcomes of",
        "better": "holds for",
    }
    return f"Guardrail {metric.metric} {', '.join(f'{words[one.verdict]} {one.arm}' for one in metric.comparisons)}."


def _decided(control: str, metric: MetricReport, one: Comparison) -> str:
    if one.verdict == "better":
        gain = _telling(one) if metric.better == "higher" else _negated(_telling(one))
        return f"{one.arm} beats {control} by {_range(metric, gain)} of {metric.metric}{_shown(one)}"
    harm = _harm(metric, _telling(one))
    return f"{one.arm} is worse than {control} by {_range(metric, harm)} of {metric.metric}{_shown(one)}"


def _telling(one: Comparison) -> Span:
    """The interval that the verdict comes from."""
    return one.crossed.interval if one.crossed and one.latched else one.interval


def _shown(one: Comparison) -> str:
    return f", as was shown on {_day(one.crossed.at)}" if one.crossed and one.latched else ""


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _unclear(control: str, metric: MetricReport, one: Comparison) -> str:
    if one.verdict == "too few units":
        return f"{one.arm} has too few units"
    if one.verdict == "too few outcomes":
        return f"{one.arm} and {control} have too few outcomes of {metric.metric}"
    low, high = one.interval.low, one.interval.high
    if low >= 0 or high <= 0:  # its own interval leaves out 0, but not after Holm
        return f"{one.arm} differs from {control} in {metric.metric}, but not beyond doubt among so many comparisons"
    digits = _digits(metric, one.interval)
    return (
        f"{one.arm} has between {_amount(metric, -low, digits)} less and {_amount(metric, high, digits)} more "
        f"{metric.metric} than {control}"
    )


def _wait(outlook: Outlook) -> str:
    if outlook.days_to_go:
        days = "day" if outlook.days_to_go == 1 else "days"
        return f"; about {outlook.days_to_go} {days} to go"
    return ""


def _harm(metric: MetricReport, interval: Span) -> Span:
    return interval if metric.better == "lower" else _negated(interval)


def _negated(interval: Span) -> Span:
    return Span(low=-interval.high, high=-interval.low)


def _range(metric: MetricReport, interval: Span) -> str:
    scale, name = (100, " points") if metric.unit == "share" else (1, "")
    digits = _digits(metric, interval)
    return f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}{name}"


def _amount(metric: MetricReport, value: float, digits: int | None = None) -> str:
    if metric.unit == "share":
        shown = f"{100 * value:g}" if digits is None else f"{100 * value:.{digits}f}"
        return f"{shown} point" if shown == "1" else f"{shown} points"
    return f"{value:g}" if digits is None else f"{value:.{digits}f}"


def _digits(metric: MetricReport, interval: Span) -> int:
    """Enough that both ends can be told apart."""
    width = (interval.high - interval.low) * (100 if metric.unit == "share" else 1)
    digits = 1
    while digits < 6 and width * 10**digits < 3:
        digits += 1
    return digits


def _joined(parts: Sequence[str]) -> str:
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:] if text.startswith(("cannot", "no ")) else text
