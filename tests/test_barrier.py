from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import LINE, Synthetic, drawn

from app.sweep.data.dataset import Dataset
from app.sweep.diagnostics.barrier import barrier
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.weights.recipe import Recipe


class Hilly(Synthetic):
    """Ends that know every label, and blends that drown it in noise in the middle."""

    def __init__(self, labels: dict[str, int], depth: float) -> None:
        super().__init__()
        self._labels, self._depth = labels, depth

    def key(self, recipe: Recipe) -> str:
        return f"hilly {self._depth} {recipe.text}"

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        t = recipe.t_by_variant.get("finance", 0.0)
        known = 3.0 * np.eye(3)[[self._labels[text] for text in texts]]
        noise = self.of(texts, 0.0)
        return (known + 4 * t * (1 - t) * self._depth * (noise - known)).astype(np.float32)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return drawn(Synthetic(), 300, t=0.3, temperature=1.0, seed=1)


def test_a_hill_between_two_good_ends_is_found_where_it_is(dataset: Dataset) -> None:
    provider = Hilly(dict(zip(dataset.texts, dataset.truth.tolist(), strict=True)), depth=1.0)
    found = barrier(LINE, dataset, LogitCache(provider, MemoryLogitStore()), draws=200)
    assert not found.connected and found.t == pytest.approx(0.5) and "has a barrier" in found.sentence
    end, middle = (provider.logits(dataset.texts, LINE.at(t)).astype(float) for t in (0.0, 0.5))
    exact = METRICS["loss"].of(ScoredTexts(middle, dataset.truth)) - METRICS["loss"].of(ScoredTexts(end, dataset.truth))
    assert found.height.value == pytest.approx(exact, abs=1e-3)
    assert found.height.low < found.height.value < found.height.high
    assert found.error.value == pytest.approx((middle.argmax(axis=1) != dataset.truth).mean(), abs=0.02)


def test_without_labels_the_ends_answers_find_the_same_hill(dataset: Dataset) -> None:
    provider = Hilly(dict(zip(dataset.texts, dataset.truth.tolist(), strict=True)), depth=1.0)
    found = barrier(LINE, replace(dataset, labels=None), LogitCache(provider, MemoryLogitStore()), draws=200)
    assert not found.connected and not found.labelled and found.t == pytest.approx(0.5)


def test_a_flat_road_has_no_barrier(dataset: Dataset) -> None:
    provider = Hilly(dict(zip(dataset.texts, dataset.truth.tolist(), strict=True)), depth=0.0)
    found = barrier(LINE, dataset, LogitCache(provider, MemoryLogitStore()), draws=200)
    assert found.connected and found.height.value == pytest.approx(0, abs=1e-6) and "blends well" in found.sentence
    assert found.steps[0].loss_above == found.steps[-1].loss_above == 0
