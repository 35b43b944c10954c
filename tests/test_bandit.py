"""Shares go where outcomes are, no faster than is known, and estimates are not bent by that."""

from __future__ import annotations

import math

import pytest

from app.experiments import bandit
from app.experiments.experiment import DAY, Experiment
from app.experiments.judgement import report
from tests.simulations import follow
from tests.units import binary_phase, halves, seconds_after

RATES = {"a": 0.05, "b": 0.06, "c": 0.08, "d": 0.11}


def experiment(better: str = "higher", window: float = DAY) -> Experiment:
    arms = [{"name": name, "recipe": "base", "share": 0.25} for name in RATES]
    metric = {"name": "bought", "role": "primary", "better": better}
    return Experiment.model_validate(
        {"arms": arms, "control": "a", "metrics": [metric], "mode": "bandit", "window": window}
    )


def sums(units: int = 1_000, days: int = 5) -> list:
    counts = {name: (round(rate * units), units) for name, rate in RATES.items()}
    return [binary_phase(counts, halves(list(RATES)), days=days)]


def test_the_best_arm_gets_most_and_every_arm_its_floor() -> None:
    shares = bandit.next_shares(experiment(), sums(), seconds_after(9))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["d"] > 0.9 and min(shares.values()) >= bandit.FLOOR
    fewer = bandit.next_shares(experiment("lower"), sums(), seconds_after(9))
    assert max(fewer, key=lambda name: fewer[name]) == "a"


def test_units_whose_window_is_open_do_not_count() -> None:
    """On day 5 only the first day's units are known, 20 of an arm: too few to start with."""
    young = bandit.next_shares(experiment(window=4 * DAY), sums(units=100), seconds_after(5))
    assert young == {name: 0.25 for name in RATES}
    assert bandit.standings(experiment(window=4 * DAY), sums(units=600), seconds_after(5)) is not None
    assert bandit.standings(experiment(window=4 * DAY), sums(units=600), seconds_after(5) - 1) is None


def test_nobody_warms_up_on_one_arm_alone() -> None:
    counts = {"a": (50, 1_000), "b": (60, 1_000), "c": (80, 1_000), "d": (9, 99)}
    phases = [binary_phase(counts, halves(list(RATES)))]
    assert bandit.standings(experiment(), phases, seconds_after(9)) is None


def test_a_good_week_is_not_credited_to_whoever_had_most_of_it() -> None:
    """All arms are alike in either week; d had most of the good one."""
    even = halves(list(RATES))
    poor = binary_phase({"a": (300, 3_000), "b": (300, 3_000), "c": (300, 3_000), "d": (20, 200)}, even)
    good = binary_phase({"a": (60, 200), "b": (60, 200), "c": (60, 200), "d": (900, 3_000)}, even, number=2)
    found = bandit.standings(experiment(), [poor, good], seconds_after(9))
    assert found is not None
    assert max(one.probability_best for one in found.values()) < 0.5


def test_it_loses_far_less_than_equal_shares() -> None:
    assert follow(RATES, runs=10).regret < 0.5


def test_a_curve_over_t_learns_sooner_than_arms_apart() -> None:
    ts = {f"t{i}": i / 7 for i in range(8)}
    rates = {name: 0.05 + 0.24 * t * (1 - t) for name, t in ts.items()}
    apart = follow(rates, runs=10, days=15, per_day=1_000)
    curve = follow(rates, doses=ts, runs=10, days=15, per_day=1_000)
    assert curve.regret < apart.regret < 1


def test_estimates_by_propensity_are_right_where_plain_means_are_not() -> None:
    """Traffic gets better from week to week, while the shares of good arms grow."""
    found = follow(RATES, drift=lambda day: 0.012 * day, runs=40, days=16)
    for name in RATES:
        error, spread = found.weighted[name]
        assert abs(error) < 4 * spread, name
    error, spread = found.plain["a"]
    assert abs(error) > 10 * spread


def test_a_report_on_a_bandit_has_no_p_values() -> None:
    found = report(experiment(), sums(), seconds_after(9))
    assert found.sentence.startswith("d is the best arm for bought with a probability of 9")
    assert found.metrics == [] and found.sample_ratio is None and found.bandit is not None
    by_arm = {arm.arm: arm for arm in found.bandit}
    assert by_arm["d"].expected_loss == pytest.approx(0, abs=1e-3) and (by_arm["a"].expected_loss or 0) > 0.03
    assert math.isclose(by_arm["c"].estimate or 0, 0.08, rel_tol=0.01)
    warming = report(experiment(), sums(units=40), seconds_after(9))
    assert warming.sentence.startswith("Warming up")


def test_a_bandit_follows_an_arm_that_always_succeeds() -> None:
    """Within each arm nothing varies; the spread between them is what is known."""
    counts = {"a": (0, 1_000), "b": (0, 1_000), "c": (0, 1_000), "d": (1_000, 1_000)}
    phases = [binary_phase(counts, halves(list(RATES)))]
    assert bandit.next_shares(experiment(), phases, seconds_after(9))["d"] > 0.9
    found = report(experiment(), phases, seconds_after(9)).bandit
    assert found is not None
    for arm in found:
        assert arm.interval is not None and arm.interval.low < arm.interval.high
