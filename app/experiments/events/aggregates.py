"""Sufficient statistics of an experiment: sums over units, enough for every interval and test of its report.

A unit's value of a metric is the sum of its outcomes within the window after its first exposure (binary: 1 if any
was above 0), at most the metric's cap; 0 without an outcome. So every sum runs over all exposed units of the arm.

One Redis hash holds all sums of an experiment, by path:

    PHASE/ARM/units, exposures, agreements, weight, x, xx, x_missing
    PHASE/ARM/hours/HOUR                   units by the hour since 1970 of their first exposure
    PHASE/ARM/metrics/METRIC/SUM           SUM is a field of `Moments`
    PHASE/ARM/days/DATE/units, DATE/y/METRIC, DATE/yy/METRIC
    0/-/uncounted/WHY                      outcomes that count in no phase and arm
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.experiments.events.aggregation import HOUR, UNCOUNTED
from app.experiments.experiment import Experiment


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


def read_sums(
    fields: Mapping[str, float], experiment: Experiment, shares: Mapping[int, Mapping[str, float]], now: float
) -> list[PhaseSums]:
    """The sums by phase. `shares` by phase and arm, as configured; a phase without units is empty."""
    metrics = [metric.name for metric in experiment.metrics]
    arms = [arm.name for arm in experiment.arms]
    phases = {number: PhaseSums(number, dict(shares[number]), {}) for number in sorted(shares)}
    for number, phase in phases.items():
        for arm in [*arms, *(name for name in shares[number] if name not in arms)]:
            phase.arms[arm] = ArmSums(metrics={metric: Moments() for metric in metrics})
    closed = now - experiment.window
    for path, amount in fields.items():
        if path.startswith(UNCOUNTED):
            continue
        first, arm, *rest = path.split("/")
        phase = phases.setdefault(int(first), PhaseSums(int(first), {}, {}))
        sums = phase.arms.setdefault(arm, ArmSums(metrics={metric: Moments() for metric in metrics}))
        match rest:
            case ["hours", hour]:
                sums.mature += round(amount) if (int(hour) + 1) * HOUR <= closed else 0
            case ["metrics", metric, name] if metric in sums.metrics:
                setattr(sums.metrics[metric], name, amount)
            case ["days", date, *what]:
                _note(phase.days.setdefault(date, {}).setdefault(arm, Day()), what, amount)
            case [("units" | "exposures" | "agreements") as name]:
                setattr(sums, name, round(amount))
            case [("x" | "xx" | "weight") as name]:  # the same for every metric
                for moments in sums.metrics.values():
                    setattr(moments, name, amount)
            case ["x_missing"]:
                for moments in sums.metrics.values():
                    moments.x_missing = round(amount)
    return [phases[number] for number in sorted(phases)]


def read_uncounted(fields: Mapping[str, float]) -> dict[str, int]:
    """Outcomes that count nowhere, by why."""
    found = {path.rpartition("/")[2]: round(amount) for path, amount in fields.items() if path.startswith(UNCOUNTED)}
    return {why: count for why, count in sorted(found.items()) if count}


def _note(day: Day, what: list[str], amount: float) -> None:
    match what:
        case ["units"]:
            day.units = round(amount)
        case ["y", metric]:
            day.y[metric] = amount
        case ["yy", metric]:
            day.yy[metric] = amount
