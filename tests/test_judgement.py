"""A report says what its sums say, in figures and in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.experiments.events.aggregates import ArmSums, PhaseSums
from app.experiments.experiment import Experiment
from app.experiments.stats import estimators
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.report_builder import failing_guardrails, judge, report, with_uncounted
from app.experiments.stats.report_schema import Report
from app.weights.recipe import Cookbook
from tests.units import binary_phase, halves, moments, phase, seconds_after

BOUGHT = {"name": "bought", "kind": "binary", "role": "primary"}
NOW = seconds_after(30)


def experiment(*names: str, metrics: list[dict[str, Any]] | None = None, **further: Any) -> Experiment:
    names = names or ("control", "warm")
    arms = [{"name": name, "recipe": f"kind@{i / 10}", "share": 1 / len(names)} for i, name in enumerate(names)]
    made = {"arms": arms, "control": names[0], "metrics": metrics or [BOUGHT], "status": "running"}
    return Experiment.model_validate(made | further)


def two(control: tuple[int, int], warm: tuple[int, int], **further: Any) -> Report:
    sums = binary_phase({"control": control, "warm": warm}, halves(["control", "warm"]), days=10)
    return report(experiment(**further), [sums], NOW)


def test_what_beats_control_is_said_with_its_interval() -> None:
    found = two((1000, 10_000), (1300, 10_000), planned_units=20_000)
    assert found.sentence == "warm beats control by 2.1 to 3.9 points of bought."
    (one,) = found.metrics[0].comparisons
    assert (one.verdict, one.test) == ("better", "group-sequential")
    assert one.lift == pytest.approx(0.03)
    assert one.interval.low < one.fixed.interval.low < one.fixed.interval.high < one.interval.high
    assert one.relative_interval is not None and one.relative_interval.low < 0.3 < one.relative_interval.high
    assert found.outlook.fraction == 1 and found.outlook.looks == 10


def test_what_is_worse_is_said_too() -> None:
    assert two((1300, 10_000), (1000, 10_000)).sentence == "warm is worse than control by 1.6 to 4.4 points of bought."


def test_where_lower_is_better_fewer_is_better() -> None:
    handed_over = BOUGHT | {"better": "lower"}
    found = two((1300, 10_000), (1000, 10_000), metrics=[handed_over])
    assert found.metrics[0].comparisons[0].verdict == "better"
    assert found.sentence.startswith("warm beats control by 1.6 to 4.4 points")


def test_what_cannot_be_told_yet_names_both_ends_and_the_days_to_go() -> None:
    found = two((1000, 10_000), (1030, 10_000), planned_units=40_000)
    assert found.sentence.startswith("Cannot tell yet: warm has between 1.")
    assert found.sentence.endswith("more bought than control; about 10 days to go.")
    assert found.outlook.days_to_go == 10


def test_at_the_planned_end_nobody_is_asked_to_wait() -> None:
    found = two((1000, 10_000), (1030, 10_000), planned_units=20_000)
    assert found.sentence.startswith("No difference was shown at the planned end: ")


def test_an_open_end_is_watched_by_a_confidence_sequence() -> None:
    (one,) = two((1000, 10_000), (1100, 10_000)).metrics[0].comparisons
    assert (one.test, one.verdict) == ("confidence sequence", "undecided")
    assert one.fixed.p < 0.05 < (one.p or 0)


def test_a_mismatch_comes_before_everything_else() -> None:
    found = two((1000, 10_000), (1300, 11_000))
    assert not found.trustworthy
    assert found.sentence.startswith("Sample-ratio mismatch: do not trust this experiment; its units (control 10,000, ")


def test_a_guardrail_that_fails_comes_before_the_gain() -> None:
    errors = {"name": "errors", "kind": "binary", "role": "guardrail", "better": "lower", "margin": 0.01}
    both = experiment(metrics=[BOUGHT, errors])

    def at(failing: int) -> Report:
        arms = {
            "control": {"bought": moments(np.arange(10_000) < 1000.0), "errors": moments(np.arange(10_000) < 100.0)},
            "warm": {"bought": moments(np.arange(10_000) < 1300.0), "errors": moments(np.arange(10_000) < failing)},
        }
        sums = phase(arms, {"control": 10_000, "warm": 10_000}, halves(["control", "warm"]), days=5)
        found = report(both, [sums], NOW)
        assert [s for arm in failing_guardrails(both, [sums]).values() for s in arm] == found.guardrail_failures
        return found

    failed = at(failing=400)
    assert failed.guardrail_failures == [failed.sentence]
    assert failed.sentence.startswith("Guardrail errors fails: warm is worse than control by ")
    assert failed.sentence.endswith(", beyond the margin of 1 point.")
    undecided = at(failing=200)  # worse, but perhaps within the margin
    assert not undecided.guardrail_failures and undecided.metrics[1].comparisons[0].verdict == "undecided"
    assert at(failing=100).metrics[1].comparisons[0].verdict == "harmless"


def test_a_handful_of_units_decides_nothing() -> None:
    found = two((0, 60), (40, 60))
    assert found.metrics[0].comparisons[0].verdict == "too few units"
    assert found.sentence == "Cannot tell yet: warm or control has fewer than 100 units."


def test_nobody_yet_is_no_error() -> None:
    assert report(experiment(), [], NOW).sentence == "No units yet."
    empty = PhaseSums(1, {"control": 0.5, "warm": 0.5}, {"control": ArmSums(), "warm": ArmSums()})
    assert report(experiment(), [empty], NOW).sentence == "No units yet."
    assert two((0, 500), (0, 500)).sentence == "Cannot tell yet: warm and control have too few outcomes of bought."
    assert report(experiment(metrics=[{**BOUGHT, "role": "guardrail"}]), [empty], NOW).metrics[0].comparisons == []


def test_phases_are_compared_within_themselves() -> None:
    """Simpson's paradox: pooled, warm looks better, as it had more of the good week; within each week it is worse."""
    poor = binary_phase({"control": (450, 9_000), "warm": (30, 1_000)}, {"control": 0.9, "warm": 0.1}, days=7)
    good = binary_phase({"control": (400, 1_000), "warm": (3_300, 9_000)}, {"control": 0.1, "warm": 0.9}, number=2)
    found = report(experiment(), [poor, good], NOW)
    control, warm = found.metrics[0].arms
    lift = found.metrics[0].comparisons[0].lift
    assert lift < 0 and (warm.mean or 0) - (control.mean or 0) == pytest.approx(lift), "means say what the lift says"
    assert (warm.units, control.units) == (10_000, 10_000)
    assert [one.phase for one in found.metrics[0].phases] == [1, 2]
    assert all(one.lift < 0 for one in found.metrics[0].phases)
    assert [(one.mean, one.control) for one in found.metrics[0].phases] == [
        pytest.approx((0.03, 0.05)),
        pytest.approx((3_300 / 9_000, 0.4)),
    ]
    assert any("2 phases" in warning for warning in found.warnings)


def test_a_covariate_narrows_the_interval() -> None:
    random = np.random.default_rng(5)
    amount = {"name": "amount", "kind": "continuous", "role": "primary"}

    def arm(lift: float, with_x: bool) -> dict[str, Any]:
        x = random.normal(0, 1, 4_000)
        y = 0.7 * x + np.sqrt(1 - 0.49) * random.normal(0, 1, 4_000) + lift
        x[::10] = np.nan
        return {"amount": moments(y, x=x if with_x else None)}

    def width(with_x: bool) -> tuple[float, float | None]:
        arms = {"control": arm(0.0, with_x), "warm": arm(0.1, with_x)}
        found = report(
            experiment(metrics=[amount]),
            [phase(arms, {"control": 4_000, "warm": 4_000}, halves(["control", "warm"]))],
            NOW,
        )
        one = found.metrics[0].comparisons[0]
        return one.interval.high - one.interval.low, found.metrics[0].variance_removed

    (plain, nothing), (narrow, removed) = width(False), width(True)
    assert nothing is None
    assert removed == pytest.approx(0.49 * 0.9, abs=0.05)  # a tenth of the units has none
    assert narrow == pytest.approx(plain * np.sqrt(1 - removed), rel=0.05)


def test_secondary_metrics_are_decided_after_holm() -> None:
    metrics = [BOUGHT, *({"name": f"extra{i}", "kind": "binary"} for i in range(8))]
    arms: dict[str, dict[str, Any]] = {"control": {}, "warm": {}}
    for metric in metrics:
        arms["control"][metric["name"]] = moments((np.arange(10_000) < 1000).astype(float))
        arms["warm"][metric["name"]] = moments((np.arange(10_000) < 1000).astype(float))
    arms["warm"]["extra0"] = moments((np.arange(10_000) < 1152).astype(float))
    sums = phase(arms, {"control": 10_000, "warm": 10_000}, halves(["control", "warm"]))
    one = report(experiment(metrics=metrics), [sums], NOW).metrics[1].comparisons[0]
    assert one.interval.low > 0  # on its own it would be decided
    assert one.p is not None and one.p_holm == pytest.approx(8 * one.p)
    assert one.verdict == "undecided"


def test_a_gain_too_good_to_be_true_is_warned_about() -> None:
    assert any("more often mistakes" in warning for warning in two((1000, 10_000), (1300, 10_000)).warnings)


def test_arms_share_the_error_of_the_deciding_metric() -> None:
    counts = {"control": (1000, 10_000), "warm": (1000, 10_000), "hot": (1000, 10_000)}
    found = report(experiment(*counts), [binary_phase(counts, halves(list(counts)))], NOW)
    assert [one.confidence for one in found.metrics[0].comparisons] == [0.975, 0.975]


def test_a_ratio_metric_is_taken_over_sums() -> None:
    clicks = {"name": "clicks", "kind": "count", "role": "primary", "per": "views"}
    views = {"name": "views", "kind": "count"}
    random = np.random.default_rng(2)
    arms = {}
    for name, rate in (("control", 0.2), ("warm", 0.3)):
        z = 1.0 + random.poisson(4, 5_000)
        arms[name] = {"clicks": moments(random.binomial(z.astype(int), rate).astype(float), z), "views": moments(z)}
    sums = phase(arms, {"control": 5_000, "warm": 5_000}, halves(["control", "warm"]))
    metric = report(experiment(metrics=[clicks, views]), [sums], NOW).metrics[0]
    assert metric.arms[1].mean == pytest.approx(0.3, abs=0.01)
    assert metric.comparisons[0].interval.low < 0.1 < metric.comparisons[0].interval.high


def test_arms_of_one_variant_are_a_dose() -> None:
    counts = {"a": (1000, 10_000), "b": (1300, 10_000), "c": (1420, 10_000), "d": (1310, 10_000), "e": (1000, 10_000)}
    arms = [{"name": n, "recipe": f"kind@{i / 4}", "share": 0.2} for i, n in enumerate(counts)]
    tested = experiment(*counts, arms=arms)
    cookbook = Cookbook(["kind"])
    recipes = {arm.name: cookbook.read(arm.recipe) for arm in tested.arms}
    dose = report(tested, [binary_phase(counts, halves(list(counts)))], NOW, recipes).metrics[0].dose
    assert dose is not None and dose.shape == "top inside"
    assert dose.best == pytest.approx(0.5, abs=0.02)
    assert 0.4 < dose.interval.low < 0.5 < dose.interval.high < 0.6
    assert dose.sentence.startswith("The best t is 0.50, between 0.4")


def test_shadow_arms_are_compared_by_the_labels_that_they_give() -> None:
    arms = [
        {"name": "control", "recipe": "base", "share": 1},
        {"name": "next", "recipe": "kind@1", "share": 0, "shadow": True},
    ]
    sums = binary_phase({"control": (10, 100)}, {"control": 1.0, "next": 0.0})
    sums.arms["next"] = ArmSums(exposures=200, agreements=150)
    found = report(experiment(arms=arms), [sums], NOW)
    assert found.arms[1].agreement == 0.75
    assert found.sample_ratio is None and found.metrics[0].comparisons == []


def test_units_beyond_the_plan_are_warned_about() -> None:
    found = two((1000, 10_000), (1030, 10_000), planned_units=15_000)
    assert any("more than the 15,000 that were planned" in warning for warning in found.warnings)


def test_outcomes_that_count_nowhere_are_told_with_their_reason() -> None:
    found = two((1000, 10_000), (1300, 10_000))
    assert with_uncounted(found, {}).warnings == found.warnings
    told = with_uncounted(found, {"before exposure": 1_200, "not met": 1})
    assert told.uncounted == {"before exposure": 1_200, "not met": 1}
    assert told.warnings[-1] == (
        "1,201 outcomes count nowhere: 1,200 more than a minute before their unit met it, 1 of units that have not met "
        "the experiment; see docs/ledger.md"
    )


def test_a_report_goes_over_the_wire() -> None:
    found = two((1000, 10_000), (1300, 10_000), planned_units=20_000)
    assert Report.model_validate_json(found.model_dump_json()) == found


# -- where nothing varies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_covariate", [False, True])
@pytest.mark.parametrize(
    ("kind", "per"), [("binary", None), ("count", None), ("continuous", None), ("count", "asks")], ids=str
)
def test_all_of_one_arm_against_none_of_the_other_is_seen(kind: str, per: str | None, with_covariate: bool) -> None:
    """Within each arm nothing varies, so the textbook error of the difference is 0."""
    harm = {"name": "harm", "kind": kind, "role": "guardrail", "better": "lower", "per": per}
    asks = {"name": "asks", "kind": "count"}
    random = np.random.default_rng(3)

    def arm(level: float) -> dict[str, Any]:
        z = np.full(1_000, 2.0)
        x = random.normal(0, 1, 1_000) if with_covariate else None
        y = np.full(1_000, level) * (z if per else 1.0)
        return {"harm": moments(y, z, x), "asks": moments(z, x=x)}

    arms = {"control": arm(0.0), "warm": arm(1.0)}
    sums = phase(arms, {"control": 1_000, "warm": 1_000}, halves(["control", "warm"]))
    tested = experiment(metrics=[harm, asks])
    found = report(tested, [sums], NOW)
    assert found.guardrail_failures and {"warm": found.guardrail_failures} == failing_guardrails(tested, [sums])
    (one,) = found.metrics[0].comparisons
    assert one.lift == pytest.approx(1) and one.interval.low < 1 < one.interval.high
    assert one.fixed.p < 1e-6 and one.fixed.interval.low < one.fixed.interval.high


def test_a_share_of_0_is_known_about_as_well_as_one_of_1_in_n() -> None:
    """The error neither jumps nor vanishes where the last outcome does."""
    errors = [estimators.mean(moments(np.arange(500) < count), 500, True).error for count in (0, 1, 499, 500)]
    assert errors == pytest.approx([1 / 500] * 4, rel=0.01)


def test_where_arms_are_alike_and_nothing_varies_there_is_nothing_to_compare() -> None:
    amount = {"name": "amount", "kind": "count", "role": "primary"}
    arms = {name: {"amount": moments(np.full(500, 2.0))} for name in ("control", "warm")}
    sums = phase(arms, {"control": 500, "warm": 500}, halves(["control", "warm"]))
    found = report(experiment(metrics=[amount]), [sums], NOW)
    assert found.metrics[0].comparisons == []
    assert found.sentence == "Cannot tell yet: amount has too few outcomes."


# -- what was said stays said --------------------------------------------------------------------------


def look(
    latched: dict[str, str],
    control: tuple[int, int],
    warm: tuple[int, int],
    at: float = NOW,
    mature: bool = True,
    **more: Any,
) -> Report:
    """A look at two arms by somebody, whose latches are kept."""
    sums = binary_phase({"control": control, "warm": warm}, halves(["control", "warm"]), days=10)
    for arm in sums.arms.values():
        arm.mature = arm.units if mature else 0
    amendments = more.pop("amendments", ())
    made, fresh = judge(experiment(**more), [sums], at, amendments=amendments, latched=latched)
    latched |= {question: said for question, said in fresh.items() if question not in latched}
    return made


def test_a_crossing_stays_with_its_date_and_interval() -> None:
    latched: dict[str, str] = {}
    first = look(latched, (1000, 10_000), (1300, 10_000), planned_units=40_000)
    later = look(latched, (1500, 15_000), (1510, 15_000), at=NOW + 86_400, planned_units=40_000)
    (before,), (one,) = first.metrics[0].comparisons, later.metrics[0].comparisons
    assert (before.verdict, before.latched) == (one.verdict, not one.latched) == ("better", False)
    assert one.crossed is not None and (one.crossed.at, one.crossed.interval) == (NOW, before.interval)
    assert one.interval.low < 0 < one.interval.high, "today's interval is shown as it is"
    assert later.sentence == first.sentence[:-1] + ", as was shown on 2026-03-31."
    arms = [{"name": "control", "recipe": "base", "share": 0.5}, {"name": "warm", "recipe": "kind@0.9", "share": 0.5}]
    again = look(latched, (1500, 15_000), (1510, 15_000), planned_units=40_000, arms=arms)
    assert again.metrics[0].comparisons[0].crossed is None, "another question"


def test_a_crossing_is_not_latched_while_the_split_is_off() -> None:
    latched: dict[str, str] = {}
    assert not look(latched, (1000, 10_000), (1300, 11_000)).trustworthy and latched == {}


def test_past_the_plan_the_deciding_metric_says_what_it_said_at_its_end() -> None:
    latched: dict[str, str] = {}
    end = look(latched, (1000, 10_000), (1030, 10_000), planned_units=20_000)
    past = look(latched, (1500, 15_000), (1900, 15_000), at=NOW + 9e6, planned_units=20_000)
    assert past.sentence == end.sentence and past.metrics[0] == end.metrics[0] and end.metrics[0].ended == NOW
    assert past.metrics[0].arms[0].units == 10_000 and past.arms[0].units == 15_000
    assert any("bought says what it said when the plan was complete, on 2026-03-31" in one for one in past.warnings)


def test_windows_that_were_open_at_the_planned_end_are_waited_for_once() -> None:
    latched: dict[str, str] = {}
    end = look(latched, (100, 10_000), (103, 10_000), mature=False, planned_units=20_000, window=1_000)
    assert any("the windows of 20,000 units were open then" in one for one in end.warnings)
    soon = look(latched, (1000, 10_000), (1300, 10_000), at=NOW + 999, planned_units=20_000, window=1_000)
    assert soon.metrics[0] == end.metrics[0]
    last = look(latched, (1000, 10_000), (1300, 10_000), at=NOW + 1_000, planned_units=20_000, window=1_000)
    assert last.sentence.startswith("warm beats control by 2.1 to 3.9") and last.metrics[0].windows_open == 0
    later = look(latched, (1000, 10_000), (1000, 10_000), at=NOW + 9e6, planned_units=20_000, window=1_000)
    assert later.metrics[0] == last.metrics[0]


def test_an_amended_experiment_is_judged_by_the_confidence_sequence_and_says_since_when_and_why() -> None:
    changed = Amendment(at=NOW - 86_400, by="bob", what="planned_units from 20000 to 5000", planned_units=20_000)
    found = look({}, (1000, 10_000), (1095, 10_000), planned_units=20_000)
    assert found.metrics[0].comparisons[0].verdict == "better"
    found = look({}, (1000, 10_000), (1095, 10_000), planned_units=5_000, amendments=[changed])
    (one,) = found.metrics[0].comparisons
    assert (one.test, one.verdict, found.outlook.planned_units) == ("confidence sequence", "undecided", None)
    tuned = look({}, (1000, 10_000), (1095, 10_000), planned_units=90_000, amendments=[changed])
    assert tuned.metrics[0].comparisons[0].critical == one.critical, "tuned for the plan that it began with"
    assert found.warnings[0] == (
        "since 2026-03-30 the confidence sequence decides, because the plan was changed while the experiment ran "
        "(2026-03-30: planned_units from 20000 to 5000)"
    )
    assert [(change.by, change.what) for change in found.amended] == [("bob", "planned_units from 20000 to 5000")]


def test_a_metric_that_was_picked_after_a_look_is_decided_among_all() -> None:
    metrics = [BOUGHT, *({"name": f"extra{i}", "kind": "binary"} for i in range(8))]
    none = moments((np.arange(10_000) < 1000).astype(float))
    arms = {"control": {m["name"]: none for m in metrics}, "warm": {m["name"]: none for m in metrics}}
    arms["warm"]["bought"] = moments((np.arange(10_000) < 1150).astype(float))
    sums = phase(arms, {"control": 10_000, "warm": 10_000}, halves(["control", "warm"]))
    assert report(experiment(metrics=metrics), [sums], NOW).metrics[0].comparisons[0].verdict == "better"
    swapped = Amendment(at=NOW, by=None, what="the deciding metric from extra0 to bought", planned_units=None)
    (one,) = judge(experiment(metrics=metrics), [sums], NOW, amendments=[swapped])[0].metrics[0].comparisons
    assert one.p_holm is not None and one.p_holm > 0.05 and one.verdict == "undecided"
