"""Data sets judged as one: every text with its weight, and who is resampled or held out with whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.sweep.data.dataset import Dataset

DRAWS = 2000
CHUNK = 200
"""Resamples that are formed at a time."""


@dataclass(frozen=True)
class WeightedPool:
    """Texts of one or more data sets, side by side.

    `weights` (N,) add up to 1: a data set's share does not depend on how many texts it has. `strata` numbers the data
    sets, `clusters` the groups, none of which spans two data sets. `groups` are those that `worst_group` looks at.
    """

    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    strata: NDArray[np.int64]
    clusters: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    group_names: tuple[str, ...]
    order: NDArray[np.int64] | None

    @classmethod
    def of(cls, datasets: Sequence[Dataset], shares: Sequence[float] | None = None) -> WeightedPool:
        """All texts of the data sets; a data set of share 2 counts as much as two of share 1."""
        shares = [1.0] * len(datasets) if shares is None else shares
        weights = [np.full(len(d), s / len(d)) for d, s in zip(datasets, shares, strict=True)]
        starts = np.cumsum([0, *(d.groups.max() + 1 for d in datasets)])
        groups, names = _groups(datasets)
        ordered = all(d.order is not None for d in datasets)
        return cls(
            labels=np.concatenate([d.truth for d in datasets]),
            weights=np.concatenate(weights) / sum(shares),
            strata=np.repeat(np.arange(len(datasets)), [len(d) for d in datasets]),
            clusters=np.concatenate([d.groups + start for d, start in zip(datasets, starts, strict=False)]),
            groups=groups,
            group_names=names,
            order=np.concatenate([_ranks(d) for d in datasets]) if ordered else None,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def members(self) -> int:
        """Clusters in all: how many independent observations there are."""
        return len(np.unique(self.clusters))

    def mean(self, parts: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Weighted means of parts (G, N, K): (G, K); without other weights (N,), by those of the pool."""
        return np.asarray(np.einsum("gnk,n->gk", parts, self.weights if weights is None else weights))

    def restricted(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Weights (N,) of the kept texts alone, in which each data set has its share again; they add up to 1."""
        return self._shared(self.weights * kept)

    def _shared(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights (..., N), scaled so that each data set has its share, or what the absent ones leave it."""
        strata = self.strata == np.arange(self.strata.max() + 1)[:, None]  # (S, N)
        present = weights @ strata.T.astype(np.float64)  # (..., S)
        share = strata @ self.weights * (present > 0)
        scale = share / share.sum(axis=-1, keepdims=True) / np.where(present > 0, present, 1)
        return np.asarray(weights * scale[..., self.strata])

    def resampled(self, parts: NDArray[np.floating], draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
        """Weighted means of parts (G, N, K) over `draws` bootstrap resamples of the clusters: (draws, G, K).

        The resamples follow from the seed alone, so two calls see the same ones and their results are paired.
        """
        narrow = parts.astype(np.float32)
        sums = [np.tensordot(w, narrow, axes=(1, 1)) for w in self._resamples(draws, seed)]
        return np.concatenate(sums).astype(np.float64)

    def _resamples(self, draws: int, seed: int) -> Iterator[NDArray[np.float32]]:
        """The weights (CHUNK, N) of the texts in each resample, CHUNK at a time."""
        for start in range(0, draws, CHUNK):
            size = min(CHUNK, draws - start)
            rng = np.random.default_rng((seed, start))
            counts = np.concatenate([_counts(rng, size, members) for members in self._clusters_by_stratum()], axis=1)
            yield self._shared(self.weights * counts[:, self.clusters]).astype(np.float32)

    def _clusters_by_stratum(self) -> list[int]:
        return [len(np.unique(self.clusters[self.strata == s])) for s in range(self.strata.max() + 1)]


def _counts(rng: np.random.Generator, draws: int, members: int) -> NDArray[np.int64]:
    """How often each of the members is drawn in as many draws with replacement, (draws, members)."""
    picked = rng.integers(0, members, (draws, members)) + np.arange(draws)[:, None] * members
    return np.bincount(picked.ravel(), minlength=draws * members).reshape(draws, members)


def _groups(datasets: Sequence[Dataset]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Segments where every data set has them, else groups of a column, else the data sets themselves."""
    if all(d.segments is not None for d in datasets):
        names = [[d.segment_names[s] for s in d.segments] for d in datasets if d.segments is not None]
    elif len(datasets) > 1:
        names = [[d.name] * len(d) for d in datasets]
    elif "group" in datasets[0].columns:
        names = [[str(g) for g in datasets[0].groups]]
    else:
        return None, ()
    found, codes = np.unique(np.concatenate([np.array(part) for part in names]), return_inverse=True)
    return codes.astype(np.int64), tuple(found.tolist())


def _ranks(dataset: Dataset) -> NDArray[np.int64]:
    assert dataset.order is not None
    return dataset.order
