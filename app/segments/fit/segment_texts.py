"""Labelled texts with their segments, and what is fitted on them whichever line t runs along: the router.

A part is a mask of texts, so that the same code fits what is served and what is judged on texts that had no say in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from scipy.special import softmax

from app.errors import BadData
from app.segments.fit.fit_classifier import fit, fitted_penalty, hashed
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool

Weights = tuple[NDArray[np.float64], NDArray[np.float64]]
"""W (BUCKETS, K) and b (K,) of a router."""


class SegmentTexts:
    """N labelled texts of K segments.

    Segments are those of the data sets' columns; several data sets without are a segment each. Raises `BadData` where
    there are less than two.
    """

    def __init__(self, datasets: Sequence[Dataset], shares: Sequence[float]) -> None:
        pool = WeightedPool.of(datasets, shares)
        if len(datasets) == 1 and datasets[0].segments is None:
            raise BadData(f"{datasets[0].name}: cannot tell which column holds the segment; name it by --segment")
        if pool.groups is None or len(pool.group_names) < 2:
            raise BadData("all texts are of one segment; at least two are needed")
        self.pool = pool
        self.datasets = datasets
        self.names: tuple[str, ...] = pool.group_names
        self.segments: NDArray[np.int64] = pool.groups
        self.texts = [text for dataset in datasets for text in dataset.texts]
        self.features = hashed(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def everything(self) -> NDArray[np.bool_]:
        """The part that holds every text."""
        return np.ones(len(self), dtype=bool)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Texts of each segment, (K,)."""
        return np.bincount(self.segments, minlength=len(self.names))

    def sizes(self, part: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Independent texts of each segment in a part, (K,): the groups among them."""
        clusters = (self.pool.clusters[part & (self.segments == k)] for k in range(len(self.names)))
        return np.array([float(len(np.unique(each))) for each in clusters])

    def members(self, parts: Sequence[NDArray[np.bool_]]) -> csr_array:
        """How much each text counts in each segment of each part, (N, parts * K)."""
        k, n = len(self.names), len(self)
        weights = np.concatenate([self.pool.restricted(part) for part in parts])
        columns = np.concatenate([self.segments + index * k for index in range(len(parts))])
        return csr_array((weights, (np.tile(np.arange(n), len(parts)), columns)), shape=(n, k * len(parts)))

    def routers(self, parts: Sequence[NDArray[np.bool_]], unlabelled: Sequence[tuple[str, str]] = ()) -> list[Weights]:
        """The router that each part of the texts asks for. `unlabelled` are more texts with their segments; those that
        are among the labelled ones are left out."""
        labelled, known = set(self.texts), {name: index for index, name in enumerate(self.names)}
        extra = [(text, known[name]) for text, name in unlabelled if name in known and text not in labelled]
        features = csr_array(vstack([self.features, hashed([text for text, _ in extra])])) if extra else self.features
        segments = np.concatenate([self.segments, np.array([segment for _, segment in extra], dtype=np.int64)])
        share = np.bincount(self.segments, self.pool.weights, len(self.names)).astype(np.float64)
        penalty = fitted_penalty(features, segments, _spread(segments, share), len(self.names))
        made = []
        for part in parts:
            kept = np.concatenate([part, np.ones(len(extra), dtype=bool)])
            share = np.bincount(self.segments, self.pool.restricted(part), len(self.names)).astype(np.float64)
            mine = segments[kept]
            made.append(fit(csr_array(features[kept]), mine, _spread(mine, share), len(self.names), penalty))
        return made

    def likely(self, router: Weights, texts: SegmentTexts) -> NDArray[np.float64]:
        """How likely each of other texts comes from each segment of these, (N, K)."""
        w, b = router
        return np.asarray(softmax(texts.features @ w + b, axis=1))

    def own(self, texts: SegmentTexts) -> NDArray[np.int64]:
        """The segment of each of other texts (N,), all of which are among these."""
        position = {name: index for index, name in enumerate(self.names)}
        return np.array([position[name] for name in texts.names])[texts.segments]

    def routed_rightly(self, router: Weights, texts: SegmentTexts) -> NDArray[np.bool_]:
        """Whether the likeliest segment of each of other texts is its own, (N,)."""
        guessed = np.array(self.names)[self.likely(router, texts).argmax(axis=1)]
        return np.asarray(guessed == np.array(texts.names)[texts.segments])


def _spread(segments: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (N,) with which each segment has its share, however many of its texts there are."""
    counts = np.bincount(segments, minlength=len(shares))
    return np.asarray((shares / np.maximum(counts, 1))[segments])
