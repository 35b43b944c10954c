"""Which blends a pod writes to Redis, and when it reads one from there instead of building it.

    write   when a blend is asked for again: a second request for it here, or the first one after another pod (or this
            one, before a restart or an eviction) was asked for it
    read    when this pod cannot build, or when the last fetch took less time than the last build of that kind (its
            method and how many members take part)

So a blend that is in demand lies in Redis, where a new pod and a pod without members find it. A linear blend is built
at the speed of memory, usually faster than Redis sends it: a pod that knows both costs builds it. What has not been
measured counts as worth a look. The cost of a fetch is forgotten after ten minutes, because networks change.

`always` writes at the first request and reads whatever it costs; `never` does neither. A pod that cannot build always
reads and never writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

Mode = Literal["auto", "always", "never"]

FORGET_SECONDS = 600.0
PATIENCE = 3.0
"""Times what a fetch or a build is expected to take, after which a fetch is given up for a build."""
LEAST_LIMIT, MOST_LIMIT = 1.0, 10.0
ONLY_WAY_SECONDS = 60.0
"""For a fetch where nothing can be built: nothing would come sooner."""


class SharingRule:
    """The costs of the last time, in seconds for a whole blend, and what follows from them."""

    def __init__(self, mode: Mode, builds: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.writes = builds and mode != "never"
        self.writes_at_once = builds and mode == "always"
        self._mode: Mode = mode if builds else "always"
        self._can_build = builds
        self._clock = clock
        self._builds: dict[str, float] = {}
        self._fetch: float | None = None
        self._write: float | None = None
        self._fetched_at = 0.0

    def built(self, kind: str, seconds: float) -> None:
        self._builds[kind] = seconds

    def fetched(self, seconds: float) -> None:
        self._fetch, self._fetched_at = seconds, self._clock()

    def fetch_timed_out(self, seconds: float) -> None:
        """A fetch was given up after so long; it would have taken longer."""
        self.fetched(max(seconds, self._fetch or 0.0))

    def wrote(self, seconds: float) -> None:
        self._write = seconds

    def reads(self, kind: str) -> bool:
        if self._mode != "auto":
            return self._mode == "always"
        build = self._builds.get(kind)
        forgotten = self._clock() - self._fetched_at > FORGET_SECONDS
        return build is None or self._fetch is None or forgotten or self._fetch < build

    def fetch_limit(self, kind: str) -> float:
        """Seconds after which a fetch is given up for a build. A server that stands still is noticed long before, by
        the time-out of a chunk; this is for one that is slow."""
        if not self._can_build:
            return ONLY_WAY_SECONDS
        if self._fetch is None:
            return MOST_LIMIT
        return min(max(PATIENCE * max(self._fetch, self._builds.get(kind, 0.0)), LEAST_LIMIT), MOST_LIMIT)

    def costs(self) -> list[tuple[str, str, float]]:
        """What each way cost here: `build`, `fetch` or `write`, the kind of build (else empty), and seconds."""
        found = [("build", kind, seconds) for kind, seconds in self._builds.items()]
        return found + [(way, "", cost) for way, cost in (("fetch", self._fetch), ("write", self._write)) if cost]
