"""Units as an experiment's ledger would have summed them, from arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from app.experiments.events.aggregates import ArmSums, Day, Moments, PhaseSums

FIRST = date(2026, 3, 1)


def moments(
    y: NDArray[np.float64],
    z: NDArray[np.float64] | None = None,
    x: NDArray[np.float64] | None = None,
    propensity: float = 1.0,
) -> Moments:
    """The sums of units; a NaN in x is a missing covariate."""
    found = Moments(y=float(y.sum()), yy=float((y * y).sum()), weight=len(y) / propensity)
    found.weighted_y, found.weighted_yy = found.y / propensity, found.yy / propensity
    if z is not None:
        found.z, found.zz, found.yz = float(z.sum()), float((z * z).sum()), float((y * z).sum())
    known = np.isfinite(x) if x is not None else np.zeros(len(y), bool)
    found.x_missing = int((~known).sum())
    if x is not None:
        found.x, found.xx = float(x[known].sum()), float((x[known] ** 2).sum())
        found.xy, found.y_with_x = float((x[known] * y[known]).sum()), float(y[known].sum())
    return found


def phase(
    arms: Mapping[str, Mapping[str, Moments]],
    units: Mapping[str, int],
    shares: Mapping[str, float],
    number: int = 1,
    days: int = 1,
    first: date = FIRST,
) -> PhaseSums:
    """A phase from moments by arm and metric; its units are spread evenly over days."""
    by_day: dict[str, dict[str, Day]] = {}
    for index in range(days):
        day = (first + timedelta(days=index)).isoformat()
        by_day[day] = {name: _slice(arms[name], units[name], index, days) for name in arms}
    sums = {
        name: ArmSums(units=units[name], mature=units[name], exposures=2 * units[name], metrics=dict(arms[name]))
        for name in arms
    }
    return PhaseSums(number, dict(shares), sums, by_day)


def _slice(metrics: Mapping[str, Moments], units: int, index: int, days: int) -> Day:
    count = units * (index + 1) // days - units * index // days
    part = count / units if units else 0.0
    return Day(count, {m: one.y * part for m, one in metrics.items()}, {m: one.yy * part for m, one in metrics.items()})


def successes(count: int, units: int, propensity: float = 1.0) -> Moments:
    """The sums of a binary metric."""
    y = np.zeros(units)
    y[:count] = 1.0
    return moments(y, propensity=propensity)


def binary_phase(
    counts: Mapping[str, tuple[int, int]], shares: Mapping[str, float], metric: str = "bought", **further: int
) -> PhaseSums:
    """A phase of one binary metric, from (successes, units) by arm."""
    arms = {name: {metric: successes(*count)} for name, count in counts.items()}
    return phase(arms, {name: units for name, (_, units) in counts.items()}, shares, **further)


def seconds_after(days: int, first: date = FIRST) -> float:
    """The time so many days after the first day began."""
    return datetime.combine(first + timedelta(days=days), datetime.min.time(), UTC).timestamp()


def halves(names: Sequence[str]) -> dict[str, float]:
    return {name: 1 / len(names) for name in names}
