"""What is kept of an experiment: versions, states, phases and the trail of changes."""

from __future__ import annotations

import itertools
import json
from typing import Any, get_args

import pytest

from app.errors import ExperimentConflict
from app.experiments.experiment import Experiment, Status
from app.experiments.record import ENTRIES, NEXT, Record


def definition(share: float = 0.5, **more: Any) -> Experiment:
    arms = [
        {"name": "mild", "recipe": "base", "share": 1 - share},
        {"name": "firm", "recipe": "angry@0.4", "share": share},
    ]
    return Experiment.model_validate({"arms": arms, "control": "mild", **more})


def drafted(**more: Any) -> Record:
    return Record(name="tone").defined(definition(**more), "ada")


def test_every_change_is_a_version_with_who_and_what() -> None:
    record = drafted(coverage=0.1).at("running", "bob").defined(definition(coverage=0.5), None)
    assert [(e.version, e.by, e.action, e.changes) for e in record.audit] == [
        (1, "ada", "drafted", {}),
        (2, "bob", "started", {"status": ("draft", "running")}),
        (3, None, "changed", {"coverage": (0.1, 0.5)}),
    ]
    assert record.version == 3 and record.status == "running"
    assert record.audit[0].at <= record.audit[1].at <= record.audit[2].at


def test_what_changes_nothing_is_no_version() -> None:
    record = drafted().at("running", None)
    assert record.at("running", "x") is record
    assert record.defined(definition(), "x") is record
    assert record.defined(definition(status="running"), "x") is record


@pytest.mark.parametrize(("now", "then"), list(itertools.product(get_args(Status), repeat=2)))
def test_states_go_only_where_they_may(now: Status, then: Status) -> None:
    ways: dict[Status, tuple[Status, ...]] = {
        "draft": (),
        "running": ("running",),
        "paused": ("running", "paused"),
        "stopped": ("running", "stopped"),
    }
    record = drafted()
    for step in ways[now]:
        record = record.at(step, None)
    assert record.status == now
    if then == now or then in NEXT[now]:
        assert record.at(then, None).status == then
    else:
        with pytest.raises(ExperimentConflict, match=f"is {now} and cannot become {then}; only"):
            record.at(then, None)


def test_what_has_stopped_stays_as_it_was() -> None:
    record = drafted().at("running", None).at("stopped", None)
    with pytest.raises(ExperimentConflict, match="has stopped.*another name"):
        record.defined(definition(0.2), None)
    with pytest.raises(ExperimentConflict, match="no experiment 'tone' that could be paused"):
        Record(name="tone").defined(definition(status="paused"), None)


def test_a_change_of_who_meets_what_begins_a_phase_and_no_other_change_does() -> None:
    record = drafted(share=0.3)
    record = record.defined(definition(0.4), None)
    assert [(p.number, p.began, p.shares) for p in record.phases] == [(1, None, {"mild": 0.6, "firm": 0.4})]
    record = record.at("running", None)
    assert record.phase == 1 and record.phases[0].began is not None
    for same in ({"coverage": 0.5}, {"holdout": 0.1}, {"overrides": {"a": "firm"}}, {"stop": 1e12}, {}):
        record = record.defined(definition(0.4, **same), None)
        assert record.phase == 1
    for number, other in ((2, definition(0.5)), (3, definition(0.5, salt="new"))):
        record = record.defined(other, None)
        assert [phase.number for phase in record.phases] == list(range(1, number + 1))
    assert record.phases[-1].shares == {"mild": 0.5, "firm": 0.5}
    shadow = {"name": "ghost", "recipe": "polite@1", "share": 0, "shadow": True}
    arms = [*(arm.model_dump() for arm in definition(0.5).arms), shadow]
    with_shadow = record.defined(Experiment(arms=arms, control="mild", salt="new"), None)
    assert with_shadow.phase == 3 and with_shadow.version == record.version + 1


def test_shares_that_a_bandit_works_out_begin_a_phase_of_the_same_era() -> None:
    record = drafted(mode="bandit", period=100).at("running", None)
    began = record.phases[0].began
    assert began is not None and not record.is_due(began + 99) and record.is_due(began + 100)
    looked = record.reckoned({"mild": 0.5, "firm": 0.5}, began + 100, "bandit")
    assert (looked.version, looked.phase, looked.audit) == (record.version + 1, 1, record.audit)
    assert not looked.is_due(began + 199) and looked.is_due(began + 200)
    moved = looked.reckoned({"mild": 0.1, "firm": 0.9}, began + 200, "bandit")
    assert (moved.phase, moved.era, moved.phases[-1].began) == (2, 1, began + 200)
    assert moved.phases[-1].shares == {"mild": 0.1, "firm": 0.9} and moved.audit[-1].by == "bandit"
    assert moved.reckoned({"mild": 0.2, "firm": 0.8}, began + 300, "bandit").era == 1
    assert not moved.at("paused", None).is_due(began + 1e6)
    assert not drafted(mode="bandit").is_due(1e12) and not drafted().at("running", None).is_due(1e12)


def test_people_change_a_bandit_and_leave_its_shares_unless_they_change_who_meets_what() -> None:
    """A file or a body holds the shares that it began with."""
    record = drafted(mode="bandit").at("running", None).reckoned({"mild": 0.1, "firm": 0.9}, 1e10, "bandit")
    wider = record.defined(definition(mode="bandit", coverage=0.5), "ada")
    assert (wider.phase, wider.era, wider.experiment.coverage) == (2, 1, 0.5)
    assert [arm.share for arm in wider.experiment.shown] == [0.1, 0.9]
    for other in (definition(mode="bandit", salt="new"), definition()):
        anew = record.defined(other, "ada")
        assert (anew.phase, anew.era) == (3, 3) and [arm.share for arm in anew.experiment.shown] == [0.5, 0.5]


def test_a_record_is_what_it_was_after_a_journey() -> None:
    record = drafted(targeting={"plan": ["free"]}, metrics=[{"name": "solved"}]).at("running", "bob")
    raw = record.encoded()
    assert Record.decoded("tone", raw) == record
    newer = {**json.loads(raw), "later": 1}
    newer["definition"]["later"] = 2
    assert Record.decoded("tone", json.dumps(newer).encode()) == record
    for wrong in (b"", b"{", b"[]", b'{"name": "tone"}', record.encoded()[:-9]):
        assert Record.decoded("tone", wrong) is None
    assert Record.decoded("length", raw) is None


def test_what_does_not_run_is_archived_or_deleted_and_numbers_go_on() -> None:
    running = drafted().at("running", None).defined(definition(0.2), None)
    for act in (Record.archive, Record.remove):
        with pytest.raises(ExperimentConflict, match="is running; stop it before it is"):
            act(running, "ada")
    stopped = running.at("stopped", None)
    archived = stopped.archive("ada")
    assert archived.archived == archived.audit[-1].at and archived.archive("bob") is archived
    with pytest.raises(ExperimentConflict, match="is archived and stays as it is"):
        archived.defined(definition(), None)
    for record in (stopped, archived, drafted().archive(None)):
        gone = record.remove("ada")
        assert gone.definition is None and Record.decoded("tone", gone.encoded()) == gone
        assert (gone.version, gone.audit[-1].action) == (record.version + 1, "deleted")
        anew = gone.defined(definition(), "bob").at("running", None)
        assert (anew.version, anew.phase) == (gone.version + 2, record.phase + 1)
        assert anew.deleted == gone.deleted and anew.archived is None and len(anew.phases) == 1


SPENT = {"name": "spent", "kind": "continuous", "cap": 50.0}
CLICKS = {"name": "clicks", "kind": "count"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"metrics": [{**SPENT, "kind": "count"}, CLICKS]},
            "'spent' with kind 'continuous', which stays; give the new",
        ),
        ({"metrics": [{**SPENT, "cap": 9.0}, CLICKS]}, "'spent' with cap 50.0"),
        ({"metrics": [{**SPENT, "per": "clicks"}, CLICKS]}, "'spent' with per None"),
        ({"metrics": [CLICKS]}, "its metric 'spent' stays"),
        ({"metrics": [SPENT, CLICKS, {"name": "rate", "per": "clicks"}]}, "'clicks' of units before now"),
        ({"window": 60}, "a window of 604800 s, which stays; make another experiment"),
    ],
)
def test_what_has_been_counted_stays_what_it_was(change: dict[str, Any], words: str) -> None:
    before = {"metrics": [SPENT, CLICKS]}
    assert drafted(**before).defined(definition(**{**before, **change}), None).version == 2, "nothing was counted yet"
    for status in ("running", "paused"):
        record = drafted(**before).at("running", None).at(status, None)
        with pytest.raises(ExperimentConflict, match=f"'tone' has begun.*{words}"):
            record.defined(definition(**{**before, **change}), None)
        with pytest.raises(ExperimentConflict, match="has begun"):
            record.filed(definition(**{**before, **change}), "digest", None)
    more = drafted(**before).at("running", None).defined(definition(metrics=[SPENT, CLICKS, {"name": "x"}]), None)
    assert len(more.experiment.metrics) == 3


def test_a_change_of_the_plan_or_of_what_decides_is_an_amendment_and_moves_nobody() -> None:
    metrics = [{"name": "bought", "role": "primary"}, {"name": "solved"}]
    swapped = [{"name": "bought"}, {"name": "solved", "role": "primary"}]
    record = drafted(metrics=metrics, planned_units=900).defined(definition(metrics=metrics, planned_units=1000), "ada")
    record = record.at("running", None)
    assert record.amendments == () and record.defined(definition(metrics=metrics, planned_units=1000), None) is record
    record = record.defined(definition(metrics=metrics, planned_units=1000, coverage=0.5), None)
    assert record.amendments == ()
    record = record.defined(definition(metrics=metrics, planned_units=300), "bob")
    record = record.defined(definition(metrics=swapped, planned_units=400), "bob")
    assert [(one.what, one.planned_units, one.by) for one in record.amendments] == [
        ("planned_units from 1000 to 300", 1000, "bob"),
        (
            "planned_units from 300 to 400, the deciding metric from bought to solved, the role of bought from primary "
            "to secondary, the role of solved from secondary to primary",
            300,
            "bob",
        ),
    ]
    assert record.amendments[0].at == record.audit[-2].at and record.phase == 1
    assert Record.decoded("tone", record.encoded()) == record
    assert record.at("paused", None).at("running", None).noted("x", None).amendments == record.amendments
    for planned in range(500, 500 + 2 * ENTRIES):
        record = record.defined(definition(metrics=swapped, planned_units=planned), None)
    assert record.amendments[0].planned_units == 1000 and len(record.amendments) <= ENTRIES + 2


def test_the_trail_is_bounded() -> None:
    record = drafted()
    for i in range(ENTRIES + 5):
        record = record.defined(definition(coverage=i / 1000), None)
    assert len(record.audit) == ENTRIES and record.audit[-1].version == record.version == ENTRIES + 6
