"""Several variants: the direction that is found points at the mix that made the labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import BadData
from app.sweep import multi_variant
from app.sweep.data.dataset import Dataset
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.multi_variant import Mixes, towards_the_best_mix
from app.sweep.sweep_spec import Guard, SweepSpec
from app.weights.recipe import Cookbook, Recipe

NAMES = ["a", "b", "c", "d", "e"]


class Mixed:
    """Logits that are a quadratic in the t's of several variants, for each text another one."""

    def __init__(self, variants: int) -> None:
        self.cookbook = Cookbook(NAMES[:variants])
        self._size = 1 + variants + variants**2

    def key(self, recipe: Recipe) -> str:
        return recipe.text

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        t = np.array([recipe.t_by_variant.get(name, 0.0) for name in self.cookbook.variants])
        terms = np.concatenate([[1.0], t, 0.3 * np.outer(t, t).ravel()])
        drawn = np.stack([np.random.default_rng(int(text)).normal(size=(self._size, 3)) for text in texts])
        return (3 * np.einsum("k,nkc->nc", terms, drawn)).astype(np.float32)

    def dataset(self, t: dict[str, float], texts: int, seed: int, name: str = "own") -> Dataset:
        names = tuple(str(1_000_000 * seed + i) for i in range(texts))
        z = self.logits(names, self.cookbook.read({"t": t})).astype(float)
        labels = (z + np.random.default_rng(seed).gumbel(size=z.shape)).argmax(axis=1)
        return Dataset(name, names, labels, np.arange(texts))

    def spec(self, *targets: Dataset, **asked: object) -> SweepSpec:
        line = Line.read("a", self.cookbook)
        return SweepSpec(line, targets, [1.0] * len(targets), 1.0, draws=300, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(("t", "passes"), [({"a": 0.5, "b": 0.2}, 9), ({"a": 0.2, "b": 0.1, "c": 0.6}, 13)])
def test_the_line_points_at_the_mix_that_made_the_labels(t: dict[str, float], passes: int) -> None:
    provider = Mixed(len(t))
    runs = LogitCache(provider, MemoryLogitStore())
    line, direction = towards_the_best_mix(provider.spec(provider.dataset(t, 500, 1)), list(t), runs)
    for name, value in direction.t.items():
        assert value.low - 0.02 <= t[name] <= value.high + 0.02
        assert value.value == pytest.approx(t[name], abs=0.12)
    assert line.start_name == "base" and sum(line.end.t_by_variant.values()) == pytest.approx(1, abs=0.02)
    assert direction.blends <= passes and direction.way == "response surface"


def test_points_lie_between_the_members_and_the_base_comes_first() -> None:
    provider = Mixed(3)
    mixes = Mixes(provider.cookbook, NAMES[:3], [("1", "2")], LogitCache(provider, MemoryLogitStore()), seed=0)
    mixes.run([0, 0, 0])
    points = mixes.points
    assert (points >= 0).all() and (points.sum(axis=1) <= 1 + 1e-9).all() and not points[0].any()
    assert np.abs(points[1:].mean(axis=0) - 1 / 4).max() < 0.02, "evenly spread over the simplex"


def test_a_guard_turns_the_line_away_from_what_breaks_it() -> None:
    provider = Mixed(2)
    target = provider.dataset({"a": 0.5, "b": 0.5}, 300, 2)
    general = provider.dataset({"a": 0.5}, 300, 3, name="general")
    free, kept = (
        towards_the_best_mix(
            provider.spec(target, guards=guards), ["a", "b"], LogitCache(provider, MemoryLogitStore())
        )[1]
        for guards in ([], [Guard(general, "loss", 0.0)])
    )
    assert kept.t["b"].value < free.t["b"].value


def test_beyond_four_variants_blends_are_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_variant, "TRIALS", 25)
    provider = Mixed(5)
    t = {"a": 0.0, "b": 0.0, "c": 0.9, "d": 0.0, "e": 0.0}
    spec = provider.spec(provider.dataset(t, 300, 4))
    line, direction = towards_the_best_mix(spec, NAMES, LogitCache(provider, MemoryLogitStore()))
    assert direction.way == "trials" and direction.blends <= 26
    assert max(direction.t, key=lambda name: direction.t[name].value) == "c"
    assert line.end.t_by_variant["c"] >= 0.4


def test_without_optuna_five_variants_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    provider = Mixed(5)
    spec = provider.spec(provider.dataset({"a": 0.5}, 100, 5))
    with pytest.raises(BadData, match=r"5 variants at once need optuna \(pip install 'tween\[sweep\]'\)"):
        towards_the_best_mix(spec, NAMES, LogitCache(provider, MemoryLogitStore()))
