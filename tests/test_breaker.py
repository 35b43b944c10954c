from __future__ import annotations

from app.cluster.circuit_breaker import CircuitBreaker


class World:
    """A breaker, a clock that is turned by hand, and a coin that always shows the same side."""

    def __init__(self) -> None:
        self.now = 0.0
        self.breaker = CircuitBreaker(lambda: self.now, lambda: 0.5)

    def calls_made(self, callers: int) -> int:
        return sum(self.breaker.allows() for _ in range(callers))


def test_it_opens_after_three_failures_in_a_row() -> None:
    world = World()
    for _ in range(10):
        world.breaker.failed(timed_out=False)
        world.breaker.failed(timed_out=False)
        world.breaker.succeeded()
    assert world.calls_made(5) == 5
    for _ in range(3):
        world.breaker.failed(timed_out=False)
    assert world.breaker.is_open and world.breaker.openings == 1 and world.calls_made(5) == 0


def test_a_time_out_opens_it_at_once() -> None:
    world = World()
    world.breaker.failed(timed_out=True)
    assert world.breaker.is_open and world.calls_made(5) == 0


def test_one_caller_a_second_probes_until_one_succeeds() -> None:
    world = World()
    world.breaker.failed(timed_out=True)
    made = 0
    for _ in range(10):
        world.now += 1.0
        made += world.calls_made(100)
        world.breaker.failed(timed_out=True)
    assert made == 10 and world.breaker.openings == 1
    world.now += 1.0
    assert world.calls_made(1) == 1
    world.breaker.succeeded()
    assert not world.breaker.is_open and world.calls_made(100) == 100


def test_it_does_not_call_itself_open_when_a_probe_is_due() -> None:
    world = World()
    world.breaker.failed(timed_out=True)
    world.now += 0.9
    assert world.breaker.is_open
    world.now += 0.1
    assert not world.breaker.is_open and world.calls_made(5) == 1 and world.breaker.is_open


def test_a_probe_that_never_reports_back_is_followed_by_another() -> None:
    world = World()
    world.breaker.failed(timed_out=True)
    for _ in range(3):
        world.now += 1.0
        assert world.calls_made(10) == 1


def test_probes_of_many_pods_are_spread() -> None:
    moments = set()
    for chance in (0.0, 0.25, 0.5, 0.75, 1.0):
        breaker = CircuitBreaker(lambda: 0.0, lambda chance=chance: chance)
        breaker.failed(timed_out=True)
        moments.add(breaker._next_probe)
    assert len(moments) == 5 and min(moments) >= 0.75 and max(moments) <= 1.25
