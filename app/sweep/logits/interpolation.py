"""Logits between blends that were really run: a polynomial in t through every text's logits.

Along the line between a base and a fine-tune of it, each text's logits are almost a polynomial of low degree in t, far
smoother than the loss or the accuracy made from them. So a handful of true passes gives them at every t. The weights of
the nodes do not depend on the text: `weights @ logits at the nodes` is all of it.

Never beyond the nodes: a polynomial means nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interpolation:
    """The polynomial of total degree `degree` that fits the values at `nodes` (K, D) best, by least squares.

    With as many nodes as coefficients it goes through them: in one dimension it is Lagrange's.
    """

    nodes: NDArray[np.float64]
    degree: int

    def weights(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each node counts at each of the points (G, D): (G, K)."""
        return powers(points, self.degree) @ np.linalg.pinv(powers(self.nodes, self.degree))


def powers(points: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Every product of at most `degree` coordinates of points (G, D): (G, M)."""
    count, dimensions = points.shape
    columns = [
        np.prod(points[:, list(chosen)], axis=1) if chosen else np.ones(count)
        for total in range(degree + 1)
        for chosen in combinations_with_replacement(range(dimensions), total)
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Check:
    """What a true pass at t said about logits that were come by in some `way`: the mean and the largest difference of a
    logit, and the share of texts that get another label."""

    t: float
    way: str
    mean: float
    largest: float
    labels: float


TOLERANCE = 0.02
"""The mean difference of a logit up to which interpolated logits are believed."""


def checked(t: float, way: str, guess: NDArray[np.float64], true: NDArray[np.float64]) -> Check:
    """Compare logits (N, C)."""
    gap = np.abs(guess - true)
    labels = (guess.argmax(axis=1) != true.argmax(axis=1)).mean()
    return Check(t, way, float(gap.mean()), float(gap.max()), float(labels))
