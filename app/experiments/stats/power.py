"""How many units a test takes, which effect it can find, and how many days are left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import norm

from app.experiments.stats.sequential_tests import ALPHA, inflation

WANTED = 0.8
RECENT = 7
"""Days over which the traffic is averaged."""


def variance_of_rate(rate: float) -> float:
    """Of a binary metric's unit: p (1 - p)."""
    return rate * (1 - rate)


def units_per_arm(
    effect: float, control_variance: float, arm_variance: float, looks: int = 1, wanted: float = WANTED
) -> int:
    """Units of each of two equal arms that find an absolute effect with the wanted power, at alpha = 0.05 two-sided.

    (z_(1-alpha/2) + z_power)^2 (var_control + var_arm) / effect^2, times what looking more than once costs.
    """
    needed = (_reach(wanted) / effect) ** 2 * (control_variance + arm_variance)
    return math.ceil(needed * (inflation(looks, wanted) if looks > 1 else 1.0))


def detectable(units: int, variance: float, looks: int = 1, wanted: float = WANTED, alpha: float = ALPHA) -> float:
    """The absolute effect that two arms of so many units each, of one variance, find with the wanted power."""
    extra = inflation(looks, wanted, alpha) if looks > 1 else 1.0
    return _reach(wanted, alpha) * math.sqrt(extra * 2 * variance / units)


def days_to_go(planned: int, units: int, per_day: float) -> int | None:
    """Days until the planned units are there at this pace; None if nobody comes."""
    left = max(0, planned - units)
    if not left:
        return 0
    return math.ceil(left / per_day) if per_day > 0 else None


def pace(by_day: Sequence[int]) -> float:
    """Units a day over the last full days, oldest first; the last one given is under way and does not count."""
    full = by_day[:-1][-RECENT:]
    return sum(full) / len(full) if full else 0.0


def _reach(wanted: float, alpha: float = ALPHA) -> float:
    return float(norm.isf(alpha / 2) + norm.ppf(wanted))
