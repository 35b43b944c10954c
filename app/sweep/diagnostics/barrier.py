"""Loss barrier between two recipes: the loss along their line, above the chord between its ends.

    B = max over t of  L(theta(t)) - ((1 - t) L(theta_start) + t L(theta_end))

(Frankle et al., arXiv 1912.05671, who call two networks connected if the error rises by less than 2 %.) Fine-tunes of
one base usually are. Its fine-tunes towards *different* tasks may not be (Juneja et al., arXiv 2205.12411), and models
of different ancestry are not. Without labels, the likeliest label by the ends' mean probabilities serves as the label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from app.sweep.choose_t import interval
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import DRAWS, WeightedPool
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.logits.logit_curve import Check, LogitCurve
from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.sweep.sweep_result import Value

TOLERATED = 0.02
"""Largest rise of the error above the chord that counts as connected."""


@dataclass(frozen=True)
class Step:
    """At a t: loss and error, and how far each is above the chord."""

    t: float
    loss: float
    error: float
    loss_above: float
    error_above: float


@dataclass(frozen=True)
class Barrier:
    """`height` is the largest loss above the chord, at `t`; `error` the largest error above its chord, at `error_t`."""

    line: str
    texts: int
    labelled: bool
    t: float
    height: Value
    error_t: float
    error: Value
    connected: bool
    steps: list[Step]
    way: str
    checks: list[Check]
    sentence: str


def barrier(line: Line, dataset: Dataset, passes: LogitCache, draws: int = DRAWS, seed: int = 0) -> Barrier:
    """Measure the barrier with as few passes as a sweep."""
    curve = LogitCurve(line, [dataset.texts], passes)
    labelled = dataset.labels is not None
    if not labelled:
        dataset = replace(dataset, labels=_answers_of_the_ends(curve))
    ts, pool = curve.ts, WeightedPool.of([dataset])
    outcome = ScoredTexts(curve.logits(0, ts), pool.labels)
    parts = np.concatenate([METRICS[name].parts(outcome) for name in ("loss", "accuracy")], axis=-1)  # (G, N, 2)
    parts[..., 1] = 1 - parts[..., 1]
    means = pool.mean(parts)
    above = _above_the_chord(means, ts)
    drawn = _above_the_chord(pool.resampled(parts, draws, seed), ts)
    highest = above.argmax(axis=0)  # of loss and of error
    low, high = interval(drawn[:, highest, [0, 1]])
    height, error = (Value(float(above[highest[k], k]), float(low[k]), float(high[k])) for k in (0, 1))
    found = Barrier(
        line=line.text,
        texts=len(dataset),
        labelled=labelled,
        t=float(ts[highest[0]]),
        height=height,
        error_t=float(ts[highest[1]]),
        error=error,
        connected=error.value < TOLERATED,
        steps=[Step(float(t), *map(float, (*m, *a))) for t, m, a in zip(ts, means, above, strict=True)],
        way=curve.way,
        checks=curve.checks,
        sentence="",
    )
    return replace(found, sentence=_sentence(found))


def _answers_of_the_ends(curve: LogitCurve) -> NDArray[np.int64]:
    """The likeliest label by the mean of both ends' probabilities, (N,)."""
    mean = softmax(curve.true(0, 0.0), axis=1) + softmax(curve.true(0, 1.0), axis=1)
    return np.asarray(mean.argmax(axis=1))


def _above_the_chord(means: NDArray[np.float64], ts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (..., G, K) less the line between their first and last along t."""
    t = ts[:, None]
    return np.asarray(means - ((1 - t) * means[..., :1, :] + t * means[..., -1:, :]))


def _sentence(found: Barrier) -> str:
    basis = f"{found.texts} {'labelled texts' if found.labelled else 'texts, judged by the answers of the ends'}"
    rise, loss = 100 * found.error.value, found.height.value
    if found.connected:
        return (
            f"{found.line} blends well: on {basis}, the error rises by at most {max(0, rise):.1f} points above the "
            f"line between the ends, and the log loss by {max(0, loss):.3f}."
        )
    low, high = 100 * found.error.low, 100 * found.error.high
    return (
        f"{found.line} has a barrier: on {basis}, the error at t = {found.error_t:g} is {rise:.1f} points "
        f"({low:.1f} to {high:.1f}) above the line between the ends, and the log loss {loss:.3f} at t = {found.t:g}."
    )
