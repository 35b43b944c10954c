"""Which t of a line is best on labelled texts, and which t's guards allow.

Five passes and a check draw the curve (`logit_curve.py`), every text is scored all along it at the temperature that
fits (`scorer.py`), the choice is made among the t's that keep the guards (`choose_t.py`), and the chosen blend is run
itself.

    minimise over t:  L(theta_start + t tau) + lambda t^2 |tau|^2     subject to every guard

Without a lambda the restraint may be the rule: the smallest t within a paired standard error of the best.

A guard allows a t where the upper confidence bound of what its metric loses keeps the margin. Along a line t's are
tested in their order from 0, and the first that fails ends it (fixed-sequence testing): if any t is allowed wrongly, so
is the first that loses too much, which is one t and one test, and no search over t's has to be paid for. Points that
have no order are all tested at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.sweep.choose_t import (
    Chosen,
    best_of_each,
    choose,
    fitted_penalty,
    interval,
    not_worse,
    paired_errors,
    room_above,
)
from app.sweep.data.cv_splits import Split, splits
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.logits.logit_curve import LogitCurve
from app.sweep.metrics_of_t import CURVE_METRICS, METRICS, ScoredTexts, ScoreMetric
from app.sweep.scorer import Scorer, ScoreSource
from app.sweep.sweep_spec import Guard, SweepSpec

SLACK = 1e-6
"""That rounding may take of a margin."""

LEAST_DRAWS = 400
"""Resamples that a guard's bounds are made from at least."""


@dataclass(frozen=True)
class Bounds:
    """What a guard's metric loses against t = 0, for G t's and B resamples.

    `lost` (G,) is the estimate, `upper` (G,) its upper confidence bound, `resampled` (B, G) the estimates of resamples.
    `allowed` (G,) and `allowed_resampled` (B, G) tell which t's keep the margin.
    """

    lost: NDArray[np.float64]
    upper: NDArray[np.float64]
    allowed: NDArray[np.bool_]
    allowed_resampled: NDArray[np.bool_]


@dataclass(frozen=True)
class SweepChoice:
    """A t, and all that it rests on, for G t's and B resamples.

    `scores` (G,) and `resampled` (B, G) are of the objective, less is better, `penalty * t^2` included. `feasible` (G,)
    tells which t's keep the guards, whose `bounds` they follow from; `best_ts` (B,) are the best t's of the resamples.
    """

    judge: Scorer
    penalty: float
    scores: NDArray[np.float64]
    resampled: NDArray[np.float64]
    errors: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    bounds: list[Bounds]
    best_ts: NDArray[np.float64]
    chosen: Chosen
    objective: str

    @property
    def t(self) -> float:
        return float(self.judge.ts[self.chosen.chosen])

    @property
    def interval(self) -> tuple[float, float]:
        """Where the best t lies, 95 %. For the log loss the middle of the resamples' best t's; for others, whose best t
        jumps about between resamples, the first and the last t that are not shown to be worse than another one."""
        if self.objective == "loss":
            low, high = interval(self.best_ts)
            return float(low), float(high)
        ts = self.judge.ts[not_worse(self.scores, self.resampled, self.feasible)]
        return float(ts.min()), float(ts.max())


def sweep(spec: SweepSpec, passes: LogitCache) -> tuple[LogitCurve, SweepChoice]:
    """Choose; what it costs is made through `passes`. What was found is put together by `evidence.findings`."""
    curve = LogitCurve(spec.line, [d.texts for d in spec.datasets], passes, spec.grid)
    choice = choice_of(spec, curve)
    while not curve.check(choice.t):
        choice = choice_of(spec, curve)
    return curve, choice


def choice_of(spec: SweepSpec, curve: ScoreSource) -> SweepChoice:
    """The choice among the t's of a curve (or the points of a surface), as far as its logits are to be believed."""
    judge = Scorer(curve, spec)
    bounds = [bounds_of(guard, curve, data, judge, spec) for data, guard in enumerate(spec.guards, len(spec.targets))]
    feasible = np.logical_and.reduce([np.ones(len(judge.ts), dtype=bool), *(b.allowed for b in bounds)])
    everywhere = np.ones((spec.draws, len(judge.ts)), dtype=bool)
    feasible_resampled = np.logical_and.reduce([everywhere, *(b.allowed_resampled for b in bounds)])
    scores, resampled = judge.scores(), judge.resampled()
    errors = paired_errors(resampled)
    if spec.penalty == "folds":
        penalty = fitted_penalty(lambda p: held_out_scores(spec, judge, errors, feasible, p)["objective"])
    else:
        penalty = spec.penalty * spec.squared_length
    penalties = penalty * judge.ts**2
    return SweepChoice(
        judge=judge,
        penalty=penalty,
        scores=scores + penalties,
        resampled=resampled + penalties,
        errors=errors,
        feasible=feasible,
        bounds=bounds,
        best_ts=best_of_each(resampled + penalties, judge.ts, feasible_resampled),
        chosen=choose(scores + penalties, errors, feasible, spec.rule),
        objective=spec.objective,
    )


def bounds_of(guard: Guard, curve: ScoreSource, data: int, judge: Scorer, spec: SweepSpec) -> Bounds:
    """What a guard, whose data set has this number, allows; t = 0 always."""
    pool, metric = WeightedPool.of([guard.dataset]), METRICS[guard.metric]
    parts = np.concatenate(
        [
            metric.parts(ScoredTexts(beta * curve.logits(data, np.array([t])), pool.labels))
            for t, beta in zip(judge.ts, judge.beta, strict=True)
        ]
    )
    lost = _lost(metric, pool.mean(parts))
    resampled = _lost(metric, pool.resampled(parts, max(spec.draws, LEAST_DRAWS), spec.seed))
    above = room_above(resampled, guard.confidence, pool.members, metric.step, together=not curve.ordered)
    resampled = resampled[: spec.draws]
    allowed, allowed_resampled = (_keeps(lost + above, guard, curve) for lost in (lost, resampled))
    return Bounds(lost, lost + above, allowed, allowed_resampled)


def _lost(metric: ScoreMetric, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the metric is worse than at t = 0, (..., G), from means (..., G, K)."""
    scores = metric.sign * metric.score(means)
    return np.asarray(scores - scores[..., :1])


def _keeps(upper: NDArray[np.float64], guard: Guard, curve: ScoreSource) -> NDArray[np.bool_]:
    """Which t's (..., G) keep the margin; along a line none beyond the first that does not."""
    keeps = upper <= guard.margin + SLACK
    keeps[..., 0] = True
    return np.asarray(np.logical_and.accumulate(keeps, axis=-1) if curve.ordered else keeps)


@dataclass(frozen=True)
class HeldOut:
    """One repeat of held-out answers: of the whole procedure, and of both ends at the temperature that fits them.

    In every split, t and temperature are chosen without the texts that judge them. A penalty that folds chose is not.
    """

    chosen: ScoredTexts
    start: ScoredTexts
    end: ScoredTexts
    tested: NDArray[np.bool_]


def held_out(
    spec: SweepSpec, judge: Scorer, errors: NDArray[np.float64], feasible: NDArray[np.bool_], penalty: float
) -> Iterator[HeldOut]:
    """Each repeat's answers to the texts (N,) that it tests."""
    for repeat in splits(judge.pool, spec.folds, spec.repeats, spec.seed):
        betas = [judge.beta_of(split) for split in repeat]
        at = [_position_of(split, spec, judge, errors, feasible, penalty) for split in repeat]

        def answered(positions: list[int], repeat: list[Split] = repeat, betas: list[Any] = betas) -> ScoredTexts:
            parts = zip(repeat, positions, betas, strict=True)
            return judge.held_out([(split, place, float(beta[place])) for split, place, beta in parts])

        start, end = (answered([place] * len(repeat)) for place in (0, len(judge.ts) - 1))
        yield HeldOut(answered(at), start, end, np.logical_or.reduce([split.test for split in repeat]))


def held_out_scores(
    spec: SweepSpec, judge: Scorer, errors: NDArray[np.float64], feasible: NDArray[np.bool_], penalty: float
) -> dict[str, float]:
    """Scores of the whole procedure on held-out texts, by metric, and as `objective` (less is better)."""
    totals: dict[str, list[float]] = {}
    for repeat in held_out(spec, judge, errors, feasible, penalty):
        weights = judge.pool.restricted(repeat.tested)
        for name in {*CURVE_METRICS, spec.objective}:
            totals.setdefault(name, []).append(float(METRICS[name].of(repeat.chosen, weights)))
    means = {name: float(np.mean(values)) for name, values in totals.items()}
    return {**means, "objective": spec.metric.sign * means[spec.objective]}


def _position_of(
    split: Split,
    spec: SweepSpec,
    judge: Scorer,
    errors: NDArray[np.float64],
    feasible: NDArray[np.bool_],
    penalty: float,
) -> int:
    """What the same procedure chooses from a split's training texts, of which there are fewer, so errors are larger."""
    wider = errors * np.sqrt(len(split.train) / split.train.sum())
    return choose(judge.scores_of(split) + penalty * judge.ts**2, wider, feasible, spec.rule).chosen
