from __future__ import annotations

import math

import pytest
import torch

from app.search.scores import calibration_error, macro_f1, scores


def test_scores_of_known_predictions() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]))
    labels = torch.tensor([0, 1, 2, 1])
    result = scores(logits, labels)
    assert result.accuracy == pytest.approx(0.75)
    assert result.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert result.log_loss == pytest.approx(-sum(map(math.log, (0.7, 0.3, 0.6, 0.8))) / 4)
    # Four bins with a text each: |.7 - 1|, |.6 - 0| and |.6 - 1| share one, |.8 - 1|.
    assert result.calibration_error == pytest.approx((0.3 + abs(0.6 + 0.6 - 1) + 0.2) / 4)


def test_a_class_that_never_occurs_counts_zero_in_macro_f1() -> None:
    assert macro_f1(torch.tensor([0, 0]), torch.tensor([0, 0]), classes=2) == pytest.approx(0.5)


def test_a_certain_and_right_classifier_has_no_calibration_error() -> None:
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0
