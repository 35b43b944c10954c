"""A variant and a t for each segment: which line does each segment want, and where on it?

Along every line a segment's labels have an evidence, how likely they are whatever its t and T (`partial_pooling.py`),
and so they have with the base, whose t is 0. Segments are taken to draw their variant from common shares, which are
estimated from all of them (EM, under a Dirichlet prior that counts for one segment), and each segment gets the
likeliest variant: the labels of a large one decide, and a segment of few texts leans on the variant that most segments
want.

All lines start at the base, so their logits meet at t = 0, and every comparison is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from app.segments.fit.fit_classifier import router_of
from app.segments.fit.fit_one_line import Losses, Segmented, SegmentTexts, Weights, interval_of, temperatures_around
from app.segments.fit.partial_pooling import PartialPooling, pooled_settings
from app.segments.segment_table import SegmentTable, Setting
from app.sweep.scorer import ScoreSource
from app.weights.arena import BASE
from app.weights.auto_recipe import AUTO

Settings = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Of each text (N,): its member, as its place among the names, t and temperature."""

METHODS = {
    "one recipe": "one variant, one t and one temperature",
    "one recipe, T by segment": "one variant and t, a temperature by segment",
    "segment": "variant and t by declared segment",
    "router": "variant and t by guessed segment",
}

PRIOR = 1.0
"""As many segments as the prior of the shares counts for."""
ROUNDS = 1_000


@dataclass(frozen=True)
class OneRecipe:
    """The member (its place among the names), t and temperature that are best for all texts, where t lies, and the
    temperature of each segment there (K,)."""

    member: int
    t: float
    temperature: float
    interval: tuple[float, float]
    temperatures: NDArray[np.float64]


@dataclass(frozen=True)
class FittedAcross:
    """What a part of the texts asks for: of each segment (K,) the member that it wants, t, temperature, and the
    interval (K, 2) of t. `shares` (M,) of the segments want each member, and `wanted` (M, K) tells how sure that is."""

    one: OneRecipe
    members: NDArray[np.int64]
    t: NDArray[np.float64]
    temperature: NDArray[np.float64]
    interval: NDArray[np.float64]
    shares: NDArray[np.float64]
    wanted: NDArray[np.float64]
    router: Weights

    @property
    def scatter(self) -> None:
        """Every line has one of its own."""


class AcrossVariants:
    """Texts of segments along the lines from the base to variants; `names` are the M members, base first."""

    methods: Mapping[str, str] = METHODS
    chooses = "a variant and its t"
    against = "the best single recipe"

    def __init__(self, texts: SegmentTexts, curves: Mapping[str, ScoreSource]) -> None:
        """`curves` lead from the base to the variants that they are named by."""
        self.texts = texts
        self.names = (BASE, *curves)
        self.lines = [Segmented(texts, curve) for curve in curves.values()]

    def fit(self, parts: Sequence[NDArray[np.bool_]], unlabelled: Sequence[tuple[str, str]] = ()) -> list[FittedAcross]:
        """What each part (N,) of the texts asks for. `unlabelled` are more texts, with segments, for the router."""
        _, temperature = min(line.best() for line in self.lines)
        temperatures = temperatures_around(temperature)
        along = [line.losses(parts, temperatures) for line in self.lines]
        routers = self.texts.routers(parts, unlabelled)
        return [self._fitted(*of_part) for of_part in zip(zip(*along, strict=True), routers, strict=True)]

    def settings(self, fitted: FittedAcross, judged: AcrossVariants) -> Mapping[str, Settings]:
        """Member, t and temperature of every text by every method; its segment is among those that were fitted."""
        n, one = len(judged.texts), fitted.one
        own = self.texts.own(judged.texts)
        member, t = np.full(n, one.member), np.full(n, one.t)
        return {
            "one recipe": (member, t, np.full(n, one.temperature)),
            "one recipe, T by segment": (member, t, one.temperatures[own]),
            "segment": (fitted.members[own], fitted.t[own], fitted.temperature[own]),
            "router": mixed(fitted, self.texts.likely(fitted.router, judged.texts)),
        }

    def answers(self, fitted: FittedAcross, judged: AcrossVariants) -> dict[str, NDArray[np.float64]]:
        """Log probabilities (N, C) of every text by every method."""
        return {name: judged.log_probabilities(s) for name, s in self.settings(fitted, judged).items()}

    def log_probabilities(self, settings: Settings) -> NDArray[np.float64]:
        """(N, C)"""
        members, ts, temperatures = settings
        along = [line.log_probabilities((ts, temperatures)) for line in self.lines]
        # The base is where t is 0, on any of the lines.
        return np.stack([along[0], *along])[members, np.arange(len(ts))]

    def table(self, fitted: FittedAcross, bank: str) -> SegmentTable:
        """What is served, on the bank of that fingerprint."""
        one, texts = fitted.one, self.texts
        return SegmentTable(
            variant=AUTO,
            bank=bank,
            pooled=self._setting(one.member, one.t, one.temperature, one.interval, len(texts)),
            segments={
                name: self._setting(
                    fitted.members[k], fitted.t[k], fitted.temperature[k], fitted.interval[k], texts.counts[k]
                )
                for k, name in enumerate(texts.names)
            },
            router=router_of(texts.names, *fitted.router),
        )

    def wanted(self, fitted: FittedAcross) -> dict[str, dict[str, float]]:
        """By segment, how likely each member is the one that it wants."""
        return {
            name: dict(zip(self.names, map(float, fitted.wanted[:, k]), strict=True))
            for k, name in enumerate(self.texts.names)
        }

    def _setting(self, member: int, t: float, temperature: float, interval: Sequence[float], texts: int) -> Setting:
        low, high = map(float, interval)
        return Setting(round(float(t), 2), round(float(temperature), 3), (low, high), int(texts), self.names[member])

    def _fitted(self, along: Sequence[Losses], router: Weights) -> FittedAcross:
        ts = [np.zeros(1), *(line.ts for line in self.lines)]
        # (K, G, H) of each member
        means = [along[0].means[:, :1], *(losses.means for losses in along)]
        sizes, temperatures = along[0].sizes, along[0].temperatures
        by: list[PartialPooling] = [pooled_settings(m, sizes, t, temperatures) for m, t in zip(means, ts, strict=True)]
        shares, wanted = shares_of(np.stack([pooled.evidence for pooled in by]))
        members = wanted.argmax(axis=0)
        chosen = list(enumerate(members))
        return FittedAcross(
            one=self._one(along),
            members=members,
            t=np.array([by[m].t[k] for k, m in chosen]),
            temperature=np.array([by[m].temperature[k] for k, m in chosen]),
            interval=np.array([by[m].interval[k] for k, m in chosen]),
            shares=shares,
            wanted=wanted,
            router=router,
        )

    def _one(self, along: Sequence[Losses]) -> OneRecipe:
        best = int(np.argmin([losses.whole.min() for losses in along]))
        losses, ts = along[best], self.lines[best].ts
        whole = losses.whole
        t, h = (int(place) for place in np.unravel_index(whole.argmin(), whole.shape))
        return OneRecipe(
            member=best + 1 if ts[t] else 0,
            t=float(ts[t]),
            temperature=float(losses.temperatures[h]),
            interval=interval_of(whole.min(axis=1) * losses.sizes.sum(), ts),
            temperatures=losses.temperatures_at(t, ts),
        )


def shares_of(evidence: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From the log evidence (M, K) of members for segments: the share of the segments that want each member (M,), and
    how likely each segment wants each (M, K)."""
    m, k = evidence.shape
    shares = np.full(m, 1 / m)
    for _ in range(ROUNDS):
        wanted = softmax(np.log(shares)[:, None] + evidence, axis=0)
        before, shares = shares, (wanted.sum(axis=1) + PRIOR / m) / (k + PRIOR)
        if np.abs(shares - before).max() < 1e-9:
            break
    return shares, softmax(np.log(shares)[:, None] + evidence, axis=0)


def mixed(fitted: FittedAcross, likely: NDArray[np.float64]) -> Settings:
    """Settings of texts that come from the segments with these probabilities (N, K)."""
    of_member = likely @ np.eye(len(fitted.shares))[fitted.members]
    members = of_member.argmax(axis=1)
    inside = likely * (fitted.members == members[:, None])
    # Without the division, the rest would count as the base: that lost 0.002 more (`tests/bench/segments.py`).
    inside /= inside.sum(axis=1, keepdims=True)
    return members, inside @ fitted.t, np.exp(inside @ np.log(fitted.temperature))
