"""The logits of data sets at every t of a line, from few forward passes.

Between a base and its fine-tune each text's logits are almost a polynomial of low degree in t, far smoother than the
loss or the accuracy made from them. So five blends are run, and each text's logits are interpolated between them, never
beyond. Two checks decide whether the interpolation holds: a sixth blend, at a t that is no node, and the blend that is
chosen, 7 passes in all. If a check fails, a grid of blends is run and interpolated by a spline; if that fails too, the
choice is among the blends that were run. A grid that the caller names is run instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache


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
    """Interpolated logits against a forward pass at t: mean and largest difference of a logit, and the share of texts
    that get another label. `way` names the interpolation."""

    t: float
    way: str
    mean: float
    largest: float
    labels: float


TOLERANCE = 0.02
"""The mean difference of a logit up to which the interpolation is accepted."""


def checked(t: float, way: str, guess: NDArray[np.float64], true: NDArray[np.float64]) -> Check:
    """Compare logits (N, C)."""
    gap = np.abs(guess - true)
    labels = (guess.argmax(axis=1) != true.argmax(axis=1)).mean()
    return Check(t, way, float(gap.mean()), float(gap.max()), float(labels))


NODES = (0.0, 0.2, 0.5, 0.8, 1.0)
CHECK = 0.35
ALWAYS = (0.0, 0.5, 1.0)
"""Always reported: both ends, and the middle."""

GRID = tuple(step / 10 for step in range(11))
STEP = 0.01
"""How finely t is searched: beyond the passes it is arithmetic on stored logits."""


@dataclass(frozen=True)
class Way:
    """How to come by the logits at any t: blends to run, and how much each counts at ts (G,): (G, K)."""

    name: str
    nodes: tuple[float, ...]
    weights: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def polynomial(ts: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each of NODES counts at ts (G,): (G, K)."""
    return Interpolation(np.array(NODES)[:, None], len(NODES) - 1).weights(ts[:, None])


def _spline(ts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(CubicSpline(GRID, np.eye(len(GRID)))(ts))


WAYS = (Way("polynomial", NODES, polynomial), Way("spline", GRID, _spline))
"""The cheap way first, then the way to go if it is not to be believed."""


def planned(grid: Sequence[float] = ()) -> list[float]:
    """The t's of the blends that are sure to be run."""
    return sorted({*ALWAYS, *map(float, grid)}) if grid else [*NODES, CHECK]


class LogitCurve:
    """Logits at any t. `texts` are those of each data set; their passes are made here, and kept."""

    ordered = True

    def __init__(
        self, line: Line, texts: Sequence[Sequence[str]], passes: LogitCache, grid: Sequence[float] = ()
    ) -> None:
        self.line = line
        self.checks: list[Check] = []
        self._texts = texts
        self._passes = passes
        self._true: dict[float, list[NDArray[np.float64]]] = {}
        self._ways = [] if grid else list(WAYS)
        ts = planned(grid)
        passes.expect((len(ts) + (not grid)) * sum(map(len, texts)))
        self._foresee(ts)
        for t in ts if grid else ():
            self._run(t)
        self._run_nodes()
        self.check(CHECK)

    @property
    def way(self) -> str:
        """How logits come about: `polynomial`, `spline`, or `run` for only those of blends that were run."""
        return self._ways[0].name if self._ways else "run"

    @property
    def ts(self) -> NDArray[np.float64]:
        """The t's to choose from."""
        return np.round(np.arange(0, 1 + STEP / 2, STEP), 6) if self._ways else np.array(self.ts_run)

    @property
    def ts_run(self) -> list[float]:
        """The t's of the blends that were run, 0 first."""
        return sorted(self._true)

    def logits(self, data: int, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (G, N, C) of a data set at ts (G,), which are among `self.ts`."""
        if not self._ways:
            return np.stack([self._true[float(t)][data] for t in ts])
        way = self._ways[0]
        return np.tensordot(way.weights(ts), np.stack([self._true[t][data] for t in way.nodes]), axes=1)

    def true(self, data: int, t: float) -> NDArray[np.float64]:
        """Logits (N, C) of the blend itself."""
        return self._run(t)[data]

    def check(self, t: float) -> bool:
        """Run the blend at t and compare; where the logits are too far off, go the next way from now on.

        False if what `logits` gives has changed, so that a choice made from it must be made again.
        """
        if not self._ways or t in self._ways[0].nodes:
            return True
        guess = [self.logits(data, np.array([t]))[0] for data in range(len(self._texts))]
        check = checked(t, self.way, np.concatenate(guess), np.concatenate(self._run(t)))
        self.checks.append(check)
        if check.mean <= TOLERANCE:
            return True
        del self._ways[0]
        if self._ways:
            missing = set(self._ways[0].nodes) - set(self._true)
            self._passes.expect(len(missing) * sum(map(len, self._texts)))
            self._foresee(sorted(missing))
        self._run_nodes()
        self.check(CHECK)
        return False

    def _foresee(self, ts: Sequence[float]) -> None:
        self._passes.foresee([(texts, self.line.at(t)) for t in ts for texts in self._texts])

    def _run_nodes(self) -> None:
        for t in self._ways[0].nodes if self._ways else ():
            self._run(t)

    def _run(self, t: float) -> list[NDArray[np.float64]]:
        t = float(t)
        if t not in self._true:
            recipe = self.line.at(t)
            self._true[t] = [self._passes.logits(texts, recipe) for texts in self._texts]
        return self._true[t]
