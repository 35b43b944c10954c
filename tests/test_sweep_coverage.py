"""What sweeps say is true about as often as they say it: a small version of `tests/bench/sweep_coverage.py`."""

from __future__ import annotations

import numpy as np
import pytest
from bench.sweep_coverage import WORLD, covered, guarded
from scipy.stats import t as student

from app.sweep.choose_t import not_worse, room_above


def test_guards_keep_their_margin_on_other_texts_and_a_point_estimate_does_not() -> None:
    bound, estimate = guarded(WORLD, texts=500, margin=0.02, trials=40)
    assert bound.kept >= 33, "fewer has a chance of 2 in 100 where 90 % hold"
    assert bound.promised >= 30, "and not by refusing everything"
    assert estimate.kept <= 30, "the mend has something to mend"


@pytest.mark.parametrize("objective", ["accuracy", "loss"])
def test_where_the_best_t_lies_is_said_truly(objective: str) -> None:
    said, percentile = covered(WORLD, objective, texts=200, trials=40)
    assert said.held >= 34, "fewer has a chance of 3 in 1,000 where 95 % hold"
    assert said.width < 0.9
    assert objective == "loss" or percentile.held_of_others < said.held_of_others


def test_an_upper_bound_is_a_normal_one_where_nothing_is_skewed_and_higher_where_losses_have_a_tail() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.1, 0.02, (4000, 1))
    even = room_above(drawn, 0.9, members=50, step=0.0, together=False)
    assert even[0] == pytest.approx(student.ppf(0.9, 49) * 0.02, rel=0.06)
    tail = room_above(rng.gamma(4, 0.01, (4000, 1)), 0.9, members=50, step=0.0, together=False)
    assert tail[0] > 1.4 * 0.02
    assert room_above(drawn, 0.99, 50, 0.0, together=False)[0] > 1.7 * even[0]


def test_texts_that_all_agree_promise_no_more_than_so_many_can() -> None:
    same = np.zeros((400, 3))
    assert room_above(same, 0.9, members=50, step=1.0, together=False) == pytest.approx(0.026, abs=0.001)
    assert (room_above(same, 0.9, members=50, step=0.0, together=False) == 0).all()


def test_bounds_of_points_without_an_order_hold_together() -> None:
    drawn = np.random.default_rng(1).normal(size=(4000, 20))
    alone, together = (room_above(drawn, 0.9, 1000, 0.0, together=all_at_once) for all_at_once in (False, True))
    assert alone.mean() == pytest.approx(1.28, abs=0.05)
    assert together.mean() == pytest.approx(2.56, abs=0.12), "the 0.9 ^ (1 / 20) quantile"


def test_t_s_are_not_shown_to_be_worse_unless_some_allowed_t_is_better_beyond_chance() -> None:
    rng = np.random.default_rng(2)
    scores = np.array([0.5, 0.31, 0.3, 0.0])
    drawn = scores + rng.normal(0, 0.03, (2000, 4))
    allowed = np.array([True, True, True, False])
    np.testing.assert_array_equal(not_worse(scores, drawn, allowed), [False, True, True, False])
    same = np.full((2000, 4), 0.2)
    assert not_worse(same[0], same, np.ones(4, dtype=bool)).all()
