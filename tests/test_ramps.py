"""t's that run over the layers: found where they made the labels, and left alone where one t will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import LINE, Synthetic, drawn

from app.errors import BadData
from app.sweep.data.dataset import Dataset
from app.sweep.layer_ramp import NODES, ROUNDS
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.run import run_sweep
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import BankFacts, Guard, SweepSpec
from app.weights.recipe import Cookbook, Recipe

COOKBOOK = Cookbook(["finance", "airline"])


class Layered:
    """Logits that are a quadratic in the t's of the first and of the last layer, for each text another one."""

    labels = ("negative", "neutral", "positive")

    def key(self, recipe: Recipe) -> str:
        return recipe.text

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        t = recipe.t_by_variant.get("finance", 0.0)
        first, last = t if isinstance(t, tuple) else (t, t)
        terms = np.array([1.0, first, last, first * last, first**2, last**2]) * [1, 1, 1, 0.3, 0.3, 0.3]
        return (3 * np.einsum("k,nkc->nc", terms, np.stack([_normals(text) for text in texts]))).astype(np.float32)

    def dataset(self, first: float, last: float, texts: int, seed: int, name: str = "own") -> Dataset:
        """Labels that come from the blend of this ramp."""
        names = tuple(str(1_000_000 * seed + i) for i in range(texts))
        z = self.logits(names, Line.read("finance", COOKBOOK).ramp(first, last)).astype(float)
        labels = (z + np.random.default_rng(seed).gumbel(size=z.shape)).argmax(axis=1)
        return Dataset(name, names, labels, np.arange(texts))


@lru_cache(maxsize=10_000)
def _normals(text: str) -> NDArray[np.float64]:
    return np.random.default_rng(int(text)).normal(size=(6, 3))


def found(target: Dataset, provider: Layered | Synthetic | None = None, **asked: object) -> SweepResult:
    provider = provider or Layered()
    line = Line.read("finance", COOKBOOK)
    spec = SweepSpec(line, [target], [1.0], 1.0, draws=300, ramp=True, **asked)  # type: ignore[arg-type]
    bank = BankFacts(list(provider.labels), list(COOKBOOK.variants), [])
    return run_sweep(spec, bank, LogitCache(provider, MemoryLogitStore()))


def test_the_ramp_that_made_the_labels_is_found_and_recommended() -> None:
    sweep = found(Layered().dataset(0.1, 0.9, 500, seed=1))
    ramp = sweep.ramp
    assert ramp is not None and ramp.better
    assert ramp.first.value == pytest.approx(0.1, abs=0.15) and ramp.last.value == pytest.approx(0.9, abs=0.15)
    assert ramp.first.low <= 0.1 <= ramp.first.high and ramp.last.low <= 0.9 <= ramp.last.high
    assert ramp.gained.low > 0 and ramp.held_out > 0 and ramp.gained.value > ramp.error
    assert ramp.missed < 1e-3, "the surface of logits that are a quadratic is exact"
    assert ramp.blends <= len(NODES) + ROUNDS and sweep.passes <= 7 + ramp.blends
    assert sweep.best.recipe == ramp.recipe and sweep.best.temperature == ramp.temperature
    assert sweep.sentence.startswith(f"Serve {ramp.recipe}, whose t runs from {ramp.first.value:g} in the first layer")
    assert sweep.chosen.recipe == f"finance@{sweep.best.t:g}", "the one t is reported beside it"


@pytest.mark.parametrize("seed", [2, 3])
def test_one_t_is_kept_where_it_made_the_labels(seed: int) -> None:
    sweep = found(Layered().dataset(0.5, 0.5, 400, seed))
    assert sweep.ramp is not None and not sweep.ramp.better
    assert ":" not in sweep.best.recipe and sweep.best.recipe.startswith(f"finance@{sweep.best.t:g};temperature=")
    assert "No t that runs over the layers is clearly better" in sweep.sentence


def test_what_is_gained_is_that_of_true_passes() -> None:
    target = Layered().dataset(0.1, 0.9, 300, seed=4)
    sweep = found(target)
    assert sweep.ramp is not None
    losses = []
    for recipe in (f"finance@{sweep.best.t:g};temperature={sweep.chosen.temperature!r}", sweep.ramp.recipe):
        read = COOKBOOK.read(recipe)
        z = Layered().logits(target.texts, read).astype(float) / (read.temperature / 1e6)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        losses.append(-log_p[np.arange(len(target)), target.truth].mean())
    assert sweep.ramp.gained.value == pytest.approx(losses[0] - losses[1], abs=1e-4)


def test_every_pair_of_ts_is_told_of_and_what_was_run_beside_them() -> None:
    sweep = found(Layered().dataset(0.1, 0.9, 300, seed=4))
    assert sweep.ramp is not None
    surface = {(place.first, place.last): place.value for place in sweep.ramp.surface}
    run = {(place.first, place.last): place.value for place in sweep.ramp.run}
    assert len(surface) == 121 and {*NODES, (0.0, 0.0), (0.35, 0.35), (sweep.best.t, sweep.best.t)} < set(run)
    assert all(surface[at] == pytest.approx(value, abs=1e-3) for at, value in run.items() if at in surface)
    best, one_t = run[sweep.ramp.first.value, sweep.ramp.last.value], run[sweep.best.t, sweep.best.t]
    assert one_t - best == pytest.approx(sweep.ramp.gained.value)
    at = {point.t: point.value for point in sweep.compared}
    assert surface[0.5, 0.5] == pytest.approx(at[0.5]), "the diagonal is the line"


def test_a_ramp_keeps_the_guards() -> None:
    provider = Layered()
    target = provider.dataset(0.1, 0.9, 300, seed=5)
    general = provider.dataset(0.0, 0.0, 300, seed=6, name="general")
    certain = replace(general, labels=provider.logits(general.texts, COOKBOOK.read("base")).argmax(axis=1))
    none = found(target, guards=[Guard(certain, "accuracy", 0.0)])
    assert none.ramp is None, "the base alone is always right"
    assert "the guards allow none of the ramps that were run" in none.warnings
    free, kept = (
        found(target, guards=guards).ramp
        for guards in ([], [Guard(provider.dataset(0.3, 0.2, 300, seed=7, name="general"), "loss", 0.0)])
    )
    assert free is not None and kept is not None and kept.last.value < free.last.value


def test_logits_that_follow_no_curve_get_no_surface() -> None:
    provider = Synthetic(bend=2.0)
    sweep = found(drawn(provider, 100, 0.5, 1.0, seed=8), provider)
    assert sweep.ramp is None and any("no ramp was looked for" in warning for warning in sweep.warnings)


@pytest.mark.parametrize("asked", [{"rule": "nearest"}, {"penalty": "folds"}, {"penalty": 0.1}, {"grid": [0, 1]}])
def test_what_does_not_go_together_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(BadData, match="leave grid, lambda and the rule nearest out"):
        SweepSpec(LINE, [drawn(Synthetic(), 40, 0.5, 1.0, 9)], [1.0], 1.0, ramp=True, **asked)  # type: ignore[arg-type]


def test_a_line_between_variants_has_ramps_too() -> None:
    line = Line.read("airline..finance", COOKBOOK)
    assert line.ramp(0.25, 0.75).text == "airline@0.75:0.25+finance@0.25:0.75"
    assert line.ramp(0.5, 0.5) == line.at(0.5)
