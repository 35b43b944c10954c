"""A variant and a t for each segment: fitted where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import COOKBOOK, Synthetic, _normals

from app.search.across_variants import AcrossVariants, FittedAcross, mixed, shares_of
from app.search.by_segment import judged
from app.search.curve import Curve
from app.search.dataset import Dataset
from app.search.line import Line
from app.search.passes import MemoryStore, Passes
from app.search.segment_texts import SegmentTexts
from app.weights.recipe import Recipe

TEMPERATURE = 1.5


class TwoLines(Synthetic):
    """Every variant bends a text's logits with coefficients of its own. A text is a number, and its segment's name."""

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        drawn = np.stack([_normals(text.split()[0]) for text in texts])  # (N, 11, C)
        t = recipe.t_by_variant
        made = 2.0 * drawn[:, 0]
        for place, variant in enumerate(COOKBOOK.variants):
            at = t.get(variant, 0.0)
            assert isinstance(at, float)
            for k in (1, 2, 3):
                made += 1.5 * at**k * drawn[:, 3 * place + k]
        return made.astype(np.float32)


def segment(name: str, texts: int, recipe: str, seed: int) -> Dataset:
    """Texts whose labels come from a blend."""
    rng = np.random.default_rng(seed)
    named = tuple(f"{1_000_000 * (seed + 1) + i} {name}" for i in range(texts))
    z = TwoLines().logits(named, COOKBOOK.read(recipe)) / TEMPERATURE
    return Dataset(name, named, (z + rng.gumbel(size=z.shape)).argmax(axis=1), np.arange(texts))


def across(*datasets: Dataset) -> AcrossVariants:
    passes = Passes(TwoLines(), MemoryStore())
    curves = {v: Curve(Line.read(v, COOKBOOK), [d.texts for d in datasets], passes) for v in COOKBOOK.variants}
    return AcrossVariants(SegmentTexts(datasets, [1.0] * len(datasets)), curves)


@pytest.fixture(scope="module")
def data() -> AcrossVariants:
    return across(
        segment("chat", 400, "airline@0.6", seed=1),
        segment("mail", 400, "finance@0.8", seed=2),
        segment("note", 400, "base", seed=3),
        segment("post", 400, "finance@0.7", seed=4),
        segment("tiny", 8, "base", seed=5),
    )


@pytest.fixture(scope="module")
def fitted(data: AcrossVariants) -> FittedAcross:
    (found,) = data.fit([data.texts.everything])
    return found


def test_each_segment_gets_the_variant_that_made_its_labels(data: AcrossVariants, fitted: FittedAcross) -> None:
    wanted = dict(zip(data.texts.names, (data.names[member] for member in fitted.members), strict=True))
    assert wanted | {"tiny": ""} == {
        "chat": "airline",
        "mail": "finance",
        "note": "base",
        "post": "finance",
        "tiny": "",
    }
    assert fitted.t[:4] == pytest.approx([0.6, 0.8, 0.0, 0.7], abs=0.12)
    assert fitted.temperature[:4] == pytest.approx([TEMPERATURE] * 4, rel=0.25)
    assert (fitted.interval[:, 0] <= fitted.t).all() and (fitted.t <= fitted.interval[:, 1]).all()
    assert fitted.interval[2].tolist() == [0, 0]
    sure = fitted.wanted[fitted.members, np.arange(5)]
    assert (sure[[0, 1, 3]] > 0.95).all() and 0.4 < sure[2] < 0.95, "t near 0 along a line is hardly told from the base"
    assert data.names[fitted.one.member] == "finance" and fitted.shares.sum() == pytest.approx(1)


def test_a_segment_of_few_texts_leans_on_the_variant_that_most_segments_want(
    data: AcrossVariants, fitted: FittedAcross
) -> None:
    tiny = data.texts.names.index("tiny")
    assert data.names[fitted.members[tiny]] == "finance"
    assert fitted.wanted[fitted.members[tiny], tiny] < 0.9, "and says that it is not sure"
    part = data.texts.everything & (data.texts.segments != tiny)
    (without,) = data.fit([part])
    np.testing.assert_allclose(without.wanted[:, tiny], without.shares, atol=1e-6)


def test_shares_are_those_of_the_segments() -> None:
    sure = np.full((3, 10), -50.0)
    sure[[0] * 6 + [1] * 4, np.arange(10)] = 0.0
    shares, wanted = shares_of(sure)
    assert shares == pytest.approx([(6 + 1 / 3) / 11, (4 + 1 / 3) / 11, (1 / 3) / 11])
    assert wanted.argmax(axis=0).tolist() == [0] * 6 + [1] * 4
    # Where labels say as much for one as for the other, the commoner one is taken; where they say more, they decide.
    split = np.concatenate([sure, [[-1.0, -2.0], [-1.0, 0.0], [-50.0, -50.0]]], axis=1)
    assert shares_of(split)[1].argmax(axis=0)[-2:].tolist() == [0, 1]


def test_what_a_variant_by_segment_gains_is_shown_on_held_out_texts(data: AcrossVariants) -> None:
    found = judged(data, "all", draws=300)
    declared, guessed = found.methods["segment"], found.methods["router"]
    assert list(found.methods) == list(data.methods)
    assert declared.loss_gained.low > 0.05
    assert found.methods["one recipe, T by segment"].loss_gained.value < declared.loss_gained.value / 2
    assert found.routed_rightly > 0.9
    assert guessed.loss_gained.value == pytest.approx(declared.loss_gained.value, rel=0.3)
    assert "a segment is worth declaring: against one recipe" in found.sentence and "entrop" not in found.sentence
    assert found.by_segment["chat"].loss_gained.low > 0 and found.scatter is None


def test_nothing_is_gained_where_all_segments_want_the_same() -> None:
    found = judged(across(*(segment(name, 300, "finance@0.6", seed) for seed, name in enumerate("abc", 10))), "all")
    gained = found.methods["segment"].loss_gained
    assert gained.low < 0.002 and abs(gained.value) < 0.01
    assert "not shown to be worth" in found.sentence


def test_a_guess_takes_the_likeliest_variant_and_mixes_within_it(fitted: FittedAcross) -> None:
    certain = replace(
        fitted,
        members=np.array([2, 1, 0, 1, 1]),
        t=np.array([0.6, 0.8, 0.0, 0.4, 0.5]),
        temperature=np.array([1.0, 2.0, 3.0, 0.5, 1.0]),
    )
    members, t, temperature = mixed(certain, np.array([[0.4, 0.3, 0.0, 0.3, 0.0], [0.3, 0.1, 0.6, 0.0, 0.0]]))
    assert members.tolist() == [1, 0], "two segments that want it together outweigh the likeliest segment"
    assert t == pytest.approx([0.6, 0.0]) and temperature == pytest.approx([1.0, 3.0])
