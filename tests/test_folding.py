"""Folding, against sums worked out unit by unit from their definition."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from ledgers import NAME, SHARES, START, TONE, expected, same, traffic

from app.experiments.events.aggregates import read_sums, read_uncounted
from app.experiments.events.aggregation import MOST_OUTCOMES, UnitRecord, fold
from app.experiments.events.event import Event, Exposure, Outcome, outcome_id


def folded(events: list[Exposure | Outcome], pieces: random.Random) -> dict[str, float]:
    """The sums after events came in this order, a few of a unit's at a time, through records as Redis holds them."""
    records: dict[str, str] = {}
    sums: dict[str, float] = {}
    while events:
        count = pieces.randint(1, 40)
        by_unit: dict[str, list[Event]] = {}
        for event in events[:count]:
            by_unit.setdefault(event.unit, []).append(Event(event, START))
        events = events[count:]
        for unit, some in by_unit.items():
            record = UnitRecord.decoded(records[unit]) if unit in records else UnitRecord()
            for path, amount in fold(record, some, TONE).items():
                sums[path] = sums.get(path, 0.0) + amount
            records[unit] = record.encoded()
    return sums


@given(seed=st.integers(0, 10**6))
def test_sums_follow_their_definition_in_whatever_order_events_come(seed: int) -> None:
    events = traffic(seed, units=15)
    chooser = random.Random(seed)
    shuffled = chooser.sample(events, k=len(events))
    now = START + chooser.uniform(0, 10_000)
    same(read_sums(folded(shuffled, chooser), TONE, SHARES, now), expected(events, now))


def test_the_earliest_exposure_decides_even_if_it_comes_last() -> None:
    late = Exposure("b", NAME, 1, "plain", "ada", START + 100, 0.5, covariate=0.2)
    early = Exposure("a", NAME, 1, "warm", "ada", START, 0.25, covariate=0.9)
    outcome = Outcome("o", NAME, "ada", "bought", 1.0, START + 5)
    record = UnitRecord()
    fold(record, [Event(late, START), Event(outcome, START)], TONE)
    assert (record.meetings[1].arm, record.meetings[1].values) == ("plain", {})
    fold(record, [Event(early, START)], TONE)
    meeting = record.meetings[1]
    assert (meeting.arm, meeting.propensity, meeting.covariate, meeting.exposures) == ("warm", 0.25, 0.9, 2)
    assert meeting.values == {"bought": 1.0}


def uncounted(record: UnitRecord, *events: Exposure | Outcome, sums: dict[str, float] | None = None) -> dict[str, int]:
    """What counts nowhere after these events, by the sums; a record goes its way through Redis between them."""
    sums = {} if sums is None else sums
    for event in events:
        for path, amount in fold(record, [Event(event, START)], TONE).items():
            sums[path] = sums.get(path, 0.0) + amount
        record.__dict__.update(UnitRecord.decoded(record.encoded()).__dict__)
    assert read_sums(sums, TONE, SHARES, START), "and nobody takes them for a phase"
    assert [phase.phase for phase in read_sums(sums, TONE, SHARES, START)] == [1, 2]
    return read_uncounted(sums)


def test_outcomes_that_count_nowhere_are_counted_by_why() -> None:
    record, sums = UnitRecord(), dict[str, float]()
    early, late = START - 61, START + TONE.window + 1
    outcomes = [Outcome(f"o{at}", NAME, "ada", "bought", 1.0, at) for at in (early, START - 59, START, late, 4.1e9)]
    assert uncounted(record, *outcomes, sums=sums) == {"not met": 5}
    assert record.outcomes and len(record.encoded()) and not record.meetings
    met = Exposure("e", NAME, 1, "warm", "ada", START, 0.5)
    assert uncounted(record, met, sums=sums) == {"after window": 2, "before exposure": 1}
    assert record.meetings[1].values == {"bought": 1.0}
    earlier = Exposure("e0", NAME, 1, "warm", "ada", START - 30, 0.5)
    assert uncounted(record, earlier, sums=sums) == {"after window": 2}
    many = [Outcome(f"m{i}", NAME, "ada", "clicks", 1.0, START) for i in range(MOST_OUTCOMES)]
    assert uncounted(record, *many[:3], sums=sums) == {"after window": 2}
    for path, amount in fold(record, [Event(one, START) for one in many[3:]], TONE).items():
        sums[path] = sums.get(path, 0.0) + amount
    assert read_uncounted(sums) == {"after window": 2, "too many": 5}


def test_a_clock_that_is_a_minute_slow_loses_nothing_and_takes_nothing_from_an_earlier_phase() -> None:
    record = UnitRecord()
    one, two = (Exposure(f"e{n}", NAME, n, "warm", "ada", START + 500 * n, 0.5) for n in (1, 2))
    slow = [Outcome(f"o{at}", NAME, "ada", "clicks", 1.0, START + at) for at in (441, 960)]
    assert uncounted(record, one, two, *slow) == {}
    assert [record.meetings[n].values for n in (1, 2)] == [{"clicks": 2.0}, {}]


def test_records_of_an_earlier_version_are_read_and_counted_on() -> None:
    before = b'[2,{"1":["e",1790000000.0,"warm",0.5,null,1,{}]},[[1789990000.0,"bought",1.0]],0]'
    record, sums = UnitRecord.decoded(before), dict[str, float]()
    assert record.uncounted == {} and record.encoded().encode() == before
    earlier = Exposure("e0", NAME, 1, "warm", "ada", 1789990000.0, 0.5)
    assert uncounted(record, earlier, sums=sums) == {}, "what was never added is not taken off"
    assert uncounted(record, Outcome("o2", NAME, "ada", "bought", 1.0, 1.0), sums=sums) == {"before exposure": 1}


def test_one_id_for_two_metrics_is_two_outcomes() -> None:
    ids = {outcome_id(unit, metric, "order-77") for unit in ("ada", "bob") for metric in ("bought", "spent")}
    assert len(ids) == 4 and outcome_id("ada", "bought", "order-77") in ids


def test_an_event_survives_being_written_down() -> None:
    for event in traffic(1):
        assert Event.decoded(Event(event, 12.5).encoded()) == Event(event, 12.5)


def test_what_is_no_event_is_none() -> None:
    for raw in (b"", b"[]", b"{}", b"\xff", b'{"kind":"outcome","received":1,"id":"x"}', b'{"kind":"x","received":1}'):
        assert Event.decoded(raw) is None
    lone = Event(Outcome("o", NAME, "half \ud800 a pair", "bought", 1.0, START), START)
    never = Event(Exposure("e", NAME, 1, "warm", "ada", START, 0.0), START)
    assert Event.decoded(lone.encoded()) is None and Event.decoded(never.encoded()) is None
