"""How good predictions are: accuracy, macro-F1, log loss, calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Scores:
    """Accuracy and macro-F1 (higher is better), log loss in nats and calibration error (lower is better)."""

    accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits (N, C) against label indices (N,)."""
    logits = logits.double()
    predicted = logits.argmax(dim=1)
    return Scores(
        accuracy=(predicted == labels).double().mean().item(),
        macro_f1=macro_f1(predicted, labels, logits.shape[1]),
        log_loss=torch.nn.functional.cross_entropy(logits, labels).item(),
        calibration_error=calibration_error(logits.softmax(dim=1), labels),
    )


def macro_f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); a class that is neither present nor predicted counts 0."""
    values = []
    for c in range(classes):
        hits = ((predicted == c) & (labels == c)).sum().item()
        total = (predicted == c).sum().item() + (labels == c).sum().item()
        values.append(2 * hits / total if total else 0.0)
    return sum(values) / classes


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599): mean |confidence - accuracy| over equal-width bins
    of the confidence of probabilities (N, C), weighted by how many fall into each."""
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, (confidence - right).double())
    return gap.abs().sum().item() / len(labels)
