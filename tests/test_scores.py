from __future__ import annotations

import math

import numpy as np
import pytest

from app.sweep.metrics_of_t import CURVE_METRICS, METRICS, ScoredTexts, reliability, scores

LOGITS = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
LABELS = np.array([0, 1, 2, 1])


def test_scores_of_known_predictions() -> None:
    result = scores(LOGITS, LABELS)
    assert result.accuracy == pytest.approx(0.75)
    assert result.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert result.log_loss == pytest.approx(-sum(map(math.log, (0.7, 0.3, 0.6, 0.8))) / 4)
    # Four bins with a text each: |.7 - 1|, |.6 - 0| and |.6 - 1| share one, |.8 - 1|.
    assert result.calibration_error == pytest.approx((0.3 + abs(0.6 + 0.6 - 1) + 0.2) / 4)


def test_brier_cost_and_worst_group_of_known_predictions() -> None:
    cost = np.array([[0, 1, 9], [2, 0, 1], [5, 1, 0.0]])
    outcome = ScoredTexts(LOGITS, LABELS, groups=np.array([0, 1, 1, 0]), cost=cost)
    squares = (0.3**2 + 0.2**2 + 0.1**2, 0.6**2 + 0.7**2 + 0.1**2, 0.2**2 + 0.2**2 + 0.4**2, 0.1**2 + 0.2**2 + 0.1**2)
    assert METRICS["brier"].of(outcome) == pytest.approx(sum(squares) / 4)
    assert METRICS["cost"].of(outcome) == pytest.approx(2 / 4), "the one mistake: neutral answered as negative"
    assert METRICS["worst_group"].of(outcome) == pytest.approx(-(math.log(0.3) + math.log(0.6)) / 2)


def test_a_class_that_never_occurs_counts_zero_in_macro_f1() -> None:
    outcome = ScoredTexts(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 0]))
    assert METRICS["macro_f1"].of(outcome) == pytest.approx(0.5)


def test_a_certain_and_right_classifier_has_no_calibration_error() -> None:
    assert METRICS["ece"].of(ScoredTexts(1e3 * np.eye(3), np.arange(3))) == 0


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_of_two_is_the_text_twice(name: str) -> None:
    rng = np.random.default_rng(5)
    logits, labels, groups = rng.normal(size=(2, 12, 3)), rng.integers(0, 3, 12), np.arange(12) % 3
    cost = rng.uniform(size=(3, 3))
    counts = rng.integers(1, 4, 12)
    again = np.repeat(np.arange(12), counts)
    weighted = METRICS[name].of(ScoredTexts(logits, labels, groups, cost), counts / counts.sum())
    repeated = METRICS[name].of(ScoredTexts(logits[:, again], labels[again], groups[again], cost))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-12)


def test_the_bins_of_a_reliability_diagram_hold_every_text_and_give_the_calibration_error() -> None:
    outcome = ScoredTexts(LOGITS, LABELS)
    bins = reliability(outcome, np.full(4, 0.25))
    assert sum(b.share for b in bins) == pytest.approx(1)
    assert all(b.low <= b.confidence <= b.high for b in bins)
    error = sum(b.share * abs(b.confidence - b.accuracy) for b in bins)
    assert error == pytest.approx(scores(LOGITS, LABELS).calibration_error)


def test_metrics_of_a_curve_need_nothing_but_labels() -> None:
    for name in CURVE_METRICS:
        assert np.isfinite(METRICS[name].of(ScoredTexts(LOGITS, LABELS)))
