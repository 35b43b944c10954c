"""Fits one t, and a t for each segment, along one line; `SegmentTexts` fits the segment classifier for any line.

A part is a mask of texts, so that the same code fits the served table and the folds of cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from scipy.special import log_softmax, logsumexp, softmax

from app.errors import BadData
from app.segments.fit.fit_classifier import fit, fitted_penalty, hashed
from app.segments.fit.partial_pooling import TEMPERATURES, PartialPooling, loss_sums, pooled_settings
from app.sweep.choose_t import LEVEL
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.scorer import ScoreSource
from app.sweep.temperature_scaling import HIGHEST, LOWEST, fitted_beta

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


Settings = tuple[NDArray[np.float64], NDArray[np.float64]]
"""t (N,) and temperature (N,) of each text."""

METHODS = {
    "one t": "one t and one temperature",
    "one t, T by segment": "one t, a temperature by segment",
    "segment": "t by declared segment",
    "router": "t by guessed segment",
}


@dataclass(frozen=True)
class Losses:
    """Of a part of the texts: mean losses (K, G, H) of each segment at G t's and H temperatures, the segments' shares
    (K,), and how many independent texts each has (K,)."""

    means: NDArray[np.float64]
    shares: NDArray[np.float64]
    sizes: NDArray[np.float64]
    temperatures: NDArray[np.float64]

    @property
    def whole(self) -> NDArray[np.float64]:
        """Of all segments together, (G, H)."""
        return np.asarray(np.tensordot(self.shares, self.means, axes=1))

    def temperatures_at(self, t: int, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The temperature of each segment (K,) where all have one t, which is given by its place."""
        return pooled_settings(self.means[:, t : t + 1], self.sizes, ts[t : t + 1], self.temperatures).temperature


@dataclass(frozen=True)
class Fitted:
    """The settings fitted on a part of the texts."""

    t: float
    temperature: float
    interval: tuple[float, float]
    by_segment: PartialPooling
    temperatures_at_t: NDArray[np.float64]
    router: Weights

    @property
    def scatter(self) -> float:
        """That of the segments' t's."""
        return self.by_segment.scatter


class Segmented:
    """Texts of segments with their logits (G, N, C) at the t's of a curve."""

    methods: Mapping[str, str] = METHODS
    chooses = "a t"
    against = "one t"

    def __init__(self, texts: SegmentTexts, curve: ScoreSource) -> None:
        self.texts = texts
        self.ts = curve.ts
        self.logits = np.concatenate([curve.logits(d, curve.ts) for d in range(len(texts.datasets))], axis=1)

    def fit(self, parts: Sequence[NDArray[np.bool_]], unlabelled: Sequence[tuple[str, str]] = ()) -> list[Fitted]:
        """What each part (N,) of the texts asks for. `unlabelled` are more texts, with segments, for the router."""
        _, temperature = self.best()
        losses = self.losses(parts, temperatures_around(temperature))
        routers = self.texts.routers(parts, unlabelled)
        return [self._fitted(*of_part) for of_part in zip(losses, routers, strict=True)]

    def settings(self, fitted: Fitted, judged: Segmented) -> Mapping[str, Settings]:
        """t and temperature of every text by every method; the texts' segments are among those that were fitted."""
        n = len(judged.texts)
        own = self.texts.own(judged.texts)
        likely = self.texts.likely(fitted.router, judged.texts)
        by = fitted.by_segment
        one = np.full(n, fitted.t)
        return {
            "one t": (one, np.full(n, fitted.temperature)),
            "one t, T by segment": (one, fitted.temperatures_at_t[own]),
            "segment": (by.t[own], by.temperature[own]),
            "router": (likely @ by.t, np.exp(likely @ np.log(by.temperature))),
        }

    def answers(self, fitted: Fitted, judged: Segmented) -> dict[str, NDArray[np.float64]]:
        """Log probabilities (N, C) of every text by every method."""
        return {name: judged.log_probabilities(s) for name, s in self.settings(fitted, judged).items()}

    def best(self) -> tuple[float, float]:
        """The log loss of all texts at the best t with the temperature that fits it, and that temperature."""
        beta = fitted_beta(self.logits, self.texts.pool.labels, self.texts.pool.weights)
        losses = [self._loss(t, beta[t]) for t in range(len(self.ts))]
        best = int(np.argmin(losses))
        return losses[best], 1 / float(beta[best])

    def at(self, ts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (N, C), each text at a t (N,) of its own, by a straight line between the t's next to it."""
        right = np.clip(np.searchsorted(self.ts, ts), 1, len(self.ts) - 1)
        share = ((ts - self.ts[right - 1]) / (self.ts[right] - self.ts[right - 1]))[:, None]
        rows = np.arange(len(ts))
        return np.asarray((1 - share) * self.logits[right - 1, rows] + share * self.logits[right, rows])

    def log_probabilities(self, settings: Settings) -> NDArray[np.float64]:
        """(N, C)"""
        ts, temperatures = settings
        return np.asarray(log_softmax(self.at(np.round(ts, 2)) / temperatures[:, None], axis=1))

    def losses(self, parts: Sequence[NDArray[np.bool_]], temperatures: NDArray[np.float64]) -> list[Losses]:
        """Those of each part at these temperatures (H,)."""
        k, members = len(self.texts.names), self.texts.members(parts)
        sums = loss_sums(self.logits, self.texts.pool.labels, temperatures, members)
        shares = np.asarray(members.sum(axis=0)).ravel()
        means = sums / np.where(shares > 0, shares, 1)[:, None, None]
        return [
            Losses(means[i * k : (i + 1) * k], shares[i * k : (i + 1) * k], self.texts.sizes(part), temperatures)
            for i, part in enumerate(parts)
        ]

    def _loss(self, t: int, beta: float) -> float:
        log_p = log_softmax(self.logits[t] * beta, axis=1)
        return -float(log_p[np.arange(len(self.texts)), self.texts.pool.labels] @ self.texts.pool.weights)

    def _fitted(self, losses: Losses, router: Weights) -> Fitted:
        whole = losses.whole
        t, h = (int(place) for place in np.unravel_index(whole.argmin(), whole.shape))
        temperature = float(losses.temperatures[h])
        return Fitted(
            t=float(self.ts[t]),
            temperature=temperature,
            interval=interval_of(whole.min(axis=1) * losses.sizes.sum(), self.ts),
            by_segment=pooled_settings(losses.means, losses.sizes, self.ts, losses.temperatures),
            temperatures_at_t=losses.temperatures_at(t, self.ts),
            router=router,
        )


def temperatures_around(temperature: float) -> NDArray[np.float64]:
    """The temperatures looked at (H,), around the one that fits all texts."""
    return np.clip(TEMPERATURES * temperature, LOWEST, HIGHEST)


def interval_of(misfit: NDArray[np.float64], ts: NDArray[np.float64]) -> tuple[float, float]:
    """Where a single t lies, from n times the loss at every t (G,)."""
    reached = np.exp(-misfit - logsumexp(-misfit)).cumsum()
    low, high = (ts[(reached >= edge - 1e-12).argmax()] for edge in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
