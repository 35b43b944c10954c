from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from app.sweep.choose_t import (
    PENALTIES,
    best_of_each,
    choose,
    first_guess,
    fitted_penalty,
    interval,
    mcnemar,
    paired_errors,
)

TS = np.linspace(0, 1, 11)
ALL = np.ones(11, dtype=bool)


def test_the_nearest_is_the_smallest_t_within_a_paired_error_of_the_best() -> None:
    scores = (TS - 0.6) ** 2
    chosen = choose(scores, np.full((11, 11), 0.045), ALL, "nearest")
    assert (chosen.best, chosen.chosen, chosen.as_good) == (6, 4, (4, 8)), "0.4 is off by 0.04, 0.3 by 0.09"
    assert choose(scores, np.full((11, 11), 0.045), ALL, "best").chosen == 6


def test_t_s_that_break_a_guard_are_not_chosen() -> None:
    scores = (TS - 0.6) ** 2
    assert choose(scores, np.zeros((11, 11)), TS < 0.35, "best").chosen == 3


@given(st.lists(st.floats(0, 1), min_size=11, max_size=11), st.floats(0, 0.5))
def test_a_larger_error_never_moves_the_choice_away_from_the_base(values: list[float], error: float) -> None:
    scores = np.array(values)
    near = choose(scores, np.full((11, 11), error), ALL, "nearest")
    nearer = choose(scores, np.full((11, 11), 2 * error), ALL, "nearest")
    assert nearer.chosen <= near.chosen <= near.best
    assert scores[near.chosen] <= scores[near.best] + error


def test_paired_errors_are_the_deviations_of_the_differences() -> None:
    drawn = np.random.default_rng(0).normal(size=(500, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    errors = paired_errors(drawn)
    for i in range(4):
        for j in range(4):
            assert errors[i, j] == pytest.approx((drawn[:, i] - drawn[:, j]).std(ddof=1), abs=1e-6)


def test_the_interval_holds_its_share_of_values() -> None:
    low, high = interval(np.arange(2001.0)[:, None])
    assert (low[0], high[0]) == (pytest.approx(50), pytest.approx(1950))


def test_the_best_t_of_a_resample_keeps_that_resample_s_guards() -> None:
    scores = np.stack([(TS - 0.6) ** 2, (TS - 0.2) ** 2])
    feasible = np.stack([TS <= 0.4, ALL])
    np.testing.assert_allclose(best_of_each(scores, TS, feasible), [0.4, 0.2])


@given(st.floats(0.05, 0.95), st.floats(0.1, 5), st.floats(0, 3))
def test_the_first_guess_is_exact_on_a_parabola(t: float, curvature: float, penalty: float) -> None:
    def loss(x: float) -> float:
        return 0.4 + curvature * (x - t) ** 2

    expected = curvature * t / (curvature + penalty)
    assert first_guess(loss(0), loss(0.5), loss(1), penalty) == pytest.approx(expected, abs=1e-6)


def test_without_a_valley_the_first_guess_is_the_better_end() -> None:
    assert first_guess(1.0, 0.9, 0.4) == 1.0
    assert first_guess(0.4, 0.9, 1.0) == 0.0
    assert first_guess(1.0, 0.7, 0.5) == 1.0, "a valley beyond the end is the end"


@pytest.mark.parametrize(("ours", "theirs"), [(9, 2), (0, 7), (5, 5), (0, 0)])
def test_mcnemar_is_the_exact_binomial_test_on_discordant_pairs(ours: int, theirs: int) -> None:
    chosen = np.array([True] * ours + [False] * theirs + [True] * 30 + [False] * 10)
    other = np.array([False] * ours + [True] * theirs + [True] * 30 + [False] * 10)
    test = mcnemar(chosen, other)
    assert (test.only_chosen, test.only_other) == (ours, theirs)
    tail = 2 * binom.cdf(min(ours, theirs), ours + theirs, 0.5)
    assert test.p == pytest.approx(min(1, tail))


def test_folds_take_the_penalty_of_least_held_out_loss_and_the_larger_of_equals() -> None:
    assert fitted_penalty(lambda penalty: (np.log10(penalty + 1e-9) + 1) ** 2) == pytest.approx(0.1)
    assert fitted_penalty(lambda penalty: 0.5) == max(PENALTIES)
