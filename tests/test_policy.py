from __future__ import annotations

import pytest

from app.cache.redis_policy import FRESH_SECONDS, LEAST_LIMIT, MOST_PATIENCE, UNKNOWN_PATIENCE, Policy

KIND = "linear 2"


def policy(build: float | None = None, fetch: float | None = None, write: float | None = None) -> Policy:
    made = Policy("auto")
    if build is not None:
        made.built(KIND, build)
    if fetch is not None:
        made.fetched(fetch)
    if write is not None:
        made.wrote(write)
    return made


@pytest.mark.parametrize(
    ("build", "fetch", "write", "reads", "writes", "waits"),
    [
        (0.03, 0.10, 0.20, False, False, False),  # linear: made sooner than it can be sent
        (0.15, 0.10, 0.20, True, False, False),  # sooner fetched where it lies there, but not worth a write
        (0.25, 0.10, 0.20, True, True, False),  # worth a write, but not worth waiting for one
        (5.00, 0.10, 0.20, True, True, True),
        (None, 0.10, 0.20, True, False, True),  # new here: a whole fleet may be about to build it
        (5.00, None, None, True, False, True),  # nobody knows what a fetch costs: one look tells
    ],
)
def test_auto_goes_the_way_that_is_expected_to_be_sooner(
    build: float | None, fetch: float | None, write: float | None, reads: bool, writes: bool, waits: bool
) -> None:
    made = policy(build, fetch, write)
    assert (made.reads(KIND), made.writes(KIND), made.waits(KIND)) == (reads, writes, waits)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_the_other_settings_do_not_ask_what_it_costs(mode: str) -> None:
    made = Policy(mode)  # type: ignore[arg-type]
    made.built(KIND, 0.001)
    made.fetched(10.0)
    assert {made.reads(KIND), made.writes(KIND), made.waits(KIND)} == {mode == "always"}
    assert not made.wants_a_measurement


def test_kinds_of_build_are_told_apart() -> None:
    made = policy(build=0.01, fetch=0.1, write=0.1)
    made.built("ties 3", 4.0)
    assert not made.reads(KIND) and made.reads("ties 3")
    assert made.costs() == [
        ("build", KIND, 0.01),
        ("build", "ties 3", 4.0),
        ("fetch", "", 0.1),
        ("write", "", 0.1),
    ]


def test_costs_follow_what_was_measured_lately() -> None:
    made = policy(build=0.05, fetch=0.1)
    assert not made.reads(KIND)
    for _ in range(10):
        made.built(KIND, 0.5)
    assert made.reads(KIND) and made.costs()[0][2] == pytest.approx(0.5, abs=0.03)


def test_a_fetch_that_was_given_up_costs_at_least_that_long() -> None:
    made = policy(build=0.5, fetch=0.1)
    made.fetch_timed_out(0.05)
    assert made.fetch.seconds == 0.1
    for _ in range(3):
        made.fetch_timed_out(2.0)
    assert not made.reads(KIND)


def test_a_measurement_is_due_at_first_and_after_a_minute() -> None:
    now = [0.0]
    made = Policy("auto", lambda: now[0])
    assert made.wants_a_measurement
    made.fetched(0.1)
    assert not made.wants_a_measurement
    now[0] = FRESH_SECONDS + 1
    assert made.wants_a_measurement


def test_patience_follows_the_build_within_bounds() -> None:
    assert policy().patience(KIND) == UNKNOWN_PATIENCE
    assert policy(build=1.0, write=0.5).patience(KIND) == pytest.approx(4.5)
    assert policy(build=100.0).patience(KIND) == MOST_PATIENCE


def test_a_fetch_is_given_up_when_it_takes_far_longer_than_either_way_should() -> None:
    assert policy(build=0.001, fetch=0.001).fetch_limit(KIND) == LEAST_LIMIT
    assert policy(build=2.0, fetch=0.5).fetch_limit(KIND) == pytest.approx(6.0)
    assert policy(build=0.1, fetch=1.0).fetch_limit(KIND) == pytest.approx(3.0)
    assert policy(build=100.0, fetch=1.0).fetch_limit(KIND) == MOST_PATIENCE
    assert policy(build=0.1).fetch_limit(KIND) == MOST_PATIENCE
