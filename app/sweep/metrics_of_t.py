"""How good predictions are: log loss, accuracy, macro-F1, calibration error, Brier score, cost, the worst group.

A metric is written as what each text adds, and what becomes of the (weighted) means: any resample, fold or mix of data
sets is then another weighting of the same numbers, one matrix product for thousands of resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

BINS = 15


@dataclass(frozen=True)
class ScoredTexts:
    """Logits (..., N, C), already divided by their temperature, and what is known of the texts.

    `labels` and `groups` (N,) are numbered from 0; `cost` (C, C) is what answering the column costs where the row is
    true.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    cost: NDArray[np.float64] | None = None

    @cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        return np.asarray(log_softmax(self.logits, axis=-1))

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The label of each answer, (..., N)."""
        return np.asarray(self.logits.argmax(axis=-1))

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """-log p of the true label, (..., N)."""
        return -self.log_probabilities[..., np.arange(len(self.labels)), self.labels]

    @property
    def classes(self) -> int:
        return int(self.logits.shape[-1])


@dataclass(frozen=True)
class ScoreMetric:
    """`parts` gives what each text adds, (..., N, K); `score` the metric from their weighted means (..., K)."""

    title: str
    parts: Callable[[ScoredTexts], NDArray[np.float64]]
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    higher_is_better: bool = False
    percent: bool = False

    def of(self, outcome: ScoredTexts, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """The metric over all texts, (...); weights (N,) add up to 1, none are equal ones."""
        n = len(outcome.labels)
        weights = np.full(n, 1 / n) if weights is None else weights
        return self.score(np.asarray(np.einsum("...nk,n->...k", self.parts(outcome), weights)))

    @property
    def sign(self) -> float:
        """What the metric is multiplied by so that less is better."""
        return -1.0 if self.higher_is_better else 1.0

    @property
    def step(self) -> float:
        """What the answer to one of n texts changes at once, times n: 0 for a metric that follows t evenly."""
        return 1.0 if self.percent else 0.0


def _only(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """A metric that is a mean."""
    return sums[..., 0]


def _loss_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    return outcome.losses[..., None]


def _accuracy_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    return np.asarray((outcome.predicted == outcome.labels)[..., None].astype(np.float64))


def _f1_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    """Per class: true positives, then predicted plus present, (..., N, 2 C)."""
    classes = np.arange(outcome.classes)
    predicted = (outcome.predicted[..., None] == classes).astype(np.float64)
    present = (outcome.labels[:, None] == classes).astype(np.float64)
    return np.concatenate([predicted * present, predicted + present], axis=-1)


def _f1_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over classes of 2 TP / (2 TP + FP + FN); a class that is neither present nor predicted counts 0."""
    hits, total = np.split(sums, 2, axis=-1)
    return np.asarray(np.where(total > 0, 2 * hits / np.where(total > 0, total, 1), 0.0).mean(axis=-1))


def _calibration_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    """Confidence less being right, in the column of its bin of confidence, (..., N, BINS)."""
    confidence = np.exp(outcome.log_probabilities.max(axis=-1))
    gap = confidence - (outcome.predicted == outcome.labels)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return np.asarray(gap[..., None] * (bins[..., None] == np.arange(BINS)))


def _calibration_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.abs(sums).sum(axis=-1))


def _brier_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    truth = outcome.labels[:, None] == np.arange(outcome.classes)
    return np.asarray(((np.exp(outcome.log_probabilities) - truth) ** 2).sum(axis=-1)[..., None])


def _cost_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    assert outcome.cost is not None, "this metric needs a cost matrix"
    return np.asarray(outcome.cost[outcome.labels, outcome.predicted][..., None])


def _group_parts(outcome: ScoredTexts) -> NDArray[np.float64]:
    """Per group: losses, then texts, (..., N, 2 S)."""
    assert outcome.groups is not None, "this metric needs groups"
    member = (outcome.groups[:, None] == np.arange(outcome.groups.max() + 1)).astype(np.float64)
    losses = outcome.losses[..., None]
    return np.concatenate([losses * member, np.broadcast_to(member, (*losses.shape[:-1], member.shape[1]))], axis=-1)


def _group_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest mean loss of a group."""
    losses, texts = np.split(sums, 2, axis=-1)
    return np.asarray(np.where(texts > 0, losses / np.where(texts > 0, texts, 1), -np.inf).max(axis=-1))


METRICS: dict[str, ScoreMetric] = {
    "loss": ScoreMetric("log loss", _loss_parts, _only),
    "accuracy": ScoreMetric("accuracy", _accuracy_parts, _only, higher_is_better=True, percent=True),
    "macro_f1": ScoreMetric("macro-F1", _f1_parts, _f1_score, higher_is_better=True, percent=True),
    "ece": ScoreMetric("calibration error", _calibration_parts, _calibration_score, percent=True),
    "brier": ScoreMetric("Brier score", _brier_parts, _only),
    "cost": ScoreMetric("mean cost", _cost_parts, _only),
    "worst_group": ScoreMetric("log loss of the worst group", _group_parts, _group_score),
}
"""`loss` is in nats. `ece` is the expected calibration error over 15 equal bins of confidence: biased upwards with few
texts, so a picture more than a goal. `cost` needs a matrix, `worst_group` a column of segments or groups."""

CURVE_METRICS = ("loss", "accuracy", "macro_f1", "ece", "brier")
"""Those that every data set can be scored by."""


@dataclass(frozen=True)
class Scores:
    """Accuracy and macro-F1 (higher is better), log loss in nats and calibration error (lower is better)."""

    accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float


def scores(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Scores:
    """Scores of logits (N, C) against label indices (N,)."""
    outcome = ScoredTexts(logits.astype(np.float64), labels)
    accuracy, macro_f1, loss, ece = (float(METRICS[m].of(outcome)) for m in ("accuracy", "macro_f1", "loss", "ece"))
    return Scores(accuracy, macro_f1, loss, ece)


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence is between `low` and `high`: their share, mean confidence, and how many are right."""

    low: float
    high: float
    share: float
    confidence: float
    accuracy: float


def reliability(outcome: ScoredTexts, weights: NDArray[np.float64]) -> list[Bin]:
    """The bins of a reliability diagram that hold any of the texts; logits (N, C), weights (N,) add up to 1."""
    confidence = np.exp(outcome.log_probabilities.max(axis=-1))
    right = outcome.predicted == outcome.labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    made = []
    for b in np.unique(bins):
        inside = bins == b
        w = weights[inside] / weights[inside].sum()
        made.append(
            Bin(
                low=float(b / BINS),
                high=float((b + 1) / BINS),
                share=float(weights[inside].sum()),
                confidence=float(w @ confidence[inside]),
                accuracy=float(w @ right[inside]),
            )
        )
    return made
