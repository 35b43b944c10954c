"""Whether callers who were answered together ask again together, and for how long the next batch waits for them.

Bots and gateways keep a number of connections busy: who is answered asks again at once. Without a wait the first of
them runs alone, and all others wait for it: over HTTP at 32 callers two of five batches had a single row. So a batch
waits for as many rows as the last one answered, for a share of the time that it took, but only where they have come
in such a time before: where callers do not wait for each other's answers, and at low load, nobody waits.
"""

from __future__ import annotations

SHARE, UNITS = 0.2, 2
"""Of a pass: it takes the loop about an eighth of it to write the answers and to read the next questions. With more
units than these less, by as much as callers of others come sooner, or those would pass for the ones who return."""
LIKELY = 0.75
"""Of the rows that were answered, how many usually have to come back in that time."""
LEARNING = 0.2
"""The weight of the newest batch in what is usual."""


class Coalescing:
    """Times are those of one clock, in seconds."""

    def __init__(self, units: int = 1) -> None:
        """`units` run passes side by side."""
        self._share = SHARE * min(1.0, UNITS / units)
        self._usual = 0.0
        self._awaited = self._came = 0
        self._until = 0.0

    def note_answer(self, rows: int, seconds: float, now: float) -> None:
        """A pass of so many seconds answered callers who had brought so many rows; none where all wait for more."""
        if not rows:
            return
        if self._awaited and (now >= self._until or self._came >= self._awaited):
            self._usual += LEARNING * (min(1.0, self._came / self._awaited) - self._usual)
            self._awaited = self._came = 0
        self._awaited += rows
        self._until = now + self._share * seconds

    def note_arrival(self, rows: int, now: float) -> None:
        """So many rows came."""
        if now < self._until:
            self._came += rows

    def patience(self, now: float) -> float:
        """Seconds for which it is worth waiting for more."""
        if self._usual < LIKELY or self._came >= self._awaited:
            return 0.0
        return max(0.0, self._until - now)
