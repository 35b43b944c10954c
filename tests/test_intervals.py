"""Intervals for a single look hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from app.experiments.stats import estimators
from app.experiments.stats.dose_response import Dose, dose_response, doses_of
from app.experiments.stats.estimators import Estimate
from app.experiments.stats.regression import RegressionCell
from app.weights.recipe import Cookbook
from tests.units import moments

RUNS = 1_500
CHANCE = 3 * np.sqrt(0.05 * 0.95 / RUNS)


def holds(change: Estimate, truth: float) -> bool:
    return abs(change.value - truth) <= estimators.fixed_critical(change.degrees, 0.05) * change.error


def test_of_a_difference_of_means_of_unequal_arms() -> None:
    random = np.random.default_rng(1)
    found = [
        holds(
            estimators.difference(
                estimators.mean(moments(random.normal(1.2, 3, 60)), 60),
                estimators.mean(moments(random.normal(1, 1, 15)), 15),
            ),
            0.2,
        )
        for _ in range(RUNS)
    ]
    assert np.mean(found) == pytest.approx(0.95, abs=CHANCE)


def test_of_a_ratio_of_sums() -> None:
    """Units differ in how much they do, and those that do more do it at a higher rate."""
    random = np.random.default_rng(2)

    def arm(rate: float) -> Estimate:
        z = 1.0 + random.poisson(3, 400)
        found = estimators.ratio(moments(random.poisson(rate * z * (1 + z / 10)).astype(float), z), 400)
        assert found is not None
        return found

    z = 1.0 + random.poisson(3, 2_000_000)
    one = float((z * (1 + z / 10)).sum() / z.sum())
    found = [holds(estimators.difference(arm(0.5), arm(0.4)), 0.1 * one) for _ in range(RUNS)]
    assert np.mean(found) == pytest.approx(0.95, abs=CHANCE)


def test_of_a_difference_after_the_covariate_with_some_of_it_missing() -> None:
    random = np.random.default_rng(3)

    def arm(lift: float) -> tuple[object, int]:
        x = random.normal(0, 1, 200)
        y = 2 * x + random.normal(0, 1, 200) + lift
        x[random.random(200) < 0.2] = np.nan
        return moments(y, x=x), 200

    found = []
    for _ in range(RUNS):
        by_arm = estimators.adjusted({"control": arm(0.0), "warm": arm(0.5)})  # type: ignore[dict-item]
        assert by_arm is not None
        found.append(holds(estimators.difference(by_arm["warm"], by_arm["control"]), 0.5))
    assert np.mean(found) == pytest.approx(0.95, abs=CHANCE)


def test_a_covariate_that_says_nothing_is_left_alone() -> None:
    y = np.arange(10.0)
    assert estimators.adjusted({"a": (moments(y), 10), "b": (moments(y), 10)}) is None
    constant = np.full(10, 0.7)
    assert estimators.adjusted({"a": (moments(y, x=constant), 10), "b": (moments(y, x=constant), 10)}) is None


def test_of_a_relative_lift() -> None:
    """With a control known so badly that a plain ratio would go wrong."""
    random = np.random.default_rng(4)
    found = []
    for _ in range(RUNS):
        control = Estimate(random.normal(1, 0.25), 0.25**2, 100)
        arm = Estimate(random.normal(1.5, 0.3), 0.3**2, 100)
        ends = estimators.relative(arm, control, 1.96)
        found.append(ends is None or ends[0] <= 0.5 <= ends[1])
    assert np.mean(found) == pytest.approx(0.95, abs=CHANCE)
    assert estimators.relative(Estimate(1, 0.01, 9), Estimate(0.1, 0.01, 9), 1.96) is None


# -- the best t --------------------------------------------------------------------------------------------

TS = {"a": 0.0, "b": 0.25, "c": 0.5, "d": 0.75, "e": 1.0}


def curve(random: np.random.Generator, slope: float, bend: float, units: int = 400, phases: int = 1) -> Dose:
    """Arms whose means lie on 0.3 + slope t + bend t^2, each unit with a spread of 0.4."""
    cells = []
    for phase in range(phases):
        for arm, t in TS.items():
            y = random.normal(0.3 + phase + slope * t + bend * t * t, 0.4, units // phases)
            cells.append(RegressionCell(phase, arm, len(y), float(y.mean()), float(y.var())))
    found = dose_response(cells, TS)
    assert found is not None
    return found


@pytest.mark.parametrize("phases", [1, 2])
def test_the_best_t_lies_in_its_interval(phases: int) -> None:
    random = np.random.default_rng(5)
    found = [curve(random, 0.48, -0.6, phases=phases) for _ in range(400)]
    assert np.mean([one.low <= 0.4 <= one.high for one in found]) == pytest.approx(0.95, abs=0.035)
    assert np.mean([one.shape == "top inside" for one in found]) > 0.95


def test_a_flat_curve_names_no_best_t() -> None:
    random = np.random.default_rng(6)
    found = [curve(random, 0.0, 0.0) for _ in range(200)]
    assert np.mean([one.shape == "flat" for one in found]) > 0.9
    assert np.median([one.high - one.low for one in found]) > 0.9


def test_a_curve_that_bends_upwards_is_best_at_an_end() -> None:
    found = curve(np.random.default_rng(7), -0.5, 0.6, units=4_000)
    assert found.shape == "best at an end" and found.best == 1.0
    low = curve(np.random.default_rng(7), -0.6, 0.3, units=4_000)
    assert (low.best, low.high) == (0.0, 0.0)


def test_a_curve_that_is_no_quadratic_says_so() -> None:
    cells = [RegressionCell(1, arm, 5_000, float(t == 0.5), 0.1) for arm, t in TS.items()]
    found = dose_response(cells, TS)
    assert found is not None and found.misfit_p is not None and found.misfit_p < 1e-6


def test_only_three_ts_of_one_variant_are_a_dose() -> None:
    read = Cookbook(["kind", "calm"]).read
    assert doses_of({"a": read("base"), "b": read("kind@0.3"), "c": read("kind")}) == {"a": 0, "b": 0.3, "c": 1}
    assert doses_of({"a": read("base"), "b": read("kind@0.3")}) is None
    assert doses_of({"a": read("base"), "b": read("kind@0.3"), "c": read("calm@0.3")}) is None
    assert doses_of({"a": read("base"), "b": read("kind@0.3"), "c": read("kind@0.2+calm@0.3")}) is None
