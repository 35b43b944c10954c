"""Which t, and how sure: pure arithmetic on scores along t and their bootstrap resamples.

The same texts are scored at every t, so what counts is the error of *differences*: the standard error of a score
would let through t's that are plainly worse (the one-standard-error rule of Hastie et al., The Elements of Statistical
Learning, 7.10, is meant here with the paired error).

Scores here are such that less is better. G t's, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

Rule = Literal["nearest", "best"]
"""`best`: the t of the best score. `nearest`: the smallest t that is not worse than the best by more than one paired
standard error, which changes the base least, at a price that the error allows."""

LEVEL = 0.95

STILL = 1e-9
"""A standard error below this is none."""


@dataclass(frozen=True)
class Chosen:
    """Positions in the list of t's: the best score, the choice, and the first and last that are as good as the best."""

    best: int
    chosen: int
    as_good: tuple[int, int]


def choose(scores: NDArray[np.float64], errors: NDArray[np.float64], feasible: NDArray[np.bool_], rule: Rule) -> Chosen:
    """The choice among the feasible t's from scores (G,) and the standard errors of their differences (G, G)."""
    allowed = np.where(feasible, scores, np.inf)
    best = int(allowed.argmin())
    good = np.flatnonzero(allowed <= scores[best] + errors[best])
    return Chosen(best, int(good[0]) if rule == "nearest" else best, (int(good[0]), int(good[-1])))


def paired_errors(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard errors of the differences between scores, (G, G), from resampled scores (B, G)."""
    covariance = np.atleast_2d(np.cov(resampled, rowvar=False))
    variance = covariance.diagonal()
    return np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0))


def interval(values: NDArray[np.float64], level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the percentile interval over the first axis (B, ...)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def not_worse(
    scores: NDArray[np.float64], resampled: NDArray[np.float64], feasible: NDArray[np.bool_], level: float = LEVEL
) -> NDArray[np.bool_]:
    """Which feasible t's are not shown to be worse than another one, (G,), from scores (G,) and resampled ones (B, G).

    The set holds the best t with the probability `level`: it goes when a difference between it and some other t, in
    standard errors, is larger than the largest one is by chance. Unlike the middle of the resamples' best t's, that is
    also true of scores that go in steps, such as accuracy, whose best t jumps about between resamples.
    """
    kept = np.flatnonzero(feasible)
    scores, resampled = scores[kept], resampled[:, kept]
    errors = paired_errors(resampled)
    worth = np.divide(1, errors, out=np.zeros_like(errors), where=errors > STILL)  # equal answers differ in nothing
    made = np.zeros(len(feasible), dtype=bool)
    for place, position in enumerate(kept):
        by_chance = (resampled[:, [place]] - resampled - (scores[place] - scores)) * worth[place]
        worse = ((scores[place] - scores) * worth[place]).max()
        made[position] = worse <= np.quantile(by_chance.max(axis=1), level)
    return made


def room_above(
    resampled: NDArray[np.float64], confidence: float, members: int, step: float, together: bool
) -> NDArray[np.float64]:
    """How far above differences (G,) their upper confidence bounds lie, from resampled ones (B, G) of `members`
    clusters.

    U = d + s (z + (2 z^2 + 1) g / 6): Student's quantile z, and a correction for the skewness g of a mean, without
    which bounds of losses with a long tail are too low (Johnson, JASA 73, 1978). A metric that goes in
    steps, 1 for a text, counts one more discordant cluster than there is, or few texts that all agree would promise
    anything (Agresti and Min, Statistics in Medicine 24, 2005). `together`: all G bounds hold at once.
    """
    centred = resampled - resampled.mean(axis=0)
    spread = centred.std(axis=0)
    skewness = np.divide((centred**3).mean(axis=0), spread**3, out=np.zeros_like(spread), where=spread > STILL)
    error = np.sqrt(spread**2 + (step / members) ** 2)
    z = float(student.ppf(confidence, max(members - 1, 1)))
    if together:
        standard = np.divide(-centred, error, out=np.zeros_like(centred), where=error > STILL)
        z = max(z, float(np.quantile(standard.max(axis=1), confidence)))
    return np.asarray(error * np.maximum(z + (2 * z**2 + 1) * skewness / 6, 0))


def best_of_each(
    resampled: NDArray[np.float64], ts: NDArray[np.float64], feasible: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The t of the best score in every resample (B, G): (B,)."""
    return np.asarray(ts[np.where(feasible, resampled, np.inf).argmin(axis=1)])


def first_guess(start: float, middle: float, end: float, penalty: float = 0.0) -> float:
    """The t in 0..1 where the parabola through the losses at t = 0, 1/2 and 1, plus penalty * t^2, is least.

    In closed form: with a = 2 (L0 - 2 Lh + L1) + penalty and b = -3 L0 + 4 Lh - L1 it is -b / 2a.
    """
    a = 2 * (start - 2 * middle + end) + penalty
    b = -3 * start + 4 * middle - end
    if a <= 0:
        return 0.0 if start <= end + penalty else 1.0
    return float(np.clip(-b / (2 * a), 0, 1))


@dataclass(frozen=True)
class McNemar:
    """Texts that only one of two blends answers rightly, and how likely as uneven a split is by chance (two-sided)."""

    only_chosen: int
    only_other: int
    p: float


def mcnemar(chosen_right: NDArray[np.bool_], other_right: NDArray[np.bool_]) -> McNemar:
    """The exact test on discordant pairs: is one of the two right more often?"""
    only_chosen = int((chosen_right & ~other_right).sum())
    only_other = int((other_right & ~chosen_right).sum())
    discordant = only_chosen + only_other
    p = float(binomtest(only_chosen, discordant).pvalue) if discordant else 1.0
    return McNemar(only_chosen, only_other, p)


PENALTIES = (0.0, *np.geomspace(1e-3, 1.0, 13).tolist())
"""Values of lambda |tau|^2, in nats at t = 1, that folds choose from."""


def fitted_penalty(honest_loss: Callable[[float], float]) -> float:
    """The penalty of least held-out loss; of equals, the largest, which stays nearest to the base."""
    losses = [honest_loss(penalty) for penalty in PENALTIES]
    return float(max(p for p, loss in zip(PENALTIES, losses, strict=True) if loss <= min(losses) + 1e-12))
