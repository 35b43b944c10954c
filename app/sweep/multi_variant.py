"""Several variants: a line from the base towards the best mix of them, on which a sweep then goes its usual way.

The t's of the variants lie in the simplex t_i >= 0, sum t_i <= 1: between the members, never beyond. Up to four
variants, each text's logits get a quadratic response surface through the corners and the middles of the edges:
(D + 1)(D + 2) / 2 passes. Its best point is run, becomes a node, and the surface is fitted anew until the best point
stays. That misses logits by a few hundredths, which is good enough for a direction; the line is then swept and checked
for itself. Beyond four variants optuna's TPE tries blends, all of them run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from app.errors import BadData
from app.sweep.choose_t import interval
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.logits.logit_curve import Interpolation
from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.sweep.one_line import choice_of
from app.sweep.sweep_result import Direction, Value
from app.sweep.sweep_spec import SweepSpec
from app.sweep.temperature_scaling import fitted_beta
from app.weights.recipe import Cookbook

MOST_BY_SURFACE = 4
CANDIDATES = 8
"""2 to the power of this many points of the simplex are looked at."""

ROUNDS = 3
NEAR = 0.05
"""A best point that moves less than this has settled."""

TRIALS = 60


def towards_the_best_mix(spec: SweepSpec, variants: Sequence[str], passes: LogitCache) -> tuple[Line, Direction]:
    """The line from the base through the best mix of the variants, to where their t's add up to 1.

    The spec's own line plays no part; its targets, guards and objective do.
    """
    cookbook = spec.line.cookbook
    mixes = Mixes(cookbook, variants, [d.texts for d in spec.datasets], passes, spec.seed)
    free = replace(spec, penalty=0.0, rule="best")
    if len(variants) <= MOST_BY_SURFACE:
        _follow_the_surface(mixes, free)
    else:
        _try_blends(mixes, free)
    choice = choice_of(free, mixes)
    best = mixes.points[choice.chosen.chosen]
    low, high = interval(mixes.points[choice.best_ts.astype(np.int64)])
    end = best if best.any() else np.ones(len(variants))
    shares = np.round(end / end.sum(), 2)
    text = "+".join(f"{name}@{share:g}" for name, share in zip(variants, shares, strict=True) if share)
    direction = Direction(
        t={name: Value(float(b), float(a), float(c)) for name, b, a, c in zip(variants, best, low, high, strict=True)},
        blends=len(mixes.nodes),
        way="response surface" if len(variants) <= MOST_BY_SURFACE else "trials",
    )
    return Line.read(text, cookbook), direction


class Mixes:
    """Logits at mixes of variants. `points` (G, D) are those to choose from, the base first; `ts` are their numbers.

    Up to MOST_BY_SURFACE variants they are points of the simplex, by the surface; beyond, those that were run.
    """

    ordered = False

    def __init__(
        self,
        cookbook: Cookbook,
        variants: Sequence[str],
        texts: Sequence[Sequence[str]],
        passes: LogitCache,
        seed: int,
    ) -> None:
        self.variants = variants
        self.nodes: list[tuple[float, ...]] = []
        self._cookbook = cookbook
        self._texts = texts
        self._passes = passes
        self._logits: list[list[NDArray[np.float64]]] = []
        self._spread = _spread(len(variants), seed)

    @property
    def points(self) -> NDArray[np.float64]:
        nodes = np.array(self.nodes)
        return np.concatenate([nodes, self._spread]) if self._by_surface else nodes

    @property
    def ts(self) -> NDArray[np.float64]:
        return np.arange(len(self.points), dtype=np.float64)

    def run(self, point: Sequence[float]) -> int:
        """Run the blend at a point, unless it was; its number."""
        at = tuple(round(float(t), 3) for t in point)
        if at not in self.nodes:
            recipe = self._cookbook.read({"t": dict(zip(self.variants, at, strict=True))})
            self.nodes.append(at)
            self._logits.append([self._passes.logits(texts, recipe) for texts in self._texts])
        return self.nodes.index(at)

    def expect(self, blends: int) -> None:
        self._passes.expect(blends * sum(map(len, self._texts)))

    def logits(self, data: int, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (G, N, C) of a data set at the points with these numbers."""
        rows = ts.astype(np.int64)
        true = np.stack([by_set[data] for by_set in self._logits])
        if not self._by_surface:
            return np.asarray(true[rows])
        surface = Interpolation(np.array(self.nodes), degree=2)
        return np.tensordot(surface.weights(self.points[rows]), true, axes=1)

    @property
    def _by_surface(self) -> bool:
        return len(self.variants) <= MOST_BY_SURFACE


def _follow_the_surface(mixes: Mixes, spec: SweepSpec) -> None:
    corners = [tuple(k / 2 for k in ks) for ks in product(range(3), repeat=len(mixes.variants)) if sum(ks) <= 2]
    mixes.expect(len(corners) + ROUNDS)
    for point in corners:
        mixes.run(point)
    quick = replace(spec, draws=2)  # the best point alone is asked for here, not how sure it is
    for _ in range(ROUNDS):
        best = mixes.points[choice_of(quick, mixes).chosen.chosen]
        near = min(float(np.abs(np.array(node) - best).sum()) for node in mixes.nodes)
        if near < NEAR:
            return
        mixes.run(best)


def _try_blends(mixes: Mixes, spec: SweepSpec) -> None:
    try:
        import optuna
    except ImportError as error:
        raise BadData(
            f"{len(mixes.variants)} variants at once need optuna (pip install 'tween[sweep]'); "
            f"up to {MOST_BY_SURFACE} do without"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=spec.seed))
    mixes.expect(1 + TRIALS)
    mixes.run([0.0] * len(mixes.variants))
    for _ in range(TRIALS):
        trial = study.ask()
        point = np.array([trial.suggest_float(name, 0.0, 1.0) for name in mixes.variants])
        number = mixes.run(point / max(1.0, point.sum()))
        study.tell(trial, _score(mixes, spec, number))


def _score(mixes: Mixes, spec: SweepSpec, number: int) -> float:
    """The objective at one point, less being better."""
    pool = spec.pool
    at = np.array([float(number)])
    logits = np.concatenate([mixes.logits(d, at)[0] for d in range(len(spec.targets))])
    beta = fitted_beta(logits, pool.labels, pool.weights)
    metric = METRICS[spec.objective]
    return float(metric.sign * metric.of(ScoredTexts(beta * logits, pool.labels, pool.groups, spec.cost), pool.weights))


def _spread(dimensions: int, seed: int) -> NDArray[np.float64]:
    """Sobol points of the simplex (G, D): gaps between D sorted numbers are spread evenly over it."""
    unit = qmc.Sobol(dimensions, rng=np.random.default_rng(seed)).random_base2(CANDIDATES)
    return np.diff(np.sort(unit, axis=1), axis=1, prepend=0.0)
