"""What answering without reading the text comes to: each text gets the label frequencies of the other texts.

A blend that does no better has learnt nothing that these texts ask for, however it compares with other blends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.metrics_of_t import ScoredTexts


def frequencies(pool: WeightedPool, classes: int) -> NDArray[np.float64]:
    """Label frequencies (N, C) for every text, from the texts of other clusters; one text more is spread over all
    labels, so that none has a frequency of 0."""
    counted = np.eye(classes)[pool.labels] * pool.weights[:, None]
    by_cluster = np.zeros((pool.clusters.max() + 1, classes))
    np.add.at(by_cluster, pool.clusters, counted)
    others = counted.sum(axis=0) - by_cluster[pool.clusters] + 1 / (len(pool) * classes)
    return np.asarray(others / others.sum(axis=1, keepdims=True))


def baseline(pool: WeightedPool, classes: int, cost: NDArray[np.float64] | None = None) -> ScoredTexts:
    """The outcome of these frequencies; its label is the most frequent one, or with costs (C, C) the cheapest one."""
    p = frequencies(pool, classes)
    return ScoredTexts(np.log(p) if cost is None else -(p @ cost), pool.labels, pool.groups, cost)
