"""Shares go where outcomes are, no faster than is known, and estimates are not bent by that."""

from __future__ import annotations

import math

import pytest

from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment import DAY, Experiment
from app.experiments.stats import thompson
from app.experiments.stats.report_builder import failing_arms, report
from tests.simulations import follow
from tests.units import binary_phase, halves, phase, seconds_after, successes

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
    shares = thompson.next_shares(experiment(), sums(), seconds_after(9))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["d"] > 0.9 and min(shares.values()) >= thompson.FLOOR
    fewer = thompson.next_shares(experiment("lower"), sums(), seconds_after(9))
    assert max(fewer, key=lambda name: fewer[name]) == "a"


def test_units_whose_window_is_open_do_not_count() -> None:
    """On day 5 only the first day's units are known, 20 of an arm: too few to start with."""
    young = thompson.next_shares(experiment(window=4 * DAY), sums(units=100), seconds_after(5))
    assert young == {name: 0.25 for name in RATES}
    assert thompson.standings(experiment(window=4 * DAY), sums(units=600), seconds_after(5)) is not None
    assert thompson.standings(experiment(window=4 * DAY), sums(units=600), seconds_after(5) - 1) is None


def test_nobody_warms_up_on_one_arm_alone() -> None:
    counts = {"a": (50, 1_000), "b": (60, 1_000), "c": (80, 1_000), "d": (9, 99)}
    phases = [binary_phase(counts, halves(list(RATES)))]
    assert thompson.standings(experiment(), phases, seconds_after(9)) is None


def test_a_good_week_is_not_credited_to_whoever_had_most_of_it() -> None:
    """All arms are alike in either week; d had most of the good one."""
    even = halves(list(RATES))
    poor = binary_phase({"a": (300, 3_000), "b": (300, 3_000), "c": (300, 3_000), "d": (20, 200)}, even)
    good = binary_phase({"a": (60, 200), "b": (60, 200), "c": (60, 200), "d": (900, 3_000)}, even, number=2)
    found = thompson.standings(experiment(), [poor, good], seconds_after(9))
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


def guarded(*names: str) -> Experiment:
    arms = [{"name": name, "recipe": "base", "share": 1 / len(names)} for name in names]
    metrics = [{"name": "bought", "role": "primary"}, {"name": "complained", "role": "guardrail", "better": "lower"}]
    made = {"arms": arms, "control": "a", "metrics": metrics, "mode": "bandit", "window": DAY}
    return Experiment.model_validate(made)


def complaining(counts: dict[str, tuple[int, int, int]]) -> PhaseSums:
    """A phase from (units that bought, units that complained, units) by arm."""
    arms = {
        name: {"bought": successes(bought, units), "complained": successes(complained, units)}
        for name, (bought, complained, units) in counts.items()
    }
    return phase(arms, {name: units for name, (_, _, units) in counts.items()}, halves(list(counts)), days=3)


def test_a_guardrail_that_fails_in_a_bandit_is_said_first() -> None:
    """Of b, the better arm, half complain; nobody of a does."""
    tested, sums = guarded("a", "b"), [complaining({"a": (50, 0, 1_000), "b": (150, 500, 1_000)})]
    found = report(tested, sums, seconds_after(9))
    assert found.guardrail_failures == [found.sentence]
    assert found.sentence.startswith("Guardrail complained fails: b is worse than a by 4")
    assert [metric.metric for metric in found.metrics] == ["complained"]
    assert found.metrics[0].comparisons[0].verdict == "worse"
    assert failing_arms(tested, sums) == {"b": found.sentence}


def test_guardrails_of_a_bandit_are_judged_within_phases() -> None:
    """Complaints came in the second phase, in both arms alike; b had most of its units."""
    even = complaining({"a": (100, 0, 1_000), "b": (100, 0, 1_000)})
    busy = complaining({"a": (20, 100, 200), "b": (180, 900, 1_800)})
    busy.phase = 2
    assert failing_arms(guarded("a", "b"), [even, busy]) == {}


def test_arms_that_are_left_out_get_nothing_and_others_share_the_rest() -> None:
    phases, doses = sums(), {"a": 0.0, "b": 0.3, "c": 0.6, "d": 0.9}
    for known in (None, doses):
        shares = thompson.next_shares(experiment(), phases, seconds_after(9), known, left_out={"d"})
        assert shares["d"] == 0 and shares["c"] > 0.8 and sum(shares.values()) == pytest.approx(1)
        assert min(shares["a"], shares["b"]) >= thompson.FLOOR
    warming = thompson.next_shares(experiment(), sums(units=20), seconds_after(9), left_out={"d"})
    assert warming == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3, "d": 0})
    alone = thompson.next_shares(experiment(), phases, seconds_after(9), doses, left_out={"b", "c", "d"})
    assert alone == {"a": 1, "b": 0, "c": 0, "d": 0}


def test_a_report_says_which_arm_is_left_out_even_when_it_would_fail_no_more() -> None:
    tested, sums = guarded("a", "b", "c"), [complaining({n: (100, 20, 1_000) for n in "abc"})]
    why = "Guardrail complained fails: b is worse than a by 1.0 to 9.0 points."
    found = report(tested, sums, seconds_after(9), left_out={"b": why})
    assert found.guardrail_failures == [why] and found.sentence.startswith(why)
    assert any(warning.startswith("b gets no new units") for warning in found.warnings)
    assert found.bandit is not None
    standing = {arm.arm: arm for arm in found.bandit}
    assert standing["b"].next_share == 0 and standing["b"].left_out and standing["b"].probability_best is None
    assert standing["a"].probability_best is not None and not standing["a"].left_out


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
    assert thompson.next_shares(experiment(), phases, seconds_after(9))["d"] > 0.9
    found = report(experiment(), phases, seconds_after(9)).bandit
    assert found is not None
    for arm in found:
        assert arm.interval is not None and arm.interval.low < arm.interval.high
