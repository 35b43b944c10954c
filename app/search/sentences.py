"""A sweep's findings in plain words."""

from __future__ import annotations

from app.search.dataset import ADVISED_TEXTS
from app.search.findings import Findings, Kept, Ramp, Value
from app.search.scores import METRICS, Metric
from app.search.temperature import HIGHEST, LOWEST

WIDE = 0.5
"""An interval of t wider than this says little."""

FEW_GROUPS = 20
UNSURE = 0.8
"""A guard that holds in a smaller share of the resamples is warned about."""


def shown(metric: Metric, value: float) -> str:
    """A metric's value as a person reads it."""
    return f"{100 * value:.1f} %" if metric.percent else f"{value:.3f}"


def margin_of(guard: Kept) -> str:
    return f"{100 * guard.margin:g} points" if METRICS[guard.metric].percent else f"{guard.margin:g}"


def sentence_of(found: Findings) -> str:
    """What to serve, why, and what to expect of it."""
    best, metric = found.best, METRICS[found.objective]
    low, high = best.interval
    kept = "".join(f", keeping {METRICS[g.metric].title} on {g.name} within {margin_of(g)}" for g in found.guards)
    if found.ramp and found.ramp.better:
        return _ramp_instead_of_one_t(found, found.ramp, kept)
    nearer = f", and {best.as_good[0]:.2f} is within one standard error of it" if best.as_good[0] < best.t else ""
    return (
        f"Serve {best.recipe}: {_reason(found)}{kept}. "
        f"Expect a {metric.title} of {shown(metric, found.honest.scores[found.objective])} on new texts; "
        f"the best t lies between {low:.2f} and {high:.2f} (95 %){nearer}."
        f"{_no_ramp(metric, found.ramp) if found.ramp else ''}"
    )


def _ramp_instead_of_one_t(found: Findings, ramp: Ramp, kept: str) -> str:
    """Why a ramp is to be served, and what one t would do."""
    metric, one = METRICS[found.objective], found.honest.scores[found.objective]
    expected = one - metric.sign * ramp.held_out
    return (
        f"Serve {ramp.recipe}, whose t runs from {ramp.first.value:g} in the first layer to {ramp.last.value:g} in the "
        f"last: the {metric.title} is {_better(metric, ramp.gained)} than at t = {found.best.t:g}, the best for all "
        f"layers{kept}. Expect {shown(metric, expected)} on new texts, and {shown(metric, one)} with one t."
    )


def _no_ramp(metric: Metric, ramp: Ramp) -> str:
    """That one t will do."""
    return (
        f" No t that runs over the layers is clearly better: with the best one, {ramp.recipe}, the {metric.title} is "
        f"{_better(metric, ramp.gained)}, and on held-out texts by {difference(metric, ramp.held_out)}."
    )


def _better(metric: Metric, gained: Value) -> str:
    low, high = difference(metric, gained.low), difference(metric, gained.high)
    return f"better by {difference(metric, gained.value)} ({low} to {high})"


def difference(metric: Metric, value: float) -> str:
    """A difference of a metric as a person reads it."""
    return f"{100 * value:+.1f} points" if metric.percent else f"{value:+.4f}"


def _reason(found: Findings) -> str:
    best, title = found.best, METRICS[found.objective].title
    if found.penalty.at_the_end:
        return f"the least {title} + {found.penalty.at_the_end:.3g} t^2"
    if found.rule == "best" or best.t == best.t_of_best_score:
        return f"the best {title}"
    return f"the smallest t whose {title} is within one standard error of the best (t = {best.t_of_best_score:g})"


def warnings_of(found: Findings, texts: int, groups: int) -> list[str]:
    """What a person should know before trusting the answer."""
    low, high = found.best.interval
    warnings = []
    if texts < ADVISED_TEXTS:
        warnings.append(
            f"{texts} labelled texts are few: the best t may be anywhere from {low:.2f} to {high:.2f}, an interval of "
            f"{high - low:.2f}; about {ADVISED_TEXTS} narrow it"
        )
    elif high - low > WIDE:
        warnings.append(f"these texts hardly tell t's apart: the best may be anywhere from {low:.2f} to {high:.2f}")
    if groups < FEW_GROUPS:
        warnings.append(f"{groups} groups are few to resample; take every interval as too narrow")
    warnings += [
        f"a {check.way} through the blends that were run missed the logits at t = {check.t:g} by {check.mean:.3f} on "
        "average, so more blends were run"
        for check in found.checks
        if check.way != found.way
    ]
    for blend in (found.start, found.chosen, found.end):
        if not 1.001 * LOWEST < blend.temperature < 0.999 * HIGHEST:
            warnings.append(f"{blend.recipe}: its temperature is at the end of the range ({blend.temperature:.2f})")
    warnings += [
        f"{about.name}: {about.repeated} texts occur more than once; these are resampled and held out together"
        for about in found.data
        if about.repeated and "group" not in about.columns
    ]
    warnings += [
        f"{guard.name} stays within {margin_of(guard)} in only {100 * guard.holds:.0f} % of the resamples; "
        "more of its texts would tell"
        for guard in found.guards
        if guard.holds < UNSURE
    ]
    return warnings
