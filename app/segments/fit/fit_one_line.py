"""What segments ask for along one line: one t, t's by segment, and the gain of entropies, on any part of the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, logsumexp

from app.segments.fit.partial_pooling import TEMPERATURES, PartialPooling, loss_sums, pooled_settings
from app.segments.fit.segment_texts import SegmentTexts, Weights
from app.segments.segment_table import Entropy
from app.sweep.choose_t import LEVEL
from app.sweep.scorer import ScoreSource
from app.sweep.temperature_scaling import HIGHEST, LOWEST, fitted_beta

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
    """What a part of the texts asks for. `entropy` and `dawin` are the rules with a fitted gain and as published."""

    t: float
    temperature: float
    interval: tuple[float, float]
    by_segment: PartialPooling
    temperatures_at_t: NDArray[np.float64]
    router: Weights
    entropy: Entropy
    dawin: Entropy

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
        return [self._fitted(*of_part) for of_part in zip(parts, losses, routers, strict=True)]

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
            "dawin": (judged.t_by_entropy(fitted.dawin), np.full(n, fitted.dawin.temperature)),
            "entropy": (judged.t_by_entropy(fitted.entropy), np.full(n, fitted.entropy.temperature)),
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

    def t_by_entropy(self, entropy: Entropy) -> NDArray[np.float64]:
        """t (N,), as it is served."""
        base = _entropies(self.logits[0] / entropy.base_temperature)
        variant = _entropies(self.logits[-1] / entropy.variant_temperature)
        return np.asarray(expit(entropy.gain * (base - variant) + entropy.offset))

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

    def _fitted(self, part: NDArray[np.bool_], losses: Losses, router: Weights) -> Fitted:
        whole = losses.whole
        t, h = (int(place) for place in np.unravel_index(whole.argmin(), whole.shape))
        temperature = float(losses.temperatures[h])
        dawin, entropy = self._entropy(part, float(self.ts[t]), temperature)
        return Fitted(
            t=float(self.ts[t]),
            temperature=temperature,
            interval=interval_of(whole.min(axis=1) * losses.sizes.sum(), self.ts),
            by_segment=pooled_settings(losses.means, losses.sizes, self.ts, losses.temperatures),
            temperatures_at_t=losses.temperatures_at(t, self.ts),
            router=router,
            entropy=entropy,
            dawin=dawin,
        )

    def _entropy(self, part: NDArray[np.bool_], t: float, temperature: float) -> tuple[Entropy, Entropy]:
        """The published rule and the best gain and offset, each with the temperature that fits its answers."""
        labels, weights = self.texts.pool.labels, self.texts.pool.restricted(part)
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


def temperatures_around(temperature: float) -> NDArray[np.float64]:
    """The temperatures looked at (H,), around the one that fits all texts."""
    return np.clip(TEMPERATURES * temperature, LOWEST, HIGHEST)


def interval_of(misfit: NDArray[np.float64], ts: NDArray[np.float64]) -> tuple[float, float]:
    """Where a single t lies, from n times the loss at every t (G,)."""
    reached = np.exp(-misfit - logsumexp(-misfit)).cumsum()
    low, high = (ts[(reached >= edge - 1e-12).argmax()] for edge in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _entropies(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy (N,) of softmax(logits (N, C)), nats."""
    log_p = log_softmax(logits, axis=1)
    return np.asarray(-(np.exp(log_p) * log_p).sum(axis=1))
