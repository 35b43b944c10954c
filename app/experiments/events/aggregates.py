"""What is kept of an experiment's traffic: sums over units, enough for every interval and test of its report.

A unit's value of a metric is the sum of its outcomes within the window after its first exposure (binary: 1 if any
was above 0), at most the metric's cap; 0 without an outcome. So every sum runs over all exposed units of the arm.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Moments:
    """Sums over the units of one arm: of the metric y, of what it is divided by (a ratio metric) z, and of the
    covariate x, which was known before the exposure. Missing covariates count as `x_missing`, not in sums of x."""

    y: float = 0.0
    yy: float = 0.0
    z: float = 0.0
    zz: float = 0.0
    yz: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    y_with_x: float = 0.0  # sums of y over units that have an x
    x_missing: int = 0
    # For bandits: sums over units weighted by 1 / propensity of the arm that the unit got.
    weight: float = 0.0
    weighted_y: float = 0.0
    weighted_yy: float = 0.0


@dataclass
class ArmSums:
    """One arm in one phase."""

    units: int = 0
    mature: int = 0  # units whose window has closed
    exposures: int = 0
    agreements: int = 0  # of a shadow arm: exposures where it gave the label that was shown
    metrics: dict[str, Moments] = field(default_factory=dict)


@dataclass
class Day:
    """One arm on one day in UTC, by the units' first exposure, for trends and stratified estimates."""

    units: int = 0
    y: dict[str, float] = field(default_factory=dict)  # by metric
    yy: dict[str, float] = field(default_factory=dict)


@dataclass
class PhaseSums:
    """One phase: the time during which salt and shares stayed as they were."""

    phase: int
    shares: dict[str, float]  # by arm, as configured
    arms: dict[str, ArmSums]
    days: dict[str, dict[str, Day]] = field(default_factory=dict)  # by date (2026-11-24), by arm
