"""A sweep's findings in plain words: every sentence that a report can say, with the fact that it needs.

A `SweepSentence` is said once for each thing that its `facts` give, and not at all where they give none; so nothing is
said that was not found, and `tests/test_sentences.py` makes each of them from data. `SENTENCES` are the answer, in
their order, and `WARNINGS` what a person should know before trusting it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from app.sweep.data.dataset import ADVISED_TEXTS
from app.sweep.diagnostics.robustness import ATTACK
from app.sweep.metrics_of_t import METRICS, ScoreMetric
from app.sweep.sweep_result import GuardResult, SweepResult, Value
from app.sweep.sweep_spec import TOGETHER
from app.sweep.temperature_scaling import HIGHEST, LOWEST

WIDE = 0.5
"""An interval of t wider than this says little."""

FEW_GROUPS = 20

Facts = Callable[[SweepResult], Iterable[Any]]
"""What a sentence is about; nothing where it would not be true."""


@dataclass(frozen=True)
class SweepSentence:
    name: str
    facts: Facts
    says: Callable[[SweepResult, Any], str]


def tell(found: SweepResult) -> None:
    """Put the answer and the warnings into the findings."""
    found.sentence = " ".join(said(SENTENCES, found))
    found.warnings = said(WARNINGS, found)


def said(sentences: Iterable[SweepSentence], found: SweepResult) -> list[str]:
    """Those that the findings bear out."""
    return [sentence.says(found, fact) for sentence in sentences for fact in sentence.facts(found)]


def once(is_so: Callable[[SweepResult], bool]) -> Facts:
    """A sentence about the sweep as a whole."""
    return lambda found: [None] if is_so(found) else []


# -- how figures are written ---------------------------------------------------------------------------------


def shown(metric: ScoreMetric, value: float) -> str:
    """A metric's value as a person reads it."""
    return f"{100 * value:.1f} %" if metric.percent else f"{value:.3f}"


def amount(metric: ScoreMetric, value: float) -> str:
    """A margin as it was given."""
    if not metric.percent:
        return f"{value:g}"
    return "1 point" if round(100 * value, 6) == 1 else f"{100 * value:g} points"


def margin_of(guard: GuardResult) -> str:
    return amount(METRICS[guard.metric], guard.margin)


def difference(metric: ScoreMetric, value: float) -> str:
    """A difference of a metric as a person reads it."""
    return f"{100 * value:+.1f} points" if metric.percent else f"{value:+.4f}"


def span_of(low: float, high: float) -> str:
    """An interval of t."""
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _title(found: SweepResult) -> str:
    return METRICS[found.objective].title


def _allowed(found: SweepResult) -> str:
    return "" if all(at.allowed for at in found.compared) else " that the guards allow"


def _better(metric: ScoreMetric, gained: Value) -> str:
    low, high = difference(metric, gained.low), difference(metric, gained.high)
    return f"better by {difference(metric, gained.value)} ({low} to {high})"


def _gained(metric: ScoreMetric, gain: Value) -> str:
    """A gain with its interval and the sign that it has in the metric itself: -0.050 of log loss is better."""
    sign, scale = (1, 100) if metric.percent else (-1, 1)
    ends = sorted(sign * scale * end for end in (gain.low, gain.high))
    if metric.percent:
        return f"{metric.title} {scale * sign * gain.value:+.1f} points ({ends[0]:+.1f} to {ends[1]:+.1f})"
    return f"{metric.title} {sign * gain.value:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})"


# -- the facts -----------------------------------------------------------------------------------------------


def _is_ramp(found: SweepResult) -> bool:
    return found.ramp is not None and found.ramp.better


def _is_penalised(found: SweepResult) -> bool:
    return not _is_ramp(found) and found.penalty.at_the_end > 0


def _is_nearest(found: SweepResult) -> bool:
    return (
        not _is_ramp(found)
        and not _is_penalised(found)
        and found.rule == "nearest"
        and found.best.t != found.best.t_of_best_score
    )


def _is_best(found: SweepResult) -> bool:
    return not (_is_ramp(found) or _is_penalised(found) or _is_nearest(found))


def _without_reading(found: SweepResult, name: str) -> float:
    """The score of the label frequencies on all targets."""
    return found.baseline[TOGETHER if TOGETHER in found.baseline else found.data[0].name][name].value


def _measure(found: SweepResult) -> str:
    """What is compared with the label frequencies, which are calibrated and yet worth nothing."""
    return "loss" if found.objective == "ece" else found.objective


def _falls_behind(found: SweepResult) -> bool:
    """The held-out score is no better than that of the label frequencies."""
    name = _measure(found)
    return METRICS[name].sign * (found.honest.scores[name] - _without_reading(found, name)) >= 0


def _kept(found: SweepResult) -> list[GuardResult]:
    """Guards whose promise means something: the base keeps them all."""
    return found.guards if found.best.t > 0 or _is_ramp(found) else []


def _binding(found: SweepResult) -> list[GuardResult]:
    """Guards that leave the start alone."""
    return [guard for guard in found.guards if guard.up_to == 0]


def _lies_at_an_end(found: SweepResult) -> bool:
    low, high = found.best.interval
    return _says_where(found) and low == high and low in (0, 1)


def _says_where(found: SweepResult) -> bool:
    return found.best.interval_is == "where the best t lies" and not _is_ramp(found)


def _says_which(found: SweepResult) -> bool:
    return found.best.interval_is == "not shown to be worse" and not _is_ramp(found)


def _width(found: SweepResult) -> float:
    low, high = found.best.interval
    return high - low


def _between(found: SweepResult) -> str:
    low, high = found.best.interval
    return f"{low:.2f} and {high:.2f}"


def _hardly_apart(found: SweepResult) -> bool:
    return _texts(found) >= ADVISED_TEXTS and _width(found) > WIDE


def _texts(found: SweepResult) -> int:
    return sum(about.texts for about in found.data if about.role == "target")


# -- the answer ----------------------------------------------------------------------------------------------


def _serve_ramp(found: SweepResult, _: None) -> str:
    """Why a ramp is to be served, and what one t would do."""
    assert found.ramp is not None
    ramp, metric, one = found.ramp, METRICS[found.objective], found.honest.scores[found.objective]
    return (
        f"Serve {ramp.recipe}, whose t runs from {ramp.first.value:g} in the first layer to {ramp.last.value:g} in the "
        f"last: the {metric.title} is {_better(metric, ramp.gained)} than at t = {found.best.t:g}, the best for all "
        f"layers. Expect {shown(metric, one - metric.sign * ramp.held_out)} on new texts, and {shown(metric, one)} "
        "with one t."
    )


def _no_ramp(found: SweepResult, _: None) -> str:
    assert found.ramp is not None
    metric, ramp = METRICS[found.objective], found.ramp
    return (
        f"No t that runs over the layers is clearly better: with the best one, {ramp.recipe}, the {metric.title} is "
        f"{_better(metric, ramp.gained)}, and on held-out texts by {difference(metric, ramp.held_out)}."
    )


def _expect(found: SweepResult, _: None) -> str:
    names = dict.fromkeys((found.objective, "loss", "accuracy"))
    scores = [f"{METRICS[name].title} {shown(METRICS[name], found.honest.scores[name])}" for name in names]
    return f"Expect on new texts: {', '.join(scores)}."


def _against(found: SweepResult, other: str) -> str:
    name = found.start_name if other == "start" else found.end_name
    gains = found.gains[other]  # type: ignore[index]  # one of its names
    return f"Against {name}: {', '.join(_gained(METRICS[metric], gain) for metric, gain in gains.items())}."


def _guard_kept(found: SweepResult, guard: GuardResult) -> str:
    metric = METRICS[guard.metric]
    return (
        f"It keeps {metric.title} on {guard.name} within {margin_of(guard)} of {found.start_name} "
        f"({100 * guard.confidence:g} % sure, from {guard.texts} texts)."
    )


def _guard_needs_more(found: SweepResult, guard: GuardResult) -> str:
    assert guard.more is not None
    return f"{_nothing_promised(guard)}; about {guard.more.texts:,} would do for t = {guard.more.t:g}."


def _guard_refuses(found: SweepResult, guard: GuardResult) -> str:
    return f"{_nothing_promised(guard)}, and on these no better t loses less than half of that."


def _nothing_promised(guard: GuardResult) -> str:
    return (
        f"With {guard.texts} texts of {guard.name} no t above 0 can be promised to keep {METRICS[guard.metric].title} "
        f"there within {margin_of(guard)} ({100 * guard.confidence:g} % sure)"
    )


def _behind(found: SweepResult, _: None) -> str:
    metric, alone = METRICS[_measure(found)], _without_reading(found, _measure(found))
    return f"Label frequencies alone, without a look at the text, do no worse: {metric.title} {shown(metric, alone)}."


SENTENCES = (
    SweepSentence("serve a ramp", once(_is_ramp), _serve_ramp),
    SweepSentence(
        "serve the best",
        once(_is_best),
        lambda found, _: f"Serve {found.best.recipe}: the best {_title(found)} along {found.line}{_allowed(found)}.",
    ),
    SweepSentence(
        "serve the least penalised",
        once(_is_penalised),
        lambda found, _: f"Serve {found.best.recipe}: the least {_title(found)} + {found.penalty.at_the_end:.3g} t^2.",
    ),
    SweepSentence(
        "serve the nearest",
        once(_is_nearest),
        lambda found, _: (
            f"Serve {found.best.recipe}: the smallest t whose {_title(found)} is within one standard error of the best "
            f"(t = {found.best.t_of_best_score:g})."
        ),
    ),
    SweepSentence("a guard is kept", _kept, _guard_kept),
    SweepSentence("a guard needs more texts", lambda found: [g for g in _binding(found) if g.more], _guard_needs_more),
    SweepSentence("a guard refuses", lambda found: [g for g in _binding(found) if not g.more], _guard_refuses),
    SweepSentence("expect", once(lambda found: not _is_ramp(found)), _expect),
    SweepSentence("no better than label frequencies", once(_falls_behind), _behind),
    SweepSentence(
        "against the start",
        lambda found: [] if _is_ramp(found) or found.best.t == 0 else ["start"],
        _against,
    ),
    SweepSentence(
        "against the end",
        lambda found: [] if _is_ramp(found) or found.best.t == 1 else ["end"],
        _against,
    ),
    SweepSentence(
        "the best t lies between",
        once(lambda found: _says_where(found) and not _lies_at_an_end(found)),
        lambda found, _: f"The best t lies between {_between(found)} (95 %).",
    ),
    SweepSentence(
        "the best t is an end",
        once(_lies_at_an_end),
        lambda found, _: (
            f"The best t is {found.best.interval[0]:g}, an end of the line: nothing between is better (95 %)."
        ),
    ),
    SweepSentence(
        "t's not shown to be worse",
        once(lambda found: _says_which(found) and 0 < _width(found) < 1),
        lambda found, _: (
            f"The t's whose {_title(found)} is not shown to be worse lie between {_between(found)} (95 %)."
        ),
    ),
    SweepSentence(
        "no t shown to be worse",
        once(lambda found: _says_which(found) and _width(found) == 1),
        lambda found, _: f"These texts show neither end of the line to have a worse {_title(found)} (95 %).",
    ),
    SweepSentence(
        "all other t's shown to be worse",
        once(lambda found: _says_which(found) and _width(found) == 0),
        lambda found, _: f"Every other t is shown to have a worse {_title(found)} (95 %).",
    ),
    SweepSentence(
        "a smaller t is as good",
        once(lambda found: not _is_ramp(found) and found.best.as_good[0] < found.best.t),
        lambda found, _: f"t = {found.best.as_good[0]:.2f} is within one standard error of it.",
    ),
    SweepSentence("no ramp is better", once(lambda found: found.ramp is not None and not found.ramp.better), _no_ramp),
)


# -- the warnings --------------------------------------------------------------------------------------------


def _few_texts(found: SweepResult, _: None) -> str:
    low, high = found.best.interval
    return (
        f"{_texts(found)} labelled texts are few: the best t may be anywhere from {low:.2f} to {high:.2f}, an interval "
        f"of {high - low:.2f}; about {ADVISED_TEXTS} narrow it"
    )


def _promises_less(found: SweepResult, guard: GuardResult) -> str:
    assert guard.more is not None
    return (
        f"{guard.texts} texts of {guard.name} promise no t above {guard.up_to:g} ({100 * guard.confidence:g} % sure); "
        f"about {guard.more.texts:,} would promise t = {guard.more.t:g}"
    )


def _at_the_end_of_the_range(found: SweepResult) -> list[Any]:
    blends = {blend.t: blend for blend in (found.start, found.chosen, found.end)}.values()
    return [blend for blend in blends if not 1.001 * LOWEST < blend.temperature < 0.999 * HIGHEST]


def _hardly_ahead(found: SweepResult) -> bool:
    return found.objective == "loss" and not _falls_behind(found) and found.gains["baseline"]["loss"].low <= 0


def _as_the_majority(found: SweepResult) -> bool:
    return found.honest.scores["accuracy"] <= _without_reading(found, "accuracy") and found.objective != "accuracy"


WARNINGS = (
    SweepSentence("few texts", once(lambda found: _texts(found) < ADVISED_TEXTS), _few_texts),
    SweepSentence(
        "t's hardly told apart",
        once(_hardly_apart),
        lambda found, _: (
            "these texts hardly tell t's apart: the best may be anywhere from "
            f"{found.best.interval[0]:.2f} to {found.best.interval[1]:.2f}"
        ),
    ),
    SweepSentence(
        "few groups",
        once(lambda found: found.groups < FEW_GROUPS),
        lambda found, _: f"{found.groups} groups are few to resample; take every interval as too narrow",
    ),
    SweepSentence(
        "hardly better than label frequencies",
        once(_hardly_ahead),
        lambda found, _: (
            "it is not shown to be better than the label frequencies alone, whose log loss is "
            f"{_without_reading(found, 'loss'):.3f}"
        ),
    ),
    SweepSentence(
        "no more accurate than the majority",
        once(_as_the_majority),
        lambda found, _: (
            "answering every text with the commonest label is right as often or more often: in "
            f"{100 * _without_reading(found, 'accuracy'):.1f} %"
        ),
    ),
    SweepSentence(
        "a guard promises less", lambda found: [g for g in found.guards if g.more and g.up_to > 0], _promises_less
    ),
    SweepSentence(
        "more blends were run",
        lambda found: [check for check in found.checks if check.way != found.way],
        lambda found, check: (
            f"a {check.way} through the blends that were run missed the logits at t = {check.t:g} by {check.mean:.3f} "
            "on average, so more blends were run"
        ),
    ),
    SweepSentence(
        "temperature at the end of its range",
        _at_the_end_of_the_range,
        lambda found, blend: f"{blend.recipe}: its temperature is at the end of the range ({blend.temperature:.2f})",
    ),
    SweepSentence(
        "texts occur again",
        lambda found: [about for about in found.data if about.repeated and "group" not in about.columns],
        lambda found, about: (
            f"{about.name}: {about.repeated} texts occur more than once; these are resampled and held out together"
        ),
    ),
    SweepSentence(
        "no ramp was looked for",
        once(lambda found: found.ramp_asked and found.way == "run"),
        lambda found, _: "logits change too unevenly along the line to look beside it, so no ramp was looked for",
    ),
    SweepSentence(
        "no ramp is allowed",
        once(lambda found: found.ramp_asked and found.way != "run" and found.ramp is None),
        lambda found, _: "the guards allow none of the ramps that were run",
    ),
    SweepSentence(
        "figures are of one t",
        once(_is_ramp),
        lambda found, _: f"what is told of scores, guards and robustness is of t = {found.best.t:g} in all layers",
    ),
    SweepSentence(
        "texts were not attacked",
        once(lambda found: bool(found.robustness) and ATTACK not in found.robustness),
        lambda found, _: (
            "texts were perturbed but not attacked: an attack needs gradients, which `tween sweep` has where it loads "
            "the bank itself"
        ),
    ),
)
