"""Texts whose best t is known: logits are polynomials in t, labels are drawn from the softmax at a t and temperature.

The expected log loss with T fitted is least where the labels come from (cross entropy is at least entropy), so the
truth that a sweep looks for is given, and any number of texts costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.sweep.data.dataset import Dataset
from app.sweep.logits.line import Line
from app.weights.recipe import Cookbook, Recipe

COOKBOOK = Cookbook(["finance", "airline"])
LINE = Line.read("finance", COOKBOOK)


class Synthetic:
    """A provider. A text is its number; its logits at t are `sum c_k t^k` with coefficients of its own.

    `bend` adds a wave that no polynomial through few nodes follows. `asked` lists every text that was run.
    """

    labels = ["negative", "neutral", "positive"]

    def __init__(self, degree: int = 3, bend: float = 0.0) -> None:
        self.degree = degree
        self.bend = bend
        self.asked: list[str] = []

    def key(self, recipe: Recipe) -> str:
        return f"{recipe.text}-{self.degree}-{self.bend}"

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        self.asked += texts
        t = recipe.t_by_variant
        at = t.get("finance", 0.0) + 0.5 * t.get("airline", 0.0)
        return self.of(texts, at).astype(np.float32)

    def of(self, texts: Sequence[str], t: float) -> NDArray[np.float64]:
        """Logits (N, C) at t."""
        drawn = np.stack([_normals(text) for text in texts])  # (N, 11, C)
        coefficients = drawn[:, : self.degree + 1] * np.array([2.0, *[1.5] * self.degree])[:, None]
        wave = self.bend * np.sin(40 * t + drawn[:, -1])
        return np.einsum("k,nkc->nc", t ** np.arange(self.degree + 1), coefficients) + wave


@lru_cache(maxsize=100_000)
def _normals(text: str) -> NDArray[np.float64]:
    return np.random.default_rng(int(text)).normal(size=(11, 3))


def drawn(provider: Synthetic, texts: int, t: float, temperature: float, seed: int, name: str = "own") -> Dataset:
    """A data set whose labels come from the softmax of the logits at t, divided by the temperature."""
    rng = np.random.default_rng(seed)
    names = tuple(str(1_000_000 * (seed + 1) + index) for index in range(texts))
    z = provider.of(names, t) / temperature
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    return Dataset(name, names, labels, np.arange(texts))
