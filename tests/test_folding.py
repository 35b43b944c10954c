"""Folding, against sums worked out unit by unit from their definition."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from ledgers import NAME, SHARES, START, TONE, expected, same, traffic

from app.experiments.events import Event, Outcome
from app.experiments.exposure import Exposure
from app.experiments.folding import UnitRecord, fold
from app.experiments.tally import read_sums


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
    late = Exposure("b", NAME, 1, "plain", "ada", START + 10, 0.5, covariate=0.2)
    early = Exposure("a", NAME, 1, "warm", "ada", START, 0.25, covariate=0.9)
    outcome = Outcome("o", NAME, "ada", "bought", 1.0, START + 5)
    record = UnitRecord()
    fold(record, [Event(late, START), Event(outcome, START)], TONE)
    assert (record.meetings[1].arm, record.meetings[1].values) == ("plain", {})
    fold(record, [Event(early, START)], TONE)
    meeting = record.meetings[1]
    assert (meeting.arm, meeting.propensity, meeting.covariate, meeting.exposures) == ("warm", 0.25, 0.9, 2)
    assert meeting.values == {"bought": 1.0}


def test_an_event_survives_being_written_down() -> None:
    for event in traffic(1):
        assert Event.decoded(Event(event, 12.5).encoded()) == Event(event, 12.5)


def test_what_is_no_event_is_none() -> None:
    for raw in (b"", b"[]", b"{}", b"\xff", b'{"kind":"outcome","received":1,"id":"x"}', b'{"kind":"x","received":1}'):
        assert Event.decoded(raw) is None
    lone = Event(Outcome("o", NAME, "half \ud800 a pair", "bought", 1.0, START), START)
    never = Event(Exposure("e", NAME, 1, "warm", "ada", START, 0.0), START)
    assert Event.decoded(lone.encoded()) is None and Event.decoded(never.encoded()) is None
