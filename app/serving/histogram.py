"""How often something took how long, counted so cheaply that every request may be."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Histogram:
    """Counts values by upper bounds, which belong to their bucket. For one thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.sum = 0.0
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)

    def note(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[float, int]]:
        """Upper bound, and how many values were up to it; the last bound is infinite."""
        total = 0
        summed = []
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            summed.append((bound, total))
        return summed
