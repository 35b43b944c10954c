"""For how long a batch waits for callers who were just answered."""

from __future__ import annotations

import random

import pytest

from app.serving.coalescing import LIKELY, SHARE, Coalescing

PASS = 0.1
WINDOW = SHARE * PASS


def after(batches: int, rows: int, back: int, returning: Coalescing | None = None, start: float = 0.0) -> Coalescing:
    """What is known after so many batches, a second apart, of whose rows so many came back in time."""
    known = returning or Coalescing()
    for number in range(batches):
        known.note_answer(rows, PASS, start + number)
        for _ in range(back):
            known.note_arrival(1, start + number + WINDOW / 2)
        known.note_arrival(rows - back, start + number + 2 * WINDOW)
    return known


def test_nobody_waits_before_it_is_known_that_callers_come_back() -> None:
    known = Coalescing()
    assert known.patience(0.0) == 0
    known.note_answer(8, PASS, 0.0)
    assert known.patience(0.0) == 0


def test_a_batch_waits_until_as_many_are_back_as_were_answered_but_not_for_longer_than_a_share_of_a_pass() -> None:
    known = after(20, rows=8, back=8)
    known.note_answer(8, PASS, 100.0)
    assert known.patience(100.0) == pytest.approx(WINDOW)
    known.note_arrival(7, 100.0 + WINDOW / 4)
    assert known.patience(100.0 + WINDOW / 4) == pytest.approx(WINDOW * 3 / 4)
    assert known.patience(100.0 + WINDOW) == 0
    known.note_arrival(1, 100.0 + WINDOW / 2)
    assert known.patience(100.0 + WINDOW / 2) == 0


@pytest.mark.parametrize("back", [0, 1, 5])
def test_nobody_waits_where_few_come_back_in_time(back: int) -> None:
    assert back / 8 < LIKELY
    known = after(50, rows=8, back=back)
    known.note_answer(8, PASS, 100.0)
    assert known.patience(100.0) == 0


def test_who_stops_coming_back_is_soon_not_waited_for() -> None:
    known = after(3, rows=8, back=0, returning=after(20, rows=8, back=8), start=50.0)
    known.note_answer(8, PASS, 100.0)
    assert known.patience(100.0) == 0


def test_a_single_caller_never_waits_for_himself() -> None:
    known = Coalescing()
    for number in range(30):
        known.note_answer(1, PASS, float(number))
        known.note_arrival(1, number + WINDOW / 10)
        assert known.patience(number + WINDOW / 10) == 0


def test_a_pass_that_answered_nobody_changes_nothing() -> None:
    known = after(20, rows=8, back=8)
    known.note_answer(0, 10 * PASS, 99.0)
    known.note_arrival(8, 99.0 + WINDOW)
    known.note_answer(8, PASS, 100.0)
    assert known.patience(100.0) == pytest.approx(WINDOW)


def test_batches_of_several_units_are_waited_for_together() -> None:
    known = after(20, rows=8, back=8)
    known.note_answer(8, PASS, 100.0)
    known.note_answer(6, PASS, 100.0 + WINDOW / 2)
    known.note_arrival(8, 100.0 + WINDOW)
    assert known.patience(100.0 + WINDOW) == pytest.approx(WINDOW / 2)
    known.note_arrival(6, 100.0 + WINDOW)
    assert known.patience(100.0 + WINDOW) == 0


@pytest.mark.parametrize("units", [1, 2, 4, 8, 16, 64])
def test_strangers_are_not_waited_for_however_many_units_there_are(units: int) -> None:
    """Callers come when they like, as many as keep units busy for four fifths of the time."""
    chance, known, waits = random.Random(7), Coalescing(units), []
    answers = [
        (number * PASS / 0.8 + chance.uniform(0, PASS / 0.8), 8)
        for _ in range(units)
        for number in range(2000 // units)
    ]
    end = max(answers)[0]
    arrivals = [(chance.uniform(0, end), 0) for _ in range(8 * len(answers))]
    for now, rows in sorted(answers + arrivals):
        if rows:
            known.note_answer(rows, PASS, now)
            waits.append(known.patience(now) > 0)
        else:
            known.note_arrival(1, now)
    assert sum(waits) < 0.02 * len(waits)
