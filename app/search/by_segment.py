"""A t for each segment, and what it gains over one t on texts that had no say in it.

Everything is fitted again without each fold, t's, temperatures, router and gain, and judged on the fold. The table that
is served is fitted on all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.search.choice import interval
from app.search.findings import Value
from app.search.folds import FOLDS, splits
from app.search.routing import router_of
from app.search.segmented import METHODS, Fitted, Segmented
from app.serving.segment_table import SegmentTable, Setting


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
    `by_segment` has the gain of a declared segment in each of them."""

    line: str
    texts: int
    folds: int
    scatter: float
    routed_rightly: float
    methods: Mapping[str, Gain]
    by_segment: Mapping[str, Gain]
    sentence: str
    warnings: Sequence[str]


def fit_table(data: Segmented, variant: str, bank: str, unlabelled: Sequence[tuple[str, str]] = ()) -> SegmentTable:
    """What is served: fitted on all texts."""
    (fitted,) = data.fit([np.ones(len(data.pool), dtype=bool)], unlabelled)
    return table_from(data, fitted, variant, bank)


def table_from(data: Segmented, fitted: Fitted, variant: str, bank: str) -> SegmentTable:
    by, counts = fitted.by_segment, np.bincount(data.segments)
    return SegmentTable(
        variant=variant,
        bank=bank,
        pooled=Setting(round(fitted.t, 2), round(fitted.temperature, 3), fitted.interval, len(data.pool)),
        segments={
            name: Setting(
                round(float(by.t[k]), 2),
                round(float(by.temperature[k]), 3),
                (float(by.interval[k, 0]), float(by.interval[k, 1])),
                int(counts[k]),
            )
            for k, name in enumerate(data.names)
        },
        router=router_of(data.names, *fitted.router),
        entropy=fitted.entropy,
    )


def judged(
    data: Segmented, line: str, unlabelled: Sequence[tuple[str, str]] = (), draws: int = 2000, seed: int = 0
) -> SegmentFindings:
    """What each method gains on held-out texts."""
    parts = splits(data.pool, FOLDS, 1, seed)[0]
    log_p = {name: np.zeros(data.logits.shape[1:]) for name in METHODS}
    right = np.zeros(len(data.pool), dtype=bool)
    scatters = []
    for split, fitted in zip(parts, data.fit([split.train for split in parts], unlabelled), strict=True):
        right[split.test] = data.routed_rightly(fitted, data)[split.test]
        scatters.append(fitted.by_segment.scatter)
        for name, settings in data.settings(fitted, data).items():
            log_p[name][split.test] = data.log_probabilities(settings)[split.test]
    tested = np.logical_or.reduce([split.test for split in parts])
    weights = data.pool.restricted(tested)
    gains = gains_of(data, log_p, tested, draws, seed)
    counts = np.bincount(data.segments, minlength=len(data.names))
    by_segment = {
        name: gains_of(data, log_p, tested & (data.segments == k), draws, seed)["segment"]
        for k, name in enumerate(data.names)
        if (tested & (data.segments == k)).any()
    }
    routed = float(weights @ right)
    return SegmentFindings(
        line=line,
        texts=len(data.pool),
        folds=FOLDS,
        scatter=float(np.mean(scatters)),
        routed_rightly=routed,
        methods=gains,
        by_segment=by_segment,
        sentence=sentence_of(gains, routed),
        warnings=[
            f"segment {name!r} has {count} labelled texts: its t leans on the others"
            for name, count in zip(data.names, counts, strict=True)
            if count < FEW_TEXTS
        ],
    )


FEW_TEXTS = 100


def gains_of(
    data: Segmented, log_p: Mapping[str, NDArray[np.float64]], tested: NDArray[np.bool_], draws: int, seed: int
) -> dict[str, Gain]:
    """From log probabilities (N, C) by method, on the texts of a mask (N,); the first method is what others gain on."""
    labels = data.pool.labels
    losses = np.stack([-each[np.arange(len(labels)), labels] for each in log_p.values()])
    accuracy = np.stack([(each.argmax(axis=1) == labels).astype(np.float64) for each in log_p.values()])
    parts = np.stack([losses, accuracy], axis=-1) * tested[:, None]  # (M, N, 2)
    counted = np.broadcast_to(tested[:, None].astype(np.float64), (1, *tested.shape, 1))[..., [0, 0]]
    means = data.pool.mean(parts) / data.pool.mean(counted)
    drawn = data.pool.resampled(np.concatenate([parts, counted]), draws, seed)  # (B, M + 1, 2)
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


def sentence_of(gains: Mapping[str, Gain], routed: float) -> str:
    """What segments are worth, in plain words."""
    declared, guessed = gains["segment"], gains["router"]
    worth = "is worth declaring" if declared.loss_gained.low > 0 else "is not shown to be worth declaring"
    return (
        f"On held-out texts a segment {worth}: against one t, a t by segment gains {_shown(declared)}; "
        f"guessed from the words ({100 * routed:.0f} % rightly) it gains {_shown(guessed)}; "
        f"the ends' entropies gain {_shown(gains['entropy'])}."
    )


def _shown(gain: Gain) -> str:
    loss, points = gain.loss_gained, gain.accuracy_gained
    return f"{loss.value:.3f} log loss ({loss.low:.3f} to {loss.high:.3f}) and {100 * points.value:+.1f} points"
