"""A t for each segment, and what it gains over one t on texts that had no say in it.

Everything is fitted again without each fold, t's, temperatures, router and gain, and judged on the fold. The table that
is served is fitted on all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.segments.fit.fit_classifier import router_of
from app.segments.fit.fit_one_line import Segmented, SegmentTexts, Weights
from app.segments.segment_table import SegmentTable, Setting
from app.sweep.choose_t import interval
from app.sweep.data.cv_splits import FOLDS, splits
from app.sweep.sweep_result import Value


class SegmentFit(Protocol):
    """What a part of the texts asks for. `scatter` is that of the t's, where they are all of one line."""

    @property
    def router(self) -> Weights: ...

    @property
    def scatter(self) -> float | None: ...


F = TypeVar("F", bound=SegmentFit)


class Choosing(Protocol[F]):
    """What is chosen by segment: a t along one line (`fit_one_line.py`), or a variant and a t
    (`fit_across_variants.py`).

    `methods` are the ways to choose, the first being the one that others gain on, and `chooses` and `against` say in
    words what is chosen and instead of what. `answers` has the log probabilities (N, C) of the texts of another one by
    each of them.
    """

    texts: SegmentTexts
    methods: Mapping[str, str]
    chooses: str
    against: str

    def fit(self, parts: Sequence[NDArray[np.bool_]], unlabelled: Sequence[tuple[str, str]] = ()) -> list[F]: ...

    def answers(self, fitted: F, judged: Self) -> dict[str, NDArray[np.float64]]: ...


@dataclass(frozen=True)
class Gain:
    """Log loss and accuracy of a method, and how much better than one t they are (accuracy in shares, not points)."""

    loss: float
    accuracy: float
    loss_gained: Value
    accuracy_gained: Value


@dataclass(frozen=True)
class SegmentFindings:
    """What `tween segments` found. `routed_rightly` is the share of texts whose segment is guessed from their words;
    `by_segment` has the gain of a declared segment in each of them, `guessed_by_segment` that of a guessed one. Across
    variants, `wanted` tells by segment how likely each member is the one that it wants."""

    line: str
    texts: int
    folds: int
    scatter: float | None
    routed_rightly: float
    methods: Mapping[str, Gain]
    by_segment: Mapping[str, Gain]
    guessed_by_segment: Mapping[str, Gain]
    sentence: str
    warnings: Sequence[str]
    wanted: Mapping[str, Mapping[str, float]] | None = None


def fit_table(data: Segmented, variant: str, bank: str, unlabelled: Sequence[tuple[str, str]] = ()) -> SegmentTable:
    """What is served: fitted on all texts."""
    (fitted,) = data.fit([data.texts.everything], unlabelled)
    by, texts = fitted.by_segment, data.texts
    return SegmentTable(
        variant=variant,
        bank=bank,
        pooled=Setting(round(fitted.t, 2), round(fitted.temperature, 3), fitted.interval, len(texts)),
        segments={
            name: Setting(
                round(float(by.t[k]), 2),
                round(float(by.temperature[k]), 3),
                (float(by.interval[k, 0]), float(by.interval[k, 1])),
                int(texts.counts[k]),
            )
            for k, name in enumerate(texts.names)
        },
        router=router_of(texts.names, *fitted.router),
    )


def judged(
    data: Choosing[F], line: str, unlabelled: Sequence[tuple[str, str]] = (), draws: int = 2000, seed: int = 0
) -> SegmentFindings:
    """What each method gains on held-out texts."""
    texts, pool = data.texts, data.texts.pool
    parts = splits(pool, FOLDS, 1, seed)[0]
    log_p: dict[str, NDArray[np.float64]] = {}
    right = np.zeros(len(texts), dtype=bool)
    scatters = []
    for split, fitted in zip(parts, data.fit([split.train for split in parts], unlabelled), strict=True):
        right[split.test] = texts.routed_rightly(fitted.router, texts)[split.test]
        scatters.append(fitted.scatter)
        for name, answers in data.answers(fitted, data).items():
            log_p.setdefault(name, np.zeros_like(answers))[split.test] = answers[split.test]
    tested = np.logical_or.reduce([split.test for split in parts])
    gains = gains_of(texts, log_p, tested, draws, seed)
    inside = {name: tested & (texts.segments == k) for k, name in enumerate(texts.names)}
    alone = {name: gains_of(texts, log_p, part, draws, seed) for name, part in inside.items() if part.any()}
    routed = float(pool.restricted(tested) @ right)
    return SegmentFindings(
        line=line,
        texts=len(texts),
        folds=FOLDS,
        scatter=None if None in scatters else float(np.mean([s for s in scatters if s is not None])),
        routed_rightly=routed,
        methods=gains,
        by_segment={name: by_method["segment"] for name, by_method in alone.items()},
        guessed_by_segment={name: by_method["router"] for name, by_method in alone.items()},
        sentence=_sentence(data.chooses, data.against, gains, routed),
        warnings=[
            *(
                f"segment {name!r} has {count} labelled texts: what it gets leans on the others"
                for name, count in zip(texts.names, texts.counts, strict=True)
                if count < FEW_TEXTS
            ),
            *(
                f"segment {name!r} should be declared: guessed from its words, it loses "
                f"{-by_method['router'].loss_gained.value:.3f} log loss against {data.against}"
                for name, by_method in alone.items()
                if by_method["router"].loss_gained.high < 0
            ),
        ],
    )


FEW_TEXTS = 100


def gains_of(
    texts: SegmentTexts, log_p: Mapping[str, NDArray[np.float64]], tested: NDArray[np.bool_], draws: int, seed: int
) -> dict[str, Gain]:
    """From log probabilities (N, C) by method, on the texts of a mask (N,); the first method is what others gain on."""
    pool, labels = texts.pool, texts.pool.labels
    losses = np.stack([-each[np.arange(len(labels)), labels] for each in log_p.values()])
    accuracy = np.stack([(each.argmax(axis=1) == labels).astype(np.float64) for each in log_p.values()])
    parts = np.stack([losses, accuracy], axis=-1) * tested[:, None]  # (M, N, 2)
    counted = np.broadcast_to(tested[:, None].astype(np.float64), (1, *tested.shape, 1))[..., [0, 0]]
    means = pool.mean(parts) / pool.mean(counted)
    drawn = pool.resampled(np.concatenate([parts, counted]), draws, seed)  # (B, M + 1, 2)
    drawn = drawn[:, :-1] / np.maximum(drawn[:, -1:], 1e-12)
    low, high = interval(drawn - drawn[:, :1])
    gained = means - means[0]
    return {
        name: Gain(
            loss=float(means[m, 0]),
            accuracy=float(means[m, 1]),
            loss_gained=Value(*(0.0 - float(v) for v in (gained[m, 0], high[m, 0], low[m, 0]))),
            accuracy_gained=Value(float(gained[m, 1]), float(low[m, 1]), float(high[m, 1])),
        )
        for m, name in enumerate(log_p)
    }


def _sentence(chooses: str, against: str, gains: Mapping[str, Gain], routed: float) -> str:
    """What segments are worth, in plain words."""
    declared, guessed = gains["segment"], gains["router"]
    worth = "is worth declaring" if declared.loss_gained.low > 0 else "is not shown to be worth declaring"
    return (
        f"On held-out texts a segment {worth}: against {against}, choosing {chooses} by segment gains "
        f"{_shown(declared)}; where the segment is guessed from the words ({100 * routed:.0f} % rightly), it gains "
        f"{_shown(guessed)}."
    )


def _shown(gain: Gain) -> str:
    loss, points = gain.loss_gained, gain.accuracy_gained
    return f"{loss.value:.3f} log loss ({loss.low:.3f} to {loss.high:.3f}) and {100 * points.value:+.1f} points"
