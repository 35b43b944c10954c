"""A report in plain words: what beats what by how much, what cannot be told yet, and what to be wary of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from app.experiments.stats.dose_response import Dose
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.report_schema import (
    ArmFigures,
    BanditArm,
    Comparison,
    Interval,
    MetricReport,
    Outlook,
    SampleRatio,
)
from app.experiments.stats.report_sentences import say

ENOUGH = 100
"""Units of each arm below which nothing is decided: all tests here rest on the central limit theorem."""

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
        return say("no units")
    if ratio is not None and ratio.alarm:
        return mismatch_sentence(arms)
    if failures:
        return failures[0]
    if deciding is None:
        return say("nothing decides")
    return metric_sentence(control, deciding, outlook)


def mismatch_sentence(arms: Sequence[ArmFigures]) -> str:
    shown = [arm for arm in arms if not arm.shadow]
    counts = ", ".join(f"{arm.arm} {arm.units:,}" for arm in shown)
    return say("mismatch", counts=counts)


def bandit_sentence(arms: Sequence[BanditArm], metric: str) -> str:
    best = max(arms, key=lambda arm: arm.probability_best or 0.0)
    if best.probability_best is None:
        return say("warming up")
    return say("best arm", arm=best.arm, metric=metric, chance=f"{100 * best.probability_best:.0f}")


def left_out_warning(arm: str) -> str:
    return say("left out", arm=arm)


def metric_sentence(control: str, metric: MetricReport, outlook: Outlook | None = None) -> str:
    """Each arm against control; the undecided ones are said to be so."""
    if not metric.comparisons:
        return say("no outcomes", metric=metric.metric)
    if metric.role == "guardrail":
        return _guarded(control, metric)
    decided = [_decided(control, metric, one) for one in metric.comparisons if one.verdict in ("better", "worse")]
    unclear = [_unclear(control, metric, one) for one in metric.comparisons if one.verdict not in ("better", "worse")]
    if not unclear:
        return _joined(decided)
    wait = _wait(outlook) if outlook else ""
    over = outlook is not None and outlook.fraction is not None and outlook.fraction >= 1
    return _joined([*decided, say("over" if over else "undecided", unclear=", ".join(unclear), wait=wait)])


def failure_sentence(control: str, metric: MetricReport, one: Comparison) -> str:
    beyond = say("beyond", margin=_amount(metric, metric.margin)) if metric.margin else ""
    worse = _range(metric, _harm(metric, _telling(one)))
    figures = {"arm": one.arm, "control": control, "range": worse, "beyond": beyond, "shown": _shown(one)}
    return say("failure", metric=_named(metric), **figures)


def worse_sentence(control: str, metric: MetricReport, one: Comparison) -> str:
    return _joined([_decided(control, metric, one)])


def twyman_warning(metric: MetricReport, one: Comparison) -> str | None:
    if one.verdict != "better" or one.relative is None or abs(one.relative) <= TOO_GOOD:
        return None
    relative, least = f"{100 * one.relative:+.0f}", f"{100 * TOO_GOOD:.0f}"
    return say("twyman", arm=one.arm, metric=_named(metric), relative=relative, least=least)


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
    return [say("uncounted", outcomes=f"{total:,} {'outcome counts' if total == 1 else 'outcomes count'}", parts=parts)]


def amended_warnings(amendments: Sequence[Amendment]) -> list[str]:
    """Since when and why the confidence sequence decides."""
    if not amendments:
        return []
    changes = "; ".join(f"{_day(one.at)}: {one.what}" for one in amendments)
    return [say("amended", day=_day(amendments[0].at), changes=changes)]


def ended_warning(metric: MetricReport) -> list[str]:
    """That a metric says what it said at the planned end, and whether that may still change."""
    if metric.ended is None:
        return []
    still_open = say("windows open", units=f"{metric.windows_open:,}") if metric.windows_open else ""
    return [say("ended", metric=metric.metric, day=_day(metric.ended), open=still_open)]


def overrun_warning(outlook: Outlook) -> str:
    return say("overrun", units=f"{outlook.units:,}", planned=f"{outlook.planned_units:,}")


def strata_warning(phases: int) -> str:
    return say("strata", phases=phases)


def covariate_warning(without: float) -> str:
    return say("no covariate", part=f"{100 * without:.0f}")


def dose_sentence(dose: Dose) -> str:
    """Where the best t lies; that a curve is flat, or best at an end, is said instead of a false top."""
    between = say("dose between", low=f"{dose.low:.2f}", high=f"{dose.high:.2f}")
    misfit = say("dose misfit") if dose.misfit_p is not None and dose.misfit_p < 0.05 else ""
    key = {"top inside": "dose top", "best at an end": "dose end"}.get(dose.shape, f"dose {dose.shape}")
    return say(key, best=f"{dose.best:.2f}", end=f"{dose.best:g}", between=between, misfit=misfit)


def _guarded(control: str, metric: MetricReport) -> str:
    verdicts = ", ".join(say(f"guardrail {one.verdict}", arm=one.arm) for one in metric.comparisons)
    return say("guardrail", metric=metric.metric, verdicts=verdicts)


def _decided(control: str, metric: MetricReport, one: Comparison) -> str:
    if one.verdict == "better":
        gain = _telling(one) if metric.better == "higher" else _negated(_telling(one))
    else:
        gain = _harm(metric, _telling(one))
    figures = {"arm": one.arm, "control": control, "range": _range(metric, gain), "shown": _shown(one)}
    return say(one.verdict, metric=_named(metric), **figures)


def _named(metric: MetricReport) -> str:
    """With what an amount is counted for: a unit, or one of what a ratio metric divides by."""
    return metric.metric if metric.unit == "share" else f"{metric.metric} per {metric.per or 'unit'}"


def _telling(one: Comparison) -> Interval:
    """The interval that the verdict comes from."""
    return one.crossed.interval if one.crossed and one.latched else one.interval


def _shown(one: Comparison) -> str:
    return say("shown before", day=_day(one.crossed.at)) if one.crossed and one.latched else ""


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _unclear(control: str, metric: MetricReport, one: Comparison) -> str:
    if one.verdict == "too few units":
        return say("few units", arm=one.arm, control=control, least=ENOUGH)
    if one.verdict == "too few outcomes":
        return say("few outcomes", arm=one.arm, control=control, metric=metric.metric)
    low, high = one.interval.low, one.interval.high
    if low >= 0 or high <= 0:  # its own interval leaves out 0, but not after Holm
        return say("not after Holm", arm=one.arm, control=control, metric=_named(metric))
    digits = _digits(metric, one.interval)
    less, more = _amount(metric, -low, digits), _amount(metric, high, digits)
    return say("between", arm=one.arm, less=less, more=more, metric=_named(metric), control=control)


def _wait(outlook: Outlook) -> str:
    if outlook.days_to_go:
        days = "day" if outlook.days_to_go == 1 else "days"
        return say("days to go", days=f"{outlook.days_to_go} {days}")
    return ""


def _harm(metric: MetricReport, interval: Interval) -> Interval:
    return interval if metric.better == "lower" else _negated(interval)


def _negated(interval: Interval) -> Interval:
    return Interval(low=-interval.high, high=-interval.low)


def _range(metric: MetricReport, interval: Interval) -> str:
    scale, name = (100, " points") if metric.unit == "share" else (1, "")
    digits = _digits(metric, interval)
    return f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}{name}"


def _amount(metric: MetricReport, value: float, digits: int | None = None) -> str:
    if metric.unit == "share":
        shown = f"{100 * value:g}" if digits is None else f"{100 * value:.{digits}f}"
        return f"{shown} point" if shown == "1" else f"{shown} points"
    return f"{value:g}" if digits is None else f"{value:.{digits}f}"


def _digits(metric: MetricReport, interval: Interval) -> int:
    """Enough that both ends can be told apart."""
    width = (interval.high - interval.low) * (100 if metric.unit == "share" else 1)
    digits = 1
    while digits < 6 and width * 10**digits < 3:
        digits += 1
    return digits


def _joined(parts: Sequence[str]) -> str:
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:] if text.startswith(("cannot", "no ")) else text
