"""Who meets what: frozen vectors, promises, and the hash under statistical tests with fixed units."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from scipy.stats import chi2_contingency, chisquare

from app.errors import BadUnit
from app.experiments.assignment import Assignment, assign, u
from app.experiments.experiment import Arm, Experiment, ExperimentLayer

VECTORS = {
    ("tone/in", "customer-1"): 0.5980531015463422,
    ("tone/arm", "customer-1"): 0.1771407338009372,
    ("tone/2/arm", "customer-1"): 0.6843469721255341,
    ("tween/holdout", "customer-1"): 0.36173393119041686,
    ("layer/checkout", "customer-1"): 0.3972219125617322,
    ("tone/arm", "Zoë"): 0.685088135596341,
    ("tone/arm", "0"): 0.8761471135172677,
    ("tone/arm", "a:b"): 0.6743710038141578,
}
UNITS = [f"customer-{i}" for i in range(40_000)]
SUSPICIOUS = 1e-4
"""A p-value below this says that the hash is bad: units are fixed, so chance has had its say once and for all."""


def experiment(*shares: float, **more: object) -> Experiment:
    shares = shares or (0.5, 0.5)
    arms = [Arm(name=f"arm-{i}", recipe="base", share=share) for i, share in enumerate(shares)]
    return Experiment.model_validate({"arms": arms, "control": "arm-0", "status": "running", **more})


def met(what: Experiment, name: str = "tone", phase: int = 1, units: Iterable[str] = UNITS) -> dict[str, Assignment]:
    return {unit: assign(name, what, phase, unit) for unit in units}


def of_those_in(found: dict[str, Assignment]) -> dict[str, str]:
    return {unit: assignment.arm for unit, assignment in found.items() if assignment.counts}


def test_the_published_vectors_hold() -> None:
    for (salt, unit), expected in VECTORS.items():
        assert u(salt, unit) == expected
    page = (Path(__file__).parent.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    printed = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert {(salt, unit): float(value) for salt, unit, value in printed} == VECTORS


def test_assignments_follow_from_the_vectors() -> None:
    what = experiment(0.17, 0.83)
    assert assign("tone", what, 1, "customer-1") == Assignment("tone", 1, "arm-1", 0.83, "assigned")
    assert assign("tone", what, 2, "customer-1").arm == "arm-1"
    assert assign("tone", experiment(0.18, 0.82), 1, "customer-1").arm == "arm-0"
    assert assign("other", experiment(0.18, 0.82, salt="tone"), 1, "customer-1").arm == "arm-0"
    assert assign("tone", experiment(coverage=0.59), 1, "customer-1").reason == "coverage"
    assert assign("tone", experiment(coverage=0.6), 1, "customer-1").reason == "assigned"
    assert assign("tone", experiment(holdout=0.37), 1, "customer-1").reason == "holdout"
    for low, high, reason in ((0, 0.39, "layer"), (0.39, 0.4, "assigned"), (0.4, 1, "layer")):
        layer = ExperimentLayer(name="checkout", low=low, high=high)
        assert assign("tone", experiment(layer=layer), 1, "customer-1").reason == reason


@pytest.mark.parametrize("salt", ["tone/in", "tone/arm", "tween/holdout", ""])
@pytest.mark.parametrize("units", [UNITS, [str(i) for i in range(40_000)]], ids=["names", "numbers"])
def test_the_hash_is_uniform(salt: str, units: list[str]) -> None:
    counts = Counter(int(u(salt, unit) * 100) for unit in units)
    assert set(counts) == set(range(100))
    assert chisquare(list(counts.values())).pvalue > SUSPICIOUS


@pytest.mark.parametrize(
    ("one", "other"),
    [("tone/in", "tone/arm"), ("tone1/arm", "tone2/arm"), ("tone/arm", "tone/2/arm"), ("tween/holdout", "tone/arm")],
)
def test_salts_are_independent(one: str, other: str) -> None:
    table = [[0] * 10 for _ in range(10)]
    for unit in UNITS:
        table[int(u(one, unit) * 10)][int(u(other, unit) * 10)] += 1
    assert chi2_contingency(table).pvalue > SUSPICIOUS


def test_arms_get_their_shares() -> None:
    shares = (0.5, 0.3, 0.15, 0.05)
    found = of_those_in(met(experiment(*shares, coverage=0.5)))
    counts = Counter(found.values())
    expected = [share * len(found) for share in shares]
    assert chisquare([counts[f"arm-{i}"] for i in range(4)], expected).pvalue > SUSPICIOUS
    assert abs(len(found) / len(UNITS) - 0.5) < 0.01


def test_growing_moves_nobody_who_was_in() -> None:
    before: dict[str, str] = {}
    for coverage in (0.01, 0.1, 0.25, 0.5, 1.0):
        now = of_those_in(met(experiment(coverage=coverage)))
        assert len(now) > len(before)
        assert {unit: now.get(unit) for unit in before} == before
        before = now
    assert len(before) == len(UNITS)


def test_a_new_phase_draws_arms_anew_and_leaves_who_is_in() -> None:
    what = experiment(coverage=0.5)
    first, second = of_those_in(met(what, phase=1)), of_those_in(met(what, phase=2))
    assert first.keys() == second.keys()
    table = [[0, 0], [0, 0]]
    for unit, arm in first.items():
        table[int(arm[-1])][int(second[unit][-1])] += 1
    assert chi2_contingency(table).pvalue > SUSPICIOUS


def test_experiments_of_one_layer_share_no_unit_and_leave_none_out() -> None:
    parts = [(0.0, 0.3), (0.3, 0.5), (0.5, 1.0)]
    groups = [
        of_those_in(
            met(experiment(layer=ExperimentLayer(name="checkout", low=low, high=high)), name=f"experiment-{low}")
        ).keys()
        for low, high in parts
    ]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(UNITS)
    expected = [(high - low) * len(UNITS) for low, high in parts]
    assert chisquare([len(group) for group in groups], expected).pvalue > SUSPICIOUS


def test_a_holdout_is_out_of_every_experiment() -> None:
    left = [
        {unit for unit, found in met(experiment(holdout=0.1), name=name).items() if found.reason == "holdout"}
        for name in ("tone", "length")
    ]
    assert left[0] == left[1] and abs(len(left[0]) / len(UNITS) - 0.1) < 0.01


@pytest.mark.parametrize(
    ("changes", "unit", "attributes", "reason"),
    [
        ({}, None, {}, "no unit"),
        ({"status": "draft"}, "a", {}, "draft"),
        ({"status": "paused"}, "a", {}, "paused"),
        ({"status": "stopped"}, "a", {}, "stopped"),
        ({"start": 101}, "a", {}, "not yet"),
        ({"start": 100, "stop": 101}, "a", {}, "assigned"),
        ({"stop": 100}, "a", {}, "stopped"),
        ({"targeting": {"plan": ["free", "trial"]}}, "a", {}, "targeting"),
        ({"targeting": {"plan": ["free", "trial"]}}, "a", {"plan": "gold"}, "targeting"),
        ({"targeting": {"plan": ["free", "trial"]}}, "a", {"plan": "trial", "more": "x"}, "assigned"),
        ({"coverage": 0}, "a", {}, "coverage"),
        ({"holdout": 1}, "a", {}, "holdout"),
        ({"overrides": {"a": "arm-1"}, "coverage": 0}, "a", {}, "override"),
        ({"overrides": {"a": "arm-1"}, "status": "draft"}, "a", {}, "override"),
        ({"overrides": {"a": "arm-1"}, "status": "stopped"}, "a", {}, "stopped"),
    ],
)
def test_who_is_not_in_gets_control_and_is_told_why(
    changes: dict[str, object], unit: str | None, attributes: dict[str, str], reason: str
) -> None:
    found = assign("tone", experiment(**changes), 1, unit, attributes, now=100.0)
    assert found.reason == reason and found.counts == (reason == "assigned")
    if not found.counts:
        assert (found.arm, found.propensity) == ("arm-1" if reason == "override" else "arm-0", 1.0)


def test_an_arm_with_no_share_and_a_shadow_are_met_by_nobody() -> None:
    arms = [Arm(name="a", recipe="base", share=1), Arm(name="b", recipe="base", share=0)]
    arms.append(Arm(name="c", recipe="base", share=0, shadow=True))
    what = Experiment(arms=arms, control="b", status="running")
    assert set(of_those_in(met(what, units=UNITS[:1000])).values()) == {"a"}


@pytest.mark.parametrize("unit", ["", "x" * 257, "half\ud800"])
def test_what_can_be_nobodys_name_is_refused(unit: str) -> None:
    with pytest.raises(BadUnit):
        assign("tone", experiment(), 1, unit)
