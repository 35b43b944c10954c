"""The statistics give the numbers of gbstats, statsmodels, Spotify's confidence and savvi (tests/oracles/)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from app.experiments.events.aggregates import Moments
from app.experiments.stats import comparisons, estimators, power, sample_ratio, sequential_tests
from app.experiments.stats.estimators import Estimate
from app.experiments.stats.regression import RegressionCell, dose_rows, fit

FIXTURES = Path(__file__).parent / "fixtures"


def read(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}_numbers.json").read_text(encoding="utf-8"))


GROWTHBOOK, STATSMODELS, SPOTIFY, SAVVI = (read(name) for name in ("gbstats", "statsmodels", "spotify", "savvi"))


def arms(numbers: dict[str, Any]) -> dict[str, tuple[Moments, int]]:
    return {name: (Moments(**numbers[name]["moments"]), numbers[name]["units"]) for name in ("control", "arm")}


def proportions(case: list[int]) -> Estimate:
    control_units, control_sum, arm_units, arm_sum = case
    arm = estimators.mean(Moments(y=arm_sum, yy=arm_sum), arm_units, binary=True)
    return estimators.difference(arm, estimators.mean(Moments(y=control_sum, yy=control_sum), control_units, True))


def ends(change: Estimate, critical: float) -> list[float]:
    return [change.value - critical * change.error, change.value + critical * change.error]


def fixed(change: Estimate) -> list[float]:
    return ends(change, estimators.fixed_critical(change.degrees, 0.05))


def test_every_fixture_names_its_versions() -> None:
    names = {path.stem for path in FIXTURES.glob("*_numbers.json")}
    assert names == {path.stem for path in (Path(__file__).parent / "oracles").glob("*_numbers.py")}
    for name in names:
        assert len(read(name.removesuffix("_numbers"))["versions"]) >= 3


@pytest.mark.parametrize("numbers", [GROWTHBOOK, STATSMODELS], ids=["gbstats", "statsmodels"])
def test_welch(numbers: dict[str, Any]) -> None:
    arm, control = (estimators.mean(*arms(numbers)[name]) for name in ("arm", "control"))
    change = estimators.difference(arm, control)
    assert fixed(change) == pytest.approx(numbers["welch"]["interval"], rel=1e-9)
    assert estimators.fixed_p(change) == pytest.approx(numbers["welch"]["p"], rel=1e-6)
    assert change.degrees == pytest.approx(STATSMODELS["welch"]["degrees"])


def test_a_ratio_metric() -> None:
    arm, control = (estimators.ratio(*arms(GROWTHBOOK)[name]) for name in ("arm", "control"))
    assert arm is not None and control is not None
    change = estimators.difference(arm, control)
    assert fixed(change) == pytest.approx(GROWTHBOOK["ratio"]["interval"], rel=1e-9)


def test_the_covariate_is_used_as_regression_uses_it() -> None:
    found = estimators.adjusted(arms(STATSMODELS))
    assert found is not None
    assert found["arm"].value - found["control"].value == pytest.approx(STATSMODELS["ancova"]["lift"], rel=1e-9)


def test_adjusted_means_have_the_variance_that_cuped_says() -> None:
    both, theta = arms(GROWTHBOOK), GROWTHBOOK["cuped"]["theta"]
    estimates = [
        estimators._adjusted(moments, units, units, theta, 0.0) for moments, units in (both["arm"], both["control"])
    ]
    assert fixed(estimators.difference(*estimates)) == pytest.approx(GROWTHBOOK["cuped"]["interval"], rel=1e-9)


@pytest.mark.parametrize("index", range(4))
def test_two_proportions(index: int) -> None:
    change = proportions(STATSMODELS["proportions"][index]["case"])
    assert fixed(change) == pytest.approx(STATSMODELS["proportions"][index]["interval"], rel=1e-9)
    assert change.value == pytest.approx(SPOTIFY["z_tests"][index]["lift"], rel=1e-9)
    # Spotify divides by n - 1.
    assert fixed(change) == pytest.approx(SPOTIFY["z_tests"][index]["interval"], rel=5e-3)


@pytest.mark.parametrize("case", GROWTHBOOK["sequences"], ids=lambda case: f"{case['case']}-{case['tuned_for']}")
def test_confidence_sequences(case: dict[str, Any]) -> None:
    change = proportions(case["case"])
    critical = sequential_tests.sequence_critical(change.units, case["tuned_for"])
    assert ends(change, critical) == pytest.approx(case["interval"], rel=1e-9)
    p = sequential_tests.sequence_p(change.value / change.error, change.units, case["tuned_for"])
    assert p == pytest.approx(case["p"], rel=1e-9)


def test_a_sequence_leaves_out_0_exactly_where_its_p_is_alpha() -> None:
    critical = sequential_tests.sequence_critical(5_000, 20_000)
    assert sequential_tests.sequence_p(critical, 5_000, 20_000) == pytest.approx(0.05)


@pytest.mark.parametrize("case", SPOTIFY["bounds"], ids=lambda case: f"{len(case['looks'])} looks")
def test_bounds_are_those_of_another_solver(case: dict[str, Any]) -> None:
    """That one spends alpha f^2; the recursion is the same."""
    found = sequential_tests.bounds(tuple(case["looks"]), 0.05, lambda f, alpha: alpha * f * f)
    assert found == pytest.approx(case["bounds"], abs=2e-3)


def test_bounds_are_those_of_the_textbook() -> None:
    """Lan-DeMets, O'Brien-Fleming type, five equal looks, alpha = 0.05 two-sided."""
    found = sequential_tests.bounds((0.2, 0.4, 0.6, 0.8, 1.0))
    assert found == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=1e-3)


@pytest.mark.parametrize("case", SAVVI["split"], ids=lambda case: f"{case['counts']}-{case['k']}")
def test_the_evidence_against_a_split(case: dict[str, Any]) -> None:
    found = sample_ratio.log_evidence(case["counts"], case["shares"], case["k"])
    assert found == pytest.approx(math.log(case["evidence"]), rel=1e-9)


@pytest.mark.parametrize("case", GROWTHBOOK["split"], ids=lambda case: str(case["counts"]))
def test_the_chi_square_of_a_split(case: dict[str, Any]) -> None:
    statistic = sample_ratio.chi_square(case["counts"], case["shares"])
    assert chi2.sf(statistic, len(case["counts"]) - 1) == pytest.approx(case["p"], rel=1e-9)


@pytest.mark.parametrize("case", STATSMODELS["holm"], ids=lambda case: str(case["p"]))
def test_holm(case: dict[str, Any]) -> None:
    assert comparisons.holm(case["p"]) == pytest.approx(case["adjusted"])


@pytest.mark.parametrize("case", STATSMODELS["power"], ids=lambda case: str(case["effect"]))
def test_units_for_a_power(case: dict[str, Any]) -> None:
    assert power.units_per_arm(case["effect"], 1.0, 1.0) == pytest.approx(case["units"], abs=1)


def test_the_curve_over_a_dose() -> None:
    numbers = STATSMODELS["dose"]
    cells = [RegressionCell(1, str(a["t"]), a["units"], a["mean"], a["variance"]) for a in numbers["arms"]]
    found = fit(cells, dose_rows({str(a["t"]): a["t"] for a in numbers["arms"]}))
    assert found is not None
    assert found.coefficients == pytest.approx(numbers["coefficients"], rel=1e-8)
    # HC0 takes each unit's distance from the curve, this the variance around its arm's mean.
    assert np.allclose(found.covariance, numbers["covariance"], rtol=0.02)
