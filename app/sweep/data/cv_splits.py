"""Who is held out: groups as a whole, and the future where times are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.sweep.data.weighted_pool import WeightedPool

FOLDS = 5
REPEATS = 5


@dataclass(frozen=True)
class Split:
    """Which texts (N,) choose, and which ones judge the choice."""

    train: NDArray[np.bool_]
    test: NDArray[np.bool_]


def splits(pool: WeightedPool, folds: int = FOLDS, repeats: int = REPEATS, seed: int = 0) -> list[list[Split]]:
    """For each repeat, splits whose test parts do not overlap.

    Every text is tested once per repeat. With times there is one repeat: each part after the first judges what was
    chosen from all earlier ones, less the groups that it shares with them.
    """
    if pool.order is not None:
        return [_by_time(pool, folds)]
    return [_at_random(pool, folds, np.random.default_rng((seed, repeat))) for repeat in range(repeats)]


def _at_random(pool: WeightedPool, folds: int, rng: np.random.Generator) -> list[Split]:
    fold_of = np.empty(pool.clusters.max() + 1, dtype=np.int64)
    for stratum in range(pool.strata.max() + 1):
        clusters = np.unique(pool.clusters[pool.strata == stratum])
        fold_of[rng.permutation(clusters)] = np.arange(len(clusters)) % folds
    fold = fold_of[pool.clusters]
    used = [f for f in range(folds) if (fold == f).any() and (fold != f).any()]
    return [Split(fold != f, fold == f) for f in used]


def _by_time(pool: WeightedPool, folds: int) -> list[Split]:
    assert pool.order is not None
    part = np.empty(len(pool), dtype=np.int64)
    for stratum in range(pool.strata.max() + 1):
        inside = pool.strata == stratum
        ranks = pool.order[inside]
        edges = np.quantile(ranks, np.arange(1, folds) / folds)
        part[inside] = np.searchsorted(edges, ranks, side="left")
    made = []
    for f in range(1, folds):
        test = part == f
        train = (part < f) & ~np.isin(pool.clusters, pool.clusters[test])
        if test.any() and train.any():
            made.append(Split(train, test))
    return made
