"""Which t of a line is best on labelled texts.

Five passes and a check draw the curve (`curve.py`), every text is scored all along it at the temperature that fits
(`judge.py`), the choice is made among the t's that keep the guards (`choice.py`), and the chosen blend is run itself.

    minimise over t:  L(theta_start + t tau) + lambda t^2 |tau|^2     subject to every guard

Without a lambda the restraint may be the rule: the smallest t within a paired standard error of the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.search.choice import Chosen, best_of_each, choose, fitted_penalty, paired_errors
from app.search.curve import Curve
from app.search.folds import Split, splits
from app.search.judge import Judge, Scored
from app.search.passes import Passes
from app.search.pool import Pool
from app.search.question import Guard, Question
from app.search.scores import CURVE_METRICS, METRICS, Outcome


@dataclass(frozen=True)
class Choice:
    """A t, and all that it rests on, for G t's and B resamples.

    `scores` (G,) and `resampled` (B, G) are of the objective, less is better, `penalty * t^2` included. `feasible` (G,)
    tells which t's keep the guards, `best_ts` (B,) are the best t's of the resamples.
    """

    judge: Judge
    penalty: float
    scores: NDArray[np.float64]
    resampled: NDArray[np.float64]
    errors: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    best_ts: NDArray[np.float64]
    chosen: Chosen

    @property
    def t(self) -> float:
        return float(self.judge.ts[self.chosen.chosen])


def sweep(question: Question, passes: Passes) -> tuple[Curve, Choice]:
    """Choose; what it costs is made through `passes`. What was found is put together by `evidence.findings`."""
    curve = Curve(question.line, [d.texts for d in question.datasets], passes, question.grid)
    choice = choice_of(question, curve)
    while not curve.check(choice.t):
        choice = choice_of(question, curve)
    return curve, choice


def choice_of(question: Question, curve: Scored) -> Choice:
    """The choice among the t's of a curve (or the points of a surface), as far as its logits are to be believed."""
    judge = Judge(curve, question)
    feasible, feasible_resampled = _feasible(question, curve, judge)
    scores, resampled = judge.scores(), judge.resampled()
    errors = paired_errors(resampled)
    if question.penalty == "folds":
        penalty = fitted_penalty(lambda p: held_out_scores(question, judge, errors, feasible, p)["objective"])
    else:
        penalty = question.penalty * question.squared_length
    penalties = penalty * judge.ts**2
    best_ts = best_of_each(resampled + penalties, judge.ts, feasible_resampled)
    chosen = choose(scores + penalties, errors, feasible, question.rule)
    return Choice(judge, penalty, scores + penalties, resampled + penalties, errors, feasible, best_ts, chosen)


def _feasible(question: Question, curve: Scored, judge: Judge) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which t's keep every guard, (G,), and the same in every resample of the guards' texts, (B, G).

    t = 0 always does.
    """
    feasible = np.ones(len(judge.ts), dtype=bool)
    resampled = np.ones((question.draws, len(judge.ts)), dtype=bool)
    for data, guard in enumerate(question.guards, start=len(question.targets)):
        pool = Pool.of([guard.dataset])
        parts = np.concatenate(
            [
                METRICS[guard.metric].parts(Outcome(beta * curve.logits(data, np.array([t])), pool.labels))
                for t, beta in zip(judge.ts, judge.beta, strict=True)
            ]
        )
        feasible &= _within(guard, pool.mean(parts))
        resampled &= _within(guard, pool.resampled(parts, question.draws, question.seed))
    return feasible, resampled


def _within(guard: Guard, means: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the metric is within the margin, (..., G), from means (..., G, K)."""
    metric = METRICS[guard.metric]
    scores = metric.sign * metric.score(means)
    return np.asarray(scores <= scores[..., :1] + guard.margin + 1e-6)


def held_out_scores(
    question: Question, judge: Judge, errors: NDArray[np.float64], feasible: NDArray[np.bool_], penalty: float
) -> dict[str, float]:
    """Scores of the whole procedure on held-out texts, by metric, and as `objective` (less is better).

    In every split, t and temperature are chosen without the texts that judge them. A penalty that folds chose is not.
    """
    totals: dict[str, list[float]] = {}
    for repeat in splits(judge.pool, question.folds, question.repeats, question.seed):
        choices = []
        for split in repeat:
            position = _position_of(split, question, judge, errors, feasible, penalty)
            choices.append((split, position, float(judge.beta_of(split)[position])))
        outcome = judge.held_out(choices)
        weights = judge.pool.restricted(np.logical_or.reduce([split.test for split in repeat]))
        for name in {*CURVE_METRICS, question.objective}:
            totals.setdefault(name, []).append(float(METRICS[name].of(outcome, weights)))
    means = {name: float(np.mean(values)) for name, values in totals.items()}
    return {**means, "objective": question.metric.sign * means[question.objective]}


def _position_of(
    split: Split,
    question: Question,
    judge: Judge,
    errors: NDArray[np.float64],
    feasible: NDArray[np.bool_],
    penalty: float,
) -> int:
    """What the same procedure chooses from a split's training texts, of which there are fewer, so errors are larger."""
    wider = errors * np.sqrt(len(split.train) / split.train.sum())
    return choose(judge.scores_of(split) + penalty * judge.ts**2, wider, feasible, question.rule).chosen
