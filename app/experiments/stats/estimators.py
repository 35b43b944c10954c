"""What sums over units say: means, ratios and their differences, with intervals for one look at a planned end.

Notation: y is a unit's value of the metric, z what a ratio metric divides by, x the covariate, n the units of an arm.
Everything here is large-sample arithmetic on `Moments`; what stays valid under peeking is in `sequential_tests.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import stats

from app.experiments.events.aggregates import Moments

FEWEST = 2
"""Units of an arm below which nothing is estimated: one has no variance."""

NOISE = 1e-14
"""Variance of a unit's value, as part of the squared mean, that rounding leaves where nothing varies."""


@dataclass(frozen=True)
class Estimate:
    """A number and how well it is known."""

    value: float
    squared_error: float
    """Variance of the estimate: the square of its standard error, in squared units of the value."""
    units: int
    degrees: float = math.inf
    """Degrees of freedom of the squared error; infinite where a normal is used."""

    @property
    def error(self) -> float:
        return math.sqrt(self.squared_error)


def mean(moments: Moments, units: int, binary: bool = False) -> Estimate:
    """The mean of y over units; its variance is s^2 / n, of a binary metric that of `share_variance` / n."""
    value = moments.y / units
    if binary:
        return Estimate(value, share_variance(moments.y, units) / units, units)
    return Estimate(value, _variance(moments.y, moments.yy, units) / units, units, units - 1)


def share_variance(successes: float, units: int) -> float:
    """Of one unit's value of a binary metric: p (1 - p), p = y / n.

    Where all units or none have the outcome that would be 0, as if the share were known without error. There p is
    (y + 1) / (n + 2), which gives about the variance that one outcome less, or more, would have.
    """
    share = successes / units
    if share <= 0 or share >= 1:
        share = (successes + 1) / (units + 2)
    return share * (1 - share)


def ratio(moments: Moments, units: int) -> Estimate | None:
    """R = sum y / sum z of unit-level sums, by the delta method (Deng, Knoblich, Lu 2018, arXiv 1803.06336).

    var(R) = (s_y^2 - 2 R s_yz + R^2 s_z^2) / (n mean(z)^2). None if z is 0 everywhere.
    """
    if moments.z == 0:
        return None
    value, centre = moments.y / moments.z, moments.z / units
    s_yy = _variance(moments.y, moments.yy, units)
    s_zz = _variance(moments.z, moments.zz, units)
    s_yz = _covariance(moments.y, moments.z, moments.yz, units)
    spread = max(0.0, s_yy - 2 * value * s_yz + value**2 * s_zz)
    return Estimate(value, spread / (units * centre**2), units, units - 1)


def adjusted(arms: Mapping[str, tuple[Moments, int]], binary: bool = False) -> dict[str, Estimate] | None:
    """Means after regression on a covariate that no arm can have changed (CUPED: Deng, Xu, Kohavi, Walker 2013).

    y' = y - theta (x - mean(x)), theta = cov(x, y) / var(x) within arms, pooled over them; the variance shrinks by
    about 1 - corr(x, y)^2. A unit without x counts as one with the mean x, which leaves its y as it is. None if no
    unit has an x or all have the same. An arm without variance in a binary metric has at least the one that
    `share_variance` gives it.
    """
    known = {name: units - moments.x_missing for name, (moments, units) in arms.items()}
    with_x = [name for name, count in known.items() if count >= FEWEST]
    if not with_x:
        return None
    s_xx = sum(_sum_of_squares(arms[name][0].x, arms[name][0].xx, known[name]) for name in with_x)
    s_xy = sum(_sum_of_products(arms[name][0], known[name]) for name in with_x)
    if s_xx <= 1e-12 * sum(arms[name][0].xx for name in with_x):
        return None
    theta = s_xy / s_xx
    centre = sum(arms[name][0].x for name in with_x) / sum(known[name] for name in with_x)
    found = {name: _adjusted(moments, units, known[name], theta, centre) for name, (moments, units) in arms.items()}
    if not binary:
        return found
    return {name: with_least_error(found[name], moments.y, units) for name, (moments, units) in arms.items()}


def with_least_error(estimate: Estimate, successes: float, units: int) -> Estimate:
    """Of a binary metric: no error below that of a share where all units or none have the outcome."""
    if 0 < successes < units:
        return estimate
    return replace(estimate, squared_error=max(estimate.squared_error, share_variance(successes, units) / units))


def _adjusted(moments: Moments, units: int, known: int, theta: float, centre: float) -> Estimate:
    # Sums over all units of u = x - centre, which is 0 where x is missing.
    u = moments.x - known * centre
    uu = moments.xx - 2 * centre * moments.x + known * centre**2
    uy = moments.xy - centre * moments.y_with_x
    s_yy = _variance(moments.y, moments.yy, units)
    s_uu = _variance(u, uu, units)
    s_uy = _covariance(u, moments.y, uy, units)
    spread = max(0.0, s_yy - 2 * theta * s_uy + theta**2 * s_uu)
    return Estimate((moments.y - theta * u) / units, spread / units, units, units - 1)


def difference(arm: Estimate, control: Estimate) -> Estimate:
    """arm - control; degrees of freedom by Welch (1947) and Satterthwaite (1946)."""
    squared = arm.squared_error + control.squared_error
    parts = [
        part.squared_error**2 / part.degrees
        for part in (arm, control)
        if math.isfinite(part.degrees) and part.squared_error > 0
    ]
    degrees = squared**2 / sum(parts) if parts else math.inf
    return Estimate(arm.value - control.value, squared, arm.units + control.units, degrees)


def varied(arm: Estimate, control: Estimate) -> tuple[Estimate, Estimate] | None:
    """Both, with an error above 0; None where no unit differs from any other.

    Where units differ between the arms and not within either, their variance is that of all units together, which puts
    the arms sqrt(n) standard errors apart.
    """
    scale, units = max(arm.value**2, control.value**2), arm.units + control.units
    if (arm.squared_error + control.squared_error) * units > NOISE * scale:
        return arm, control
    squared = (arm.value - control.value) ** 2
    if squared <= 100 * NOISE * scale:
        return None
    return (
        replace(arm, squared_error=squared * control.units / units**2),
        replace(control, squared_error=squared * arm.units / units**2),
    )


def strata(pairs: Sequence[tuple[Estimate, Estimate]]) -> tuple[Estimate, Estimate]:
    """Arm and control, each averaged over strata with the weights of Cochran (1954), n_a n_c / (n_a + n_c).

    Strata are phases, within which shares are constant: comparing within them keeps a change of shares from passing
    for an effect (Simpson's paradox). These weights are the best ones where the effect is the same in every stratum.
    """
    weights = [cochran(arm, control) for arm, control in pairs]
    whole = sum(weights)
    shares = [weight / whole for weight in weights]
    return _average([arm for arm, _ in pairs], shares), _average([control for _, control in pairs], shares)


def cochran(arm: Estimate, control: Estimate) -> float:
    """The weight of a stratum."""
    return arm.units * control.units / (arm.units + control.units)


def _average(parts: Sequence[Estimate], shares: Sequence[float]) -> Estimate:
    if len(parts) == 1:
        return parts[0]
    value = sum(share * part.value for share, part in zip(shares, parts, strict=True))
    squared = sum(share**2 * part.squared_error for share, part in zip(shares, parts, strict=True))
    return Estimate(value, squared, sum(part.units for part in parts))


def fixed_critical(degrees: float, alpha: float) -> float:
    """How many standard errors a two-sided interval for a single look reaches: of Student's t, or the normal."""
    return float(stats.norm.isf(alpha / 2) if math.isinf(degrees) else stats.t.isf(alpha / 2, degrees))


def fixed_p(change: Estimate) -> float:
    """Two-sided p of no difference, for a single look."""
    if change.squared_error == 0:
        return 1.0
    score = abs(change.value) / change.error
    return float(2 * (stats.norm.sf(score) if math.isinf(change.degrees) else stats.t.sf(score, change.degrees)))


def relative(arm: Estimate, control: Estimate, critical: float) -> tuple[float, float] | None:
    """The interval of arm / control - 1 (Fieller 1954): all r with |arm - (1 + r) control| within `critical` errors.

    None where control's own interval holds 0: then no relative change is excluded.
    """
    a = control.value**2 - critical**2 * control.squared_error
    if a <= 0:
        return None
    b = arm.value * control.value
    c = arm.value**2 - critical**2 * arm.squared_error
    root = math.sqrt(max(0.0, b**2 - a * c))
    return (b - root) / a - 1, (b + root) / a - 1


def _sum_of_squares(total: float, squares: float, n: int) -> float:
    return max(0.0, squares - total**2 / n)


def _variance(total: float, squares: float, n: int) -> float:
    return _sum_of_squares(total, squares, n) / (n - 1)


def _covariance(first: float, second: float, products: float, n: int) -> float:
    return (products - first * second / n) / (n - 1)


def _sum_of_products(moments: Moments, known: int) -> float:
    return moments.xy - moments.x * moments.y_with_x / known
