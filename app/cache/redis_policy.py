"""Which blends are read from Redis, which are written there, and whether to wait for another pod's build.

`auto` compares what this pod has measured, for each kind of build (its method and how many members take part):

    read   when a fetch is expected to be sooner than a build
    write  when a fetch is expected to take half as long as a build, or less: every pod holds the same members, so what
           one would rather build the others would too, and a write must be earned back
    wait   for another pod that builds the same blend, when a build takes longer than writing and fetching it:
           only then do those who wait lose less than half of their time, and the processor gains a whole build

A linear blend is made at the speed of memory, several times as fast as Redis sends one, so `auto` leaves Redis alone
there; it pays for methods that take seconds. What has never been measured counts as worth a look: a kind of build
that is new here is looked up and waited for, because a whole fleet may be about to build it. A fetch is measured
with one chunk there and back at the start, again whenever the last measurement is a minute old and somebody asks,
and with every blend that is fetched.

`always` reads, writes and waits whatever it costs: for pods that share what others cannot build. `never` does none.
A pod that cannot build always reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Mode = Literal["auto", "always", "never"]

NEWEST = 0.3
"""Weight of the newest measurement in an average."""
FRESH_SECONDS = 60.0
"""After which what a fetch costs is measured again: networks and servers change."""
WORTH_A_WRITE = 0.5
PATIENCE = 3.0
"""Times what a build and a write are expected to take, after which others build for themselves."""
ONLY_WAY_SECONDS = 60.0
"""For a fetch where nothing can be built: nothing would come sooner."""
LEAST_PATIENCE, MOST_PATIENCE, UNKNOWN_PATIENCE = 0.2, 10.0, 2.0
LEAST_LIMIT = 1.0
"""Seconds."""


@dataclass
class Average:
    """A moving average of seconds; None until something was measured."""

    seconds: float | None = None

    def note(self, seconds: float) -> None:
        before = seconds if self.seconds is None else self.seconds
        self.seconds = before + NEWEST * (seconds - before)


class Policy:
    """Measured costs, and what follows from them. All times are seconds for a whole blend."""

    def __init__(self, mode: Mode, clock: Callable[[], float] = time.monotonic, builds: bool = True) -> None:
        """A pod that never `builds` always reads, whatever the mode, and writes nothing."""
        self.mode: Mode = mode if builds else "always"
        self._can_build = builds
        self.fetch = Average()
        self.write = Average()
        self.builds: dict[str, Average] = {}
        self._clock = clock
        self._measured: float | None = None

    # -- what was measured -----------------------------------------------------------------------------

    def built(self, kind: str, seconds: float) -> None:
        self.builds.setdefault(kind, Average()).note(seconds)

    def fetched(self, seconds: float) -> None:
        self.fetch.note(seconds)
        self._measured = self._clock()

    def fetch_timed_out(self, seconds: float) -> None:
        """A fetch was given up after so long; it would have taken longer."""
        if self.fetch.seconds is None or seconds > self.fetch.seconds:
            self.fetched(seconds)

    def wrote(self, seconds: float) -> None:
        self.write.note(seconds)

    @property
    def wants_a_measurement(self) -> bool:
        """Whether what a fetch costs is unknown or was measured long ago, and matters."""
        stale = self._measured is None or self._clock() - self._measured > FRESH_SECONDS
        return self.mode == "auto" and stale

    # -- what follows ----------------------------------------------------------------------------------

    def reads(self, kind: str) -> bool:
        build, fetch = self._build(kind), self.fetch.seconds
        return self._decide(build is None or fetch is None or fetch < build)

    def writes(self, kind: str) -> bool:
        build, fetch = self._build(kind), self.fetch.seconds
        return self._decide(build is not None and fetch is not None and fetch < build * WORTH_A_WRITE)

    def waits(self, kind: str) -> bool:
        build, fetch, write = self._build(kind), self.fetch.seconds, self.write.seconds
        return self._decide(build is None or fetch is None or write is None or fetch + write < build)

    def patience(self, kind: str) -> float:
        """Seconds after which nobody waits any longer for a pod that builds a blend of this kind."""
        build = self._build(kind)
        if build is None:
            return UNKNOWN_PATIENCE
        expected = build + (self.write.seconds or 0.0)
        return min(max(PATIENCE * expected, LEAST_PATIENCE), MOST_PATIENCE)

    def fetch_limit(self, kind: str) -> float:
        """Seconds after which a fetch is given up for a build. A server that stands still is noticed long before, by
        the time-out of a chunk; this is for one that is slow."""
        if not self._can_build:
            return ONLY_WAY_SECONDS
        if self.fetch.seconds is None:
            return MOST_PATIENCE
        expected = max(self.fetch.seconds, self._build(kind) or 0.0)
        return min(max(PATIENCE * expected, LEAST_LIMIT), MOST_PATIENCE)

    def costs(self) -> list[tuple[str, str, float]]:
        """What each way costs here: `build`, `fetch` or `write`, the kind of build (else empty), and seconds."""
        ways = [("build", kind, average) for kind, average in self.builds.items()]
        ways += [("fetch", "", self.fetch), ("write", "", self.write)]
        return [(way, kind, average.seconds) for way, kind, average in ways if average.seconds is not None]

    def _build(self, kind: str) -> float | None:
        average = self.builds.get(kind)
        return average.seconds if average else None

    def _decide(self, auto: bool) -> bool:
        return auto if self.mode == "auto" else self.mode == "always"
