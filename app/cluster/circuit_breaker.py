"""Leaves a server alone that does not answer, so that its failure costs one caller and not each of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FAILURES = 3
"""Failures in a row that open the breaker; a time-out opens it at once, because it costs every caller that long."""
PROBE_SECONDS = 1.0
"""How long nobody asks. Then one caller does, and his success closes the breaker for all."""
JITTER = 0.25
"""Share by which that varies, so that many pods do not all ask a server in the moment it comes back."""


class CircuitBreaker:
    """Closed: calls are made. Open: none is, except one a second to see whether the server is back."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        """`clock` gives seconds that never jump, `chance` a number from 0 to 1."""
        self.openings = 0
        self._clock = clock
        self._chance = chance
        self._failures = 0
        self._next_probe: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether callers are turned away now. Once a probe is due it is not, or where nobody asks but those who look
        here first, nobody would ever find the server back."""
        return self._next_probe is not None and self._clock() < self._next_probe

    def allows(self) -> bool:
        """Whether the caller may make a call now; while the breaker is open, True makes it the one that probes."""
        if self._next_probe is None:
            return True
        if self._clock() < self._next_probe:
            return False
        self._rest()
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._next_probe = None

    def failed(self, timed_out: bool) -> None:
        self._failures += 1
        if self._next_probe is None and (timed_out or self._failures >= FAILURES):
            self.openings += 1
            self._rest()

    def _rest(self) -> None:
        self._next_probe = self._clock() + PROBE_SECONDS * (1 + JITTER * (2 * self._chance() - 1))
