"""From a choice to what is reported of it: scores with intervals, tests, guards. Blends are judged by true passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from app.sweep.baseline import baseline
from app.sweep.choose_t import first_guess, interval, mcnemar
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.logits.logit_curve import LogitCurve
from app.sweep.metrics_of_t import CURVE_METRICS, METRICS, ScoredTexts, reliability
from app.sweep.one_line import SLACK, Bounds, SweepChoice, held_out, held_out_scores
from app.sweep.report.summary import tell
from app.sweep.sweep_result import (
    About,
    Against,
    Best,
    Compared,
    GuardResult,
    HeldOutScores,
    MeasuredBlend,
    More,
    Penalty,
    Point,
    SweepResult,
    Value,
)
from app.sweep.sweep_spec import Guard, SweepSpec
from app.sweep.temperature_scaling import fitted_beta

FURTHER = 0.05
"""A t that lies no further beyond what a guard allows is not worth more texts."""

AGAINST: tuple[Against, ...] = get_args(Against)


def findings(
    spec: SweepSpec, curve: LogitCurve, choice: SweepChoice, passes: LogitCache, labels: Sequence[str]
) -> SweepResult:
    """All that is reported of a choice. The ends and the choice were run, so it costs no pass."""
    pool, ts = spec.pool, choice.judge.ts
    start, chosen, end = (_blend(spec, curve, t) for t in (0.0, choice.t, 1.0))
    right = [_pooled(spec, curve, t).argmax(axis=1) == pool.labels for t in (0.0, choice.t, 1.0)]
    found = SweepResult(
        line=spec.line.text,
        start_name=spec.line.start_name,
        end_name=spec.line.end_name,
        labels=list(labels),
        objective=spec.objective,
        rule=spec.rule,
        data=_about(spec),
        best=Best(
            t=choice.t,
            recipe=_with_temperature(spec, chosen),
            temperature=chosen.temperature,
            interval=choice.interval,
            interval_is="where the best t lies" if spec.objective == "loss" else "not shown to be worse",
            as_good=(float(ts[choice.chosen.as_good[0]]), float(ts[choice.chosen.as_good[1]])),
            t_of_best_score=float(ts[choice.chosen.best]),
            at_an_end=float(np.isin(choice.best_ts, (0.0, 1.0)).mean()),
        ),
        start=start,
        chosen=chosen,
        end=end,
        against_start=mcnemar(right[1], right[0]),
        against_end=mcnemar(right[1], right[2]),
        honest=_honest(spec, choice),
        gains=_gains(spec, choice, len(labels)),
        baseline={name: _baseline(spec, pool, len(labels)) for name, (_, pool) in spec.views.items()},
        groups=spec.pool.members,
        guards=[_kept(spec, curve, index, choice, start, chosen) for index in range(len(spec.guards))],
        penalty=_penalty(spec, choice),
        first_guess=_first_guess(spec, curve, choice.penalty),
        curve=_points(spec, curve, choice),
        compared=_compared(choice),
        way=curve.way,
        checks=curve.checks,
        passes=len(passes.recipes),
        passes_run=len(passes.run),
        seed=spec.seed,
        ramp_asked=spec.ramp,
    )
    tell(found)
    return found


def _with_temperature(spec: SweepSpec, blend: MeasuredBlend) -> str:
    return spec.line.cookbook.read(f"{blend.recipe};temperature={blend.temperature:.3g}").text


def _about(spec: SweepSpec) -> list[About]:
    def about(dataset: Dataset, role: str, share: float) -> About:
        counts = np.bincount(dataset.truth).tolist()
        columns = dict(dataset.columns)
        return About(dataset.name, role, share, len(dataset), dataset.repeated, counts, columns, dataset.digest)

    total = sum(spec.shares)
    targets = [about(d, "target", s / total) for d, s in zip(spec.targets, spec.shares, strict=True)]
    return targets + [about(guard.dataset, "guard", 0.0) for guard in spec.guards]


def _pooled(spec: SweepSpec, curve: LogitCurve, t: float) -> NDArray[np.float64]:
    """True logits (N, C) of the targets' texts."""
    return np.concatenate([curve.true(data, t) for data in range(len(spec.targets))])


def _blend(spec: SweepSpec, curve: LogitCurve, t: float) -> MeasuredBlend:
    logits, pool = _pooled(spec, curve, t), spec.pool
    beta = float(fitted_beta(logits, pool.labels, pool.weights))
    return MeasuredBlend(
        t=t,
        recipe=spec.line.at(t).text,
        temperature=1 / beta,
        data={
            name: _values(spec, pool, beta * np.concatenate([curve.true(d, t) for d in data])[None])[0]
            for name, (data, pool) in spec.views.items()
        },
        reliability=reliability(ScoredTexts(beta * logits, pool.labels), pool.weights),
        reliability_raw=reliability(ScoredTexts(logits, pool.labels), pool.weights),
    )


def _points(spec: SweepSpec, curve: LogitCurve, choice: SweepChoice) -> list[Point]:
    """Scores with their intervals at every twentieth of the line (of a grid, at every t), and at the choice."""
    ts = choice.judge.ts
    twentieths = np.abs(ts * 20 - np.round(ts * 20)) < 1e-6
    positions = np.flatnonzero(twentieths | (ts == choice.t) | bool(spec.grid))
    beta = choice.judge.beta[positions]
    values = {}
    for name, (data, pool) in spec.views.items():
        logits = np.concatenate([curve.logits(d, ts[positions]) for d in data], axis=1)
        values[name] = _values(spec, pool, logits * beta[:, None, None])
    return [
        Point(float(t), float(1 / b), {name: by_t[index] for name, by_t in values.items()})
        for index, (t, b) in enumerate(zip(ts[positions], beta, strict=True))
    ]


def _values(spec: SweepSpec, pool: WeightedPool, tempered: NDArray[np.float64]) -> list[dict[str, Value]]:
    """Each metric of a pool at each t, from logits (G, N, C)."""
    outcome = ScoredTexts(tempered, pool.labels, pool.groups, spec.cost)
    return _scored(spec, pool, outcome, _scorable(spec, pool))


def _baseline(spec: SweepSpec, pool: WeightedPool, classes: int) -> dict[str, Value]:
    """Each metric of the label frequencies alone; a mean cost is that of the label that is cheapest on average."""
    made: dict[str, Value] = {}
    for name in _scorable(spec, pool):
        outcome = baseline(pool, classes, spec.cost if name == "cost" else None)
        made |= _scored(spec, pool, replace(outcome, logits=outcome.logits[None]), [name])[0]
    return made


def _scored(spec: SweepSpec, pool: WeightedPool, outcome: ScoredTexts, names: Sequence[str]) -> list[dict[str, Value]]:
    """These metrics of outcomes with logits (G, N, C), each with its interval."""
    made: list[dict[str, Value]] = [{} for _ in outcome.logits]
    for name in names:
        metric = METRICS[name]
        parts = metric.parts(outcome)
        values = metric.score(pool.mean(parts))
        low, high = interval(metric.score(pool.resampled(parts, spec.draws, spec.seed)))
        for index, at_t in enumerate(made):
            at_t[name] = Value(float(values[index]), float(low[index]), float(high[index]))
    return made


def _scorable(spec: SweepSpec, pool: WeightedPool) -> list[str]:
    """The metrics of every curve, and the objective if this data set can be scored by it."""
    if spec.objective in CURVE_METRICS or (spec.objective == "worst_group" and pool.groups is None):
        return list(CURVE_METRICS)
    return [*CURVE_METRICS, spec.objective]


def _compared(choice: SweepChoice) -> list[Compared]:
    best = choice.chosen.best
    differences = choice.scores - choice.scores[best]
    low, high = interval(choice.resampled - choice.resampled[:, best : best + 1])
    return [
        Compared(float(t), float(score), Value(float(d), float(a), float(b)), bool(allowed))
        for t, score, d, a, b, allowed in zip(
            choice.judge.ts, choice.scores, differences, low, high, choice.feasible, strict=True
        )
    ]


def _honest(spec: SweepSpec, choice: SweepChoice) -> HeldOutScores:
    scores = held_out_scores(spec, choice.judge, choice.errors, choice.feasible, choice.penalty)
    by_time = choice.judge.pool.order is not None
    return HeldOutScores(
        scores={name: value for name, value in scores.items() if name != "objective"},
        optimism=scores["objective"] - float(choice.judge.scores()[choice.chosen.chosen]),
        folds=spec.folds,
        repeats=1 if by_time else spec.repeats,
        by_time=by_time,
    )


def _gains(spec: SweepSpec, choice: SweepChoice, classes: int) -> dict[Against, dict[str, Value]]:
    """What the procedure gains on held-out texts against both ends, held out alike, and the label frequencies."""
    pool, metrics = choice.judge.pool, {name: METRICS[name] for name in ("loss", "accuracy")}
    repeats = list(held_out(spec, choice.judge, choice.errors, choice.feasible, choice.penalty))
    tested = np.logical_or.reduce([each.tested for each in repeats])
    gained = np.zeros((len(AGAINST), len(pool), len(metrics)))
    for each in repeats:
        others = (each.start, each.end, baseline(pool, classes))
        for k, metric in enumerate(metrics.values()):
            ours, *theirs = (metric.sign * metric.parts(one)[..., 0] for one in (each.chosen, *others))
            gained[..., k] += (np.stack(theirs) - ours) / len(repeats)
    counted = np.broadcast_to(tested[:, None].astype(np.float64), (1, len(pool), len(metrics)))
    parts = np.concatenate([gained * tested[:, None], counted])
    means, drawn = pool.mean(parts), pool.resampled(parts, spec.draws, spec.seed)
    low, high = interval(drawn[:, :-1] / np.maximum(drawn[:, -1:], 1e-12))
    return {
        other: {
            name: Value(float(means[i, k] / means[-1, k]), float(low[i, k]), float(high[i, k]))
            for k, name in enumerate(metrics)
        }
        for i, other in enumerate(AGAINST)
    }


def _kept(
    spec: SweepSpec, curve: LogitCurve, index: int, choice: SweepChoice, start: MeasuredBlend, chosen: MeasuredBlend
) -> GuardResult:
    guard, bounds = spec.guards[index], choice.bounds[index]
    metric, pool = METRICS[guard.metric], WeightedPool.of([guard.dataset])
    data = len(spec.targets) + index
    logits = np.stack([curve.true(data, blend.t) / blend.temperature for blend in (start, chosen)])
    parts = metric.parts(ScoredTexts(logits, pool.labels))
    values = metric.score(pool.mean(parts))
    drawn = metric.sign * metric.score(pool.resampled(parts, spec.draws, spec.seed))
    worse = drawn[:, 1] - drawn[:, 0]
    low, high = interval(worse)
    lost, at = float(metric.sign * (values[1] - values[0])), choice.chosen.chosen
    return GuardResult(
        name=guard.dataset.name,
        metric=guard.metric,
        margin=guard.margin,
        confidence=guard.confidence,
        texts=len(pool),
        at_start=float(values[0]),
        at_chosen=float(values[1]),
        worse_by=Value(lost, float(low), float(high)),
        upper=lost + float(bounds.upper[at] - bounds.lost[at]) if at else 0.0,
        holds=float((worse <= guard.margin + SLACK).mean()),
        up_to=float(choice.judge.ts[np.flatnonzero(bounds.allowed)[-1]]),
        more=_more(guard, bounds, choice, len(pool)),
    )


def _more(guard: Guard, bounds: Bounds, choice: SweepChoice, texts: int) -> More | None:
    """How many texts would promise the best of the t's that lose at most half the margin; None if these do."""
    easy = bounds.lost <= guard.margin / 2 + SLACK
    at = int(np.where(easy, choice.scores, np.inf).argmin())
    left = guard.margin - float(bounds.lost[at])
    t, last = float(choice.judge.ts[at]), float(choice.judge.ts[np.flatnonzero(bounds.allowed)[-1]])
    if t - last < FURTHER or left <= SLACK:
        return None
    return More(t, ceil(texts * (float(bounds.upper[at] - bounds.lost[at]) / left) ** 2))


def _penalty(spec: SweepSpec, choice: SweepChoice) -> Penalty:
    length = spec.squared_length
    return Penalty(choice.penalty / length if length else 0.0, length, choice.penalty, spec.penalty == "folds")


def _first_guess(spec: SweepSpec, curve: LogitCurve, penalty: float) -> float:
    pool = spec.pool
    losses = [
        float(METRICS["loss"].of(ScoredTexts(_pooled(spec, curve, t), pool.labels), pool.weights))
        for t in (0.0, 0.5, 1.0)
    ]
    return first_guess(losses[0], losses[1], losses[2], penalty)
