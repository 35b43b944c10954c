"""Tests that are looked at daily err as often as they say, and find what they are planned to find."""

from __future__ import annotations

import math

import pytest

from app.experiments.stats import power, sequential_tests
from tests.simulations import moved_plan, peek

DAYS, PER_DAY = 30, 500
LOOKS = tuple(day / DAYS for day in range(1, DAYS + 1))
GROUP_SEQUENTIAL = sequential_tests.bounds(LOOKS)
SEQUENCE = [sequential_tests.sequence_critical(2 * PER_DAY * day) for day in range(1, DAYS + 1)]
CHANCE = 3 * math.sqrt(0.05 * 0.95 / 2_000)
"""What 2,000 runs may stray from 5 % by chance."""


def test_looking_daily_at_a_fixed_test_goes_wrong() -> None:
    """What all this is about: a textbook test of two equal arms, looked at for a month."""
    assert peek([1.96] * DAYS, PER_DAY).found > 0.2


def test_a_group_sequential_test_errs_in_5_of_100() -> None:
    assert sequential_tests.power(LOOKS, drift=0.0) == pytest.approx(0.05, abs=1e-6)
    assert peek(GROUP_SEQUENTIAL, PER_DAY).found == pytest.approx(0.05, abs=CHANCE)


def test_a_group_sequential_test_errs_as_often_when_looks_come_unevenly() -> None:
    uneven = (0.02, 0.04, 0.3, 0.31, 0.32, 0.8, 1.0)
    assert sequential_tests.power(uneven, drift=0.0) == pytest.approx(0.05, abs=1e-5)


def test_a_confidence_sequence_errs_in_less_than_5_of_100() -> None:
    found = peek(SEQUENCE, PER_DAY)
    assert found.found <= 0.05
    assert found.covered >= 0.95


@pytest.mark.parametrize("lift", [0.01, -0.03])
def test_intervals_of_a_sequence_hold_the_truth_at_all_looks_at_once(lift: float) -> None:
    assert peek(SEQUENCE, PER_DAY, lift=lift).covered >= 0.95


def test_a_group_sequential_interval_holds_the_truth_at_all_looks_at_once() -> None:
    assert peek(GROUP_SEQUENTIAL, PER_DAY, lift=0.01).covered >= 0.95 - CHANCE


def test_a_plan_that_is_moved_to_each_look_finds_nothing_more() -> None:
    assert moved_plan(amend=False) > 0.12, "what all this is about"
    assert moved_plan(amend=True) <= 0.05


def test_the_planned_units_find_the_planned_effect_as_often_as_planned() -> None:
    rate, lift = 0.1, 0.01
    units = power.units_per_arm(lift, rate * (1 - rate), (rate + lift) * (1 - rate - lift), looks=DAYS)
    found = peek(GROUP_SEQUENTIAL, round(units / DAYS), rate, lift, runs=4_000)
    assert found.found == pytest.approx(0.8, abs=0.02)
    assert found.day < 0.8 * DAYS  # on average it is over early


def test_looking_more_often_takes_more_units() -> None:
    costs = [sequential_tests.inflation(looks, 0.8) for looks in (1, 5, 20)]
    assert costs == sorted(costs) and costs[0] == pytest.approx(1, abs=1e-3) and costs[-1] < 1.06


def test_what_is_spent_grows_to_alpha_and_no_further() -> None:
    assert sequential_tests.spent(0) == 0
    assert sequential_tests.spent(0.5) < 0.006
    assert sequential_tests.spent(1) == pytest.approx(0.05) == sequential_tests.spent(1.3)


def test_looks_beyond_the_plan_are_the_last_one() -> None:
    assert sequential_tests.looks_at([0, 0.4, 0.4001, 0.9, 1.2, 1.5]) == (0.4001, 0.9, 1.0)


def test_the_detectable_effect_is_the_one_that_the_units_are_for() -> None:
    units = power.units_per_arm(0.01, 0.09, 0.09, looks=20)
    assert power.detectable(units, 0.09, looks=20) == pytest.approx(0.01, rel=1e-3)


def test_days_to_go() -> None:
    assert power.pace([100, 300, 7]) == 200  # today is not over
    assert power.days_to_go(1_000, 500, 200) == 3
    assert power.days_to_go(1_000, 1_100, 200) == 0
    assert power.days_to_go(1_000, 500, power.pace([])) is None
