"""Many comparisons at once: p-values that keep the chance of any false finding at alpha (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence


def holm(ps: Sequence[float]) -> list[float]:
    """The adjusted p of each: the i-th smallest times (m - i + 1), never below a smaller one's, at most 1."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted
