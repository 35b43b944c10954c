from __future__ import annotations

import pytest

from app.cache.sharing_rule import FORGET_SECONDS, LEAST_LIMIT, MOST_LIMIT, Mode, SharingRule

KIND = "linear 2"


def rule(build: float | None = None, fetch: float | None = None, mode: Mode = "auto") -> SharingRule:
    made = SharingRule(mode)
    if build is not None:
        made.built(KIND, build)
    if fetch is not None:
        made.fetched(fetch)
    return made


@pytest.mark.parametrize(
    ("build", "fetch", "reads"),
    [
        (0.03, 0.10, False),  # linear: built sooner than it can be sent
        (0.15, 0.10, True),
        (None, 0.10, True),  # no build of this kind yet
        (5.00, None, True),  # no fetch yet: one look tells
    ],
)
def test_auto_reads_where_the_last_fetch_took_less_than_the_last_build(
    build: float | None, fetch: float | None, reads: bool
) -> None:
    assert rule(build, fetch).reads(KIND) == reads


def test_auto_writes_what_is_asked_for_again_whatever_that_costs() -> None:
    made = rule(build=0.001, fetch=10.0)
    assert made.writes and not made.writes_at_once


@pytest.mark.parametrize("mode", ["always", "never"])
def test_the_other_settings_do_not_ask_what_it_costs(mode: Mode) -> None:
    made = rule(0.001, 10.0, mode)
    assert {made.reads(KIND), made.writes, made.writes_at_once} == {mode == "always"}


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_a_pod_that_cannot_build_reads_always_and_writes_never(mode: Mode) -> None:
    made = SharingRule(mode, builds=False)
    made.fetched(10.0)
    assert made.reads(KIND) and not made.writes and not made.writes_at_once
    assert made.fetch_limit(KIND) > MOST_LIMIT


def test_kinds_of_build_are_told_apart_and_the_last_cost_counts() -> None:
    made = rule(build=0.01, fetch=0.1)
    made.built("ties 3", 4.0)
    made.wrote(0.2)
    assert not made.reads(KIND) and made.reads("ties 3")
    assert made.costs() == [("build", KIND, 0.01), ("build", "ties 3", 4.0), ("fetch", "", 0.1), ("write", "", 0.2)]
    made.built(KIND, 0.5)
    assert made.reads(KIND)


def test_a_fetch_that_was_given_up_costs_at_least_that_long() -> None:
    made = rule(build=0.5, fetch=0.1)
    made.fetch_timed_out(0.05)
    assert made.costs()[1] == ("fetch", "", 0.1)
    made.fetch_timed_out(2.0)
    assert not made.reads(KIND)


def test_what_a_fetch_cost_is_forgotten_in_time() -> None:
    now = [0.0]
    made = SharingRule("auto", clock=lambda: now[0])
    made.built(KIND, 0.1)
    made.fetched(5.0)
    assert not made.reads(KIND)
    now[0] = FORGET_SECONDS + 1
    assert made.reads(KIND)


def test_a_fetch_is_given_up_when_it_takes_far_longer_than_either_way_should() -> None:
    assert rule(build=0.001, fetch=0.001).fetch_limit(KIND) == LEAST_LIMIT
    assert rule(build=2.0, fetch=0.5).fetch_limit(KIND) == pytest.approx(6.0)
    assert rule(build=0.1, fetch=1.0).fetch_limit(KIND) == pytest.approx(3.0)
    assert rule(build=100.0, fetch=1.0).fetch_limit(KIND) == MOST_LIMIT
    assert rule(build=0.1).fetch_limit(KIND) == MOST_LIMIT
