"""Arms whose units are not split as configured raise an alarm, and others hardly ever do."""

from __future__ import annotations

import pytest

from app.experiments.stats import sample_ratio
from tests.simulations import left_by, split
from tests.units import binary_phase, halves

EVEN = halves(["a", "b"])


def test_false_alarms_are_as_rare_as_promised_however_often_one_looks() -> None:
    found = split(0.5, alarm=sample_ratio.ALARM)
    assert found.by_evidence <= sample_ratio.ALARM
    found = split(0.5, alarm=0.05)
    assert found.by_evidence <= 0.05
    assert found.by_chi_square > 0.2  # what it replaces


@pytest.mark.parametrize(
    ("units", "lost", "least"), [(1_200, 0.25, 0.8), (500, 0.4, 0.95)], ids=["a quarter of 1,200", "40 % of 500"]
)
def test_an_arm_that_loses_units_is_found_in_small_experiments_too(units: int, lost: float, least: float) -> None:
    """One prior of concentration 1,000 and an alarm at 1,000 found 39 and 18 %."""
    assert split(left_by(lost), alarm=sample_ratio.ALARM, per_day=units, days=1).by_evidence > least


def test_few_units_may_raise_an_alarm() -> None:
    """Of 80 units an arm has 10; one prior of concentration 1,000 could raise none below 126 units."""
    found = sample_ratio.check([binary_phase({"a": (0, 70), "b": (0, 10)}, EVEN)])
    assert found is not None and found.alarm


def test_a_split_of_51_to_49_is_mostly_found_within_two_months() -> None:
    found = split(0.51, alarm=sample_ratio.ALARM)
    assert found.by_evidence > 0.75


def test_a_report_s_evidence_is_the_highest_of_all_days() -> None:
    """A day that lost an arm is not forgotten as later days even it out."""
    lost = binary_phase({"a": (0, 1_000), "b": (0, 600)}, EVEN)
    later = binary_phase({"a": (0, 9_000), "b": (0, 9_400)}, EVEN, days=5)
    whole = binary_phase({"a": (0, 10_000), "b": (0, 10_000)}, EVEN, days=1)
    assert sample_ratio.check([whole]) is not None
    whole.days = {"2026-02-01": lost.days["2026-03-01"], **later.days}
    found = sample_ratio.check([whole])
    assert found is not None and found.alarm and found.chi_square_p == 1.0


def test_phases_add_their_evidence_each_by_its_own_shares() -> None:
    first = binary_phase({"a": (0, 5_000), "b": (0, 5_200)}, EVEN)
    second = binary_phase({"a": (0, 9_000), "b": (0, 1_150)}, {"a": 0.9, "b": 0.1}, number=2)
    apart = [sample_ratio.check([phase]) for phase in (first, second)]
    both = sample_ratio.check([first, second])
    assert both is not None and all(one is not None and one.p > both.p for one in apart)
    fine = sample_ratio.check([binary_phase({"a": (0, 9_000), "b": (0, 1_000)}, {"a": 0.9, "b": 0.1})])
    assert fine is not None and fine.p == 1.0


def test_there_is_nothing_to_check_before_the_first_unit_or_with_one_arm() -> None:
    assert sample_ratio.check([]) is None
    assert sample_ratio.check([binary_phase({"a": (0, 0), "b": (0, 0)}, EVEN)]) is None
    assert sample_ratio.check([binary_phase({"a": (1, 10)}, {"a": 1.0})]) is None
