"""Least squares over the units of all arms and phases at once, from sums alone.

y = a level for each phase + x(arm) . coefficients: what differs between phases (another week, another crowd) is taken
out before arms are compared, whatever their shares were. With x = (t, t^2) that is a curve over a dose; with x naming
the arm, it is each arm's lift on the first. The covariance is the sandwich, so arms may differ in variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class RegressionCell:
    """Units of one arm in one phase: how many, the mean of y, and the variance of y of a single unit."""

    phase: int
    arm: str
    units: int
    mean: float
    variance: float


@dataclass(frozen=True)
class RegressionFit:
    """Coefficients and their covariance."""

    coefficients: Matrix  # (K,)
    covariance: Matrix  # (K, K)
    misfit: float
    """Chi-square of cell means around the fit."""
    degrees: int
    """Of the misfit; 0 where the fit goes through every cell."""

    def draws(self, count: int, random: np.random.Generator) -> Matrix:
        """Draws of the coefficients from their posterior under a flat prior, (count, K)."""
        return random.multivariate_normal(self.coefficients, self.covariance, count, method="eigh")


def dose_rows(doses: Mapping[str, float]) -> dict[str, list[float]]:
    """x of a quadratic over t."""
    return {arm: [t, t * t] for arm, t in doses.items()}


def arm_rows(arms: Sequence[str]) -> dict[str, list[float]]:
    """x that has a coefficient for each arm but the first."""
    return {arm: [float(arm == other) for other in arms[1:]] for arm in arms}


def fit(cells: Sequence[RegressionCell], rows: Mapping[str, list[float]]) -> RegressionFit | None:
    """The fit, or None where the cells cannot tell the coefficients apart.

    b = (X'NX)^-1 X'Ny with phase means taken out; covariance (X'NX)^-1 X'N S X (X'NX)^-1, S the variances of units.
    """
    x = np.array([rows[cell.arm] for cell in cells], float)  # (cells, K)
    if not x.size:
        return None
    y = np.array([cell.mean for cell in cells])
    n = np.array([cell.units for cell in cells], float)
    variance = np.array([cell.variance for cell in cells])
    phases = np.array([cell.phase for cell in cells])
    for phase in set(phases.tolist()):
        at = phases == phase
        x[at] -= np.average(x[at], axis=0, weights=n[at])
        y[at] -= np.average(y[at], weights=n[at])
    normal = (x.T * n) @ x
    if np.linalg.matrix_rank(normal) < x.shape[1]:
        return None
    inverse = np.linalg.inv(normal)
    coefficients = inverse @ (x.T @ (n * y))
    covariance = inverse @ ((x.T * (n * variance)) @ x) @ inverse
    left = y - x @ coefficients
    seen = variance > 0
    misfit = float(np.sum(n[seen] * left[seen] ** 2 / variance[seen]))
    degrees = len(cells) - len(set(phases.tolist())) - x.shape[1]
    return RegressionFit(coefficients, (covariance + covariance.T) / 2, misfit, degrees)
