"""How steady the answers are along t: labels that flip, and accuracy, when texts are perturbed or attacked.

Perturbed texts go through the same blends as the texts themselves. The attack is a white-box figure: one step of the
fast gradient method on the input embeddings (Miyato et al., arXiv 1605.07725), which no caller can make through text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.sweep.choose_t import interval
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.diagnostics.perturbations import PERTURBATIONS, perturbed
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.sweep_result import Steadiness, Value
from app.weights.recipe import Recipe

TS = (0.0, 0.2, 0.5, 0.8, 1.0)
MOST_TEXTS = 500
ATTACK = "embeddings"

Attack = Callable[[Sequence[str], NDArray[np.int64], Recipe], NDArray[np.float32]]
"""Logits (N, C) of texts with these labels under attack."""


def robustness(
    line: Line, dataset: Dataset, ts: Sequence[float], passes: LogitCache, seed: int = 0, attack: Attack | None = None
) -> dict[str, list[Steadiness]]:
    """By perturbation, at each t; with an `attack`, that one too, under the name ATTACK."""
    sample = _sample(dataset, seed)
    pool = WeightedPool.of([sample])
    changed = {name: [perturbed(text, name, seed) for text in sample.texts] for name in PERTURBATIONS}
    passes.expect((1 + len(changed)) * len(ts) * len(sample))
    found: dict[str, list[Steadiness]] = {name: [] for name in (*changed, *([ATTACK] if attack else []))}
    for t in ts:
        recipe = line.at(t)
        plain = passes.logits(sample.texts, recipe).argmax(axis=1)
        for name, texts in changed.items():
            found[name].append(_steadiness(t, plain, passes.logits(texts, recipe).argmax(axis=1), pool, seed))
        if attack is not None:
            attacked = attack(sample.texts, sample.truth, recipe).argmax(axis=1)
            found[ATTACK].append(_steadiness(t, plain, attacked, pool, seed))
    return found


def _sample(dataset: Dataset, seed: int) -> Dataset:
    """At most MOST_TEXTS of the texts."""
    if len(dataset) <= MOST_TEXTS:
        return dataset
    return dataset.subset(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:MOST_TEXTS]))


def _steadiness(
    t: float, plain: NDArray[np.int64], now: NDArray[np.int64], pool: WeightedPool, seed: int
) -> Steadiness:
    parts = np.stack([now != plain, now == pool.labels], axis=-1)[None].astype(np.float64)  # (1, N, 2)
    flips, accuracy = pool.mean(parts)[0]
    low, high = interval(pool.resampled(parts, seed=seed)[:, 0])
    return Steadiness(
        t, Value(float(flips), float(low[0]), float(high[0])), Value(float(accuracy), float(low[1]), float(high[1]))
    )
