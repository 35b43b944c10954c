"""Labelled texts with their segments, and what is fitted on any part of them: one t, t's by segment, router, gain.

A part is a mask of texts, so that the same code fits the table that is served and what judges it on texts that had no
say in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array, vstack
from scipy.special import expit, log_softmax, logit, logsumexp, softmax

from app.errors import BadData
from app.search.choice import LEVEL
from app.search.dataset import Dataset
from app.search.judge import Scored
from app.search.pool import Pool
from app.search.pooling import TEMPERATURES, Pooled, loss_sums, pooled_settings
from app.search.routing import fit, fitted_penalty, hashed
from app.search.temperature import HIGHEST, LOWEST, fitted_beta
from app.serving.segment_table import Entropy

Settings = tuple[NDArray[np.float64], NDArray[np.float64]]
"""t (N,) and temperature (N,) of each text."""

METHODS = {
    "one t": "one t and one temperature",
    "one t, T by segment": "one t, a temperature by segment",
    "segment": "t by declared segment",
    "router": "t by guessed segment",
    "dawin": "t by entropy, as published",
    "entropy": "t by entropy, fitted gain",
}
DAWIN = (1.0, 0.0)
"""Gain and offset as published: t = sigmoid(H_base - H_variant)."""


@dataclass(frozen=True)
class Fitted:
    """What a part of the texts asks for. `router` is W and b, `end_temperatures` are those of base and variant."""

    t: float
    temperature: float
    interval: tuple[float, float]
    by_segment: Pooled
    temperatures_at_t: NDArray[np.float64]
    router: tuple[NDArray[np.float64], NDArray[np.float64]]
    entropy: Entropy
    dawin: Entropy


class Segmented:
    """N labelled texts of K segments, with logits (G, N, C) at the t's of a curve.

    Segments are those of the data sets' columns; several data sets without are a segment each. Raises `BadData` where
    there are less than two.
    """

    def __init__(self, datasets: Sequence[Dataset], shares: Sequence[float], curve: Scored) -> None:
        pool = Pool.of(datasets, shares)
        if len(datasets) == 1 and datasets[0].segments is None:
            raise BadData(f"{datasets[0].name}: cannot tell which column holds the segment; name it by --segment")
        if pool.groups is None or len(pool.group_names) < 2:
            raise BadData("all texts are of one segment; at least two are needed")
        self.pool = pool
        self.names: tuple[str, ...] = pool.group_names
        self.segments: NDArray[np.int64] = pool.groups
        self.ts = curve.ts
        self.texts = [text for dataset in datasets for text in dataset.texts]
        self.logits = np.concatenate([curve.logits(d, curve.ts) for d in range(len(datasets))], axis=1)
        self.features = hashed(self.texts)

    def fit(self, parts: Sequence[NDArray[np.bool_]], unlabelled: Sequence[tuple[str, str]] = ()) -> list[Fitted]:
        """What each part (N,) of the texts asks for. `unlabelled` are more texts with their segments, for the router;
        those that are among the labelled ones are left out."""
        beta = fitted_beta(self.logits, self.pool.labels, self.pool.weights)
        scores = [self._loss(t, beta[t]) for t in range(len(self.ts))]
        temperatures = np.clip(TEMPERATURES / beta[int(np.argmin(scores))], LOWEST, HIGHEST)
        losses, shares = self._losses(parts, temperatures)
        labelled, known = set(self.texts), {name: index for index, name in enumerate(self.names)}
        extra = [(text, known[name]) for text, name in unlabelled if name in known and text not in labelled]
        features = vstack([self.features, hashed([text for text, _ in extra])]) if extra else self.features
        more = np.array([segment for _, segment in extra], dtype=np.int64)
        penalty = self._penalty(features, more)
        return [
            self._fitted(part, losses[index], shares[index], temperatures, csr_array(features), more, penalty)
            for index, part in enumerate(parts)
        ]

    def settings(self, fitted: Fitted, texts: Segmented) -> Mapping[str, Settings]:
        """t and temperature of every text by every method; the texts' segments are among those that were fitted."""
        n = len(texts.pool)
        position = {name: index for index, name in enumerate(self.names)}
        own = np.array([position[name] for name in texts.names])[texts.segments]
        w, b = fitted.router
        likely = softmax(texts.features @ w + b, axis=1)
        by = fitted.by_segment
        one = np.full(n, fitted.t)
        return {
            "one t": (one, np.full(n, fitted.temperature)),
            "one t, T by segment": (one, fitted.temperatures_at_t[own]),
            "segment": (by.t[own], by.temperature[own]),
            "router": (likely @ by.t, np.exp(likely @ np.log(by.temperature))),
            "dawin": (texts.t_by_entropy(fitted.dawin), np.full(n, fitted.dawin.temperature)),
            "entropy": (texts.t_by_entropy(fitted.entropy), np.full(n, fitted.entropy.temperature)),
        }

    def routed_rightly(self, fitted: Fitted, texts: Segmented) -> NDArray[np.bool_]:
        """Whether the likeliest segment of each text is its own, (N,)."""
        w, b = fitted.router
        guessed = np.array(self.names)[(texts.features @ w + b).argmax(axis=1)]
        return np.asarray(guessed == np.array(texts.names)[texts.segments])

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

    def t_by_entropy(self, entropy: Entropy) -> NDArray[np.float64]:
        """t (N,), as it is served."""
        base = _entropies(self.logits[0] / entropy.base_temperature)
        variant = _entropies(self.logits[-1] / entropy.variant_temperature)
        return np.asarray(expit(entropy.gain * (base - variant) + entropy.offset))

    def _loss(self, t: int, beta: float) -> float:
        log_p = log_softmax(self.logits[t] * beta, axis=1)
        return -float(log_p[np.arange(len(self.pool)), self.pool.labels] @ self.pool.weights)

    def _losses(
        self, parts: Sequence[NDArray[np.bool_]], temperatures: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean losses (parts, K, G, H) of each segment in each part, and the segments' shares (parts, K)."""
        k, n = len(self.names), len(self.pool)
        weights = np.concatenate([self.pool.restricted(part) for part in parts])
        columns = np.concatenate([self.segments + index * k for index in range(len(parts))])
        members = csr_array((weights, (np.tile(np.arange(n), len(parts)), columns)), shape=(n, k * len(parts)))
        sums = loss_sums(self.logits, self.pool.labels, temperatures, members)
        shares = np.asarray(members.sum(axis=0)).ravel()
        means = sums / np.where(shares > 0, shares, 1)[:, None, None]
        return means.reshape(len(parts), k, *means.shape[1:]), shares.reshape(len(parts), k)

    def _penalty(self, features: csr_array, more: NDArray[np.int64]) -> float:
        segments = np.concatenate([self.segments, more])
        share = np.bincount(self.segments, self.pool.weights, len(self.names)).astype(np.float64)
        return fitted_penalty(csr_array(features), segments, _spread(segments, share), len(self.names))

    def _fitted(
        self,
        part: NDArray[np.bool_],
        losses: NDArray[np.float64],
        shares: NDArray[np.float64],
        temperatures: NDArray[np.float64],
        features: csr_array,
        more: NDArray[np.int64],
        penalty: float,
    ) -> Fitted:
        sizes = np.array([self._size(part & (self.segments == k)) for k in range(len(self.names))])
        whole = np.tensordot(shares, losses, axes=1)  # (G, H)
        t, temperature = np.unravel_index(whole.argmin(), whole.shape)
        at_t = pooled_settings(losses[:, t : t + 1], sizes, self.ts[t : t + 1], temperatures)
        kept = np.concatenate([part, np.ones(len(more), dtype=bool)])
        segments = np.concatenate([self.segments, more])[kept]
        router = fit(features[kept], segments, _spread(segments, shares), len(self.names), penalty)
        dawin, entropy = self._entropy(part, float(self.ts[t]), float(temperatures[temperature]))
        return Fitted(
            t=float(self.ts[t]),
            temperature=float(temperatures[temperature]),
            interval=self._interval(whole.min(axis=1) * sizes.sum()),
            by_segment=pooled_settings(losses, sizes, self.ts, temperatures),
            temperatures_at_t=at_t.temperature,
            router=router,
            entropy=entropy,
            dawin=dawin,
        )

    def _size(self, part: NDArray[np.bool_]) -> float:
        """Independent texts: the groups among them."""
        return float(len(np.unique(self.pool.clusters[part])))

    def _interval(self, misfit: NDArray[np.float64]) -> tuple[float, float]:
        """Where the single t lies, from n times the loss at every t (G,)."""
        reached = np.exp(-misfit - logsumexp(-misfit)).cumsum()
        low, high = (self.ts[(reached >= edge - 1e-12).argmax()] for edge in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return float(low), float(high)

    def _entropy(self, part: NDArray[np.bool_], t: float, temperature: float) -> tuple[Entropy, Entropy]:
        """The published rule and the best gain and offset, each with the temperature that fits its answers."""
        labels, weights = self.pool.labels, self.pool.restricted(part)
        ends = np.clip(1 / fitted_beta(self.logits[[0, -1]], labels, weights), LOWEST, HIGHEST)

        def ruled(gain: float, offset: float, at: float) -> Entropy:
            return Entropy(float(gain), float(offset), float(ends[0]), float(ends[1]), at)

        def misfit(rule: NDArray[np.float64]) -> float:
            log_p = log_softmax(self.at(self.t_by_entropy(ruled(rule[0], rule[1], 1.0))) / temperature, axis=1)
            return -float(log_p[np.arange(len(labels)), labels] @ weights)

        starts = (np.array([0.0, float(logit(np.clip(t, 0.02, 0.98)))]), np.array(DAWIN))
        reached = [minimize(misfit, s, method="Nelder-Mead", options={"maxiter": 150}).x for s in starts]
        found = min(reached, key=misfit)
        made = []
        for gain, offset in (DAWIN, np.clip(found, -20, 20)):
            answers = self.at(self.t_by_entropy(ruled(gain, offset, 1.0)))
            made.append(ruled(gain, offset, float(np.clip(1 / fitted_beta(answers, labels, weights), LOWEST, HIGHEST))))
        return made[0], made[1]


def _spread(segments: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (N,) with which each segment has its share, however many of its texts there are."""
    counts = np.bincount(segments, minlength=len(shares))
    return np.asarray((shares / np.maximum(counts, 1))[segments])


def _entropies(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy (N,) of softmax(logits (N, C)), nats."""
    log_p = log_softmax(logits, axis=1)
    return np.asarray(-(np.exp(log_p) * log_p).sum(axis=1))
