"""Tests that stay honest when somebody peeks.

Where an end is planned, a group-sequential test: an error of alpha is spent little by little, almost all of it at the
end (Lan and DeMets 1983, with the spending function that follows O'Brien and Fleming 1979). Where there is no end, an
asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv 2103.06476): an interval that covers
the truth at all times at once, about one and a half times as wide. The first is the stronger one where both would do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

Vector = NDArray[np.float64]

ALPHA = 0.05
GRID = 501
"""Points of the grid that densities are integrated on."""

HIGHEST_BOUND = 8.0
"""Standard errors that an early look needs at most: beyond, there is no probability left to spend."""

CLOSEST = 0.002
"""Looks nearer to each other than this, as parts of the plan, count as one: the grid cannot tell them apart."""

TUNED_FOR = 10_000
"""Units of both arms at which a confidence sequence without a plan is narrowest."""


# -- a planned end -----------------------------------------------------------------------------------------


def spent(fraction: float, alpha: float = ALPHA) -> float:
    """The two-sided error that may be spent until a part f of the plan: 4 (1 - Phi(z_(1-alpha/4) / sqrt f))."""
    if fraction <= 0:
        return 0.0
    return float(4 * norm.sf(norm.isf(alpha / 4) / math.sqrt(min(1.0, fraction))))


def looks_at(fractions: Sequence[float]) -> tuple[float, ...]:
    """Looks that count: growing, none beyond the plan's end, the last one kept, close ones taken together."""
    kept: list[float] = []
    for fraction in fractions:
        fraction = min(1.0, fraction)
        if fraction <= 0:
            continue
        while kept and fraction - kept[-1] < CLOSEST:
            kept.pop()
        kept.append(fraction)
    return tuple(kept)


@lru_cache(256)
def bounds(
    fractions: tuple[float, ...], alpha: float = ALPHA, spending: Callable[[float, float], float] = spent
) -> tuple[float, ...]:
    """By look: how many standard errors the difference must exceed to be told from 0. Fractions grow, within (0, 1].

    The score B(f) = sqrt(f) Z(f) is a Brownian motion; the density of those paths that have not crossed yet is carried
    from look to look by integration (Armitage, McPherson, Rowe 1969), and each bound solves for the error that the
    spending function allows between two looks, half of it on either side.
    """
    found: list[float] = []
    paths = _Paths()
    before = 0.0
    for fraction in fractions:
        allowed = (spending(fraction, alpha) - before) / 2
        before = spending(fraction, alpha)
        step = paths.towards(fraction)
        bound = step.bound_that_spends(allowed)
        found.append(bound / math.sqrt(fraction))
        paths = step.within(bound)
    return tuple(found)


def power(fractions: tuple[float, ...], drift: float, alpha: float = ALPHA) -> float:
    """The probability that a look crosses its bound, if Z at the planned end has the mean `drift`."""
    paths, crossed = _Paths(drift=drift), 0.0
    for fraction, critical in zip(fractions, bounds(fractions, alpha), strict=True):
        bound, step = critical * math.sqrt(fraction), paths.towards(fraction)
        crossed += step.beyond(bound) + step.below(-bound)
        paths = step.within(bound)
    return crossed


@lru_cache(64)
def inflation(looks: int, wanted: float, alpha: float = ALPHA) -> float:
    """How many times the units of a single-look test it takes to look this often, equally spaced, at the same power."""
    fractions = tuple(look / looks for look in range(1, looks + 1))
    single = float(norm.isf(alpha / 2) + norm.ppf(wanted))
    drift = brentq(lambda d: power(fractions, d, alpha) - wanted, single / 2, 2 * single, xtol=1e-6)
    return float((drift / single) ** 2)


class _Paths:
    """The density of the score at one look, of paths that crossed no bound so far; at the start all are at 0."""

    def __init__(
        self, fraction: float = 0.0, points: Vector | None = None, mass: Vector | None = None, drift: float = 0.0
    ) -> None:
        self._fraction, self._drift = fraction, drift
        self._points = np.zeros(1) if points is None else points
        self._mass = np.ones(1) if mass is None else mass  # density times width

    def towards(self, fraction: float) -> _Step:
        gap = fraction - self._fraction
        return _Step(fraction, self._points + self._drift * gap, self._mass, math.sqrt(gap), self._drift)


class _Step:
    """Where these paths are at the next look, before that look stops any."""

    def __init__(self, fraction: float, centres: Vector, mass: Vector, spread: float, drift: float) -> None:
        self._fraction, self._centres, self._mass = fraction, centres, mass
        self._spread, self._drift = spread, drift

    def beyond(self, bound: float) -> float:
        return float(self._mass @ ndtr((self._centres - bound) / self._spread))

    def below(self, bound: float) -> float:
        return float(self._mass @ ndtr((bound - self._centres) / self._spread))

    def bound_that_spends(self, allowed: float) -> float:
        highest = HIGHEST_BOUND * math.sqrt(self._fraction)
        if allowed <= self.beyond(highest):
            return highest
        return float(brentq(lambda bound: self.beyond(bound) - allowed, 0.0, highest, xtol=1e-10))

    def within(self, bound: float) -> _Paths:
        points = np.linspace(-bound, bound, GRID)
        widths = np.full(GRID, 2 * bound / (GRID - 1)) * _simpson()
        scaled = (points[:, None] - self._centres) / self._spread
        density = np.exp(-0.5 * scaled**2) @ self._mass / (self._spread * math.sqrt(2 * math.pi))
        return _Paths(self._fraction, points, density * widths, self._drift)


@lru_cache(1)
def _simpson() -> Vector:
    weights = np.full(GRID, 2 / 3)
    weights[1::2] = 4 / 3
    weights[[0, -1]] = 1 / 3
    return weights


# -- no planned end ----------------------------------------------------------------------------------------


def sequence_critical(units: float, tuned_for: float = TUNED_FOR, alpha: float = ALPHA) -> float:
    """How many standard errors a confidence sequence reaches after so many units of both arms.

    sqrt(2 (n r + 1) / (n r) log(sqrt(n r + 1) / alpha)), with r as in `_mixing`: narrowest at n = `tuned_for`.
    """
    grown = units * _mixing(tuned_for, alpha)
    return math.sqrt(2 * (grown + 1) / grown * math.log(math.sqrt(grown + 1) / alpha))


def sequence_p(score: float, units: float, tuned_for: float = TUNED_FOR, alpha: float = ALPHA) -> float:
    """The always-valid p of a difference of `score` standard errors: the least alpha whose sequence leaves out 0."""
    grown = units * _mixing(tuned_for, alpha)
    return min(1.0, math.exp(0.5 * math.log1p(grown) - score**2 * grown / (2 * (grown + 1))))


def _mixing(tuned_for: float, alpha: float) -> float:
    """rho^2 = (-2 log alpha + log(1 - 2 log alpha)) / n*."""
    return (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / tuned_for
