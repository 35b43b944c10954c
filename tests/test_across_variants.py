"""A variant and a t for each segment: fitted where the truth is known, told in a table and on a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import COOKBOOK, Synthetic, _normals

from app.cli.segments_command import add_segments, run_segments, variants_to_choose_from
from app.errors import BadData, UnknownVariant
from app.models.bank import Bank
from app.segments.fit.evaluate_gain import SegmentFindings, judged
from app.segments.fit.fit_across_variants import AcrossVariants, FittedAcross, mixed, shares_of
from app.segments.fit.fit_one_line import SegmentTexts
from app.segments.fit.segments_report import segments_of, text_of, write
from app.segments.segment_table import Setting, read_table
from app.sweep.data.dataset import Dataset
from app.sweep.logits.line import Line
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.logits.logit_curve import LogitCurve
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


def across(*datasets: Dataset, kind: type[AcrossVariants] = AcrossVariants) -> AcrossVariants:
    passes = LogitCache(TwoLines(), MemoryLogitStore())
    curves = {v: LogitCurve(Line.read(v, COOKBOOK), [d.texts for d in datasets], passes) for v in COOKBOOK.variants}
    return kind(SegmentTexts(datasets, [1.0] * len(datasets)), curves)


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


@pytest.fixture(scope="module")
def found(data: AcrossVariants) -> SegmentFindings:
    return judged(data, "all", draws=300)


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
    # Segments whose labels say nothing leave the shares as the others have them.
    silent = np.concatenate([np.array([[0.0] * 9 + [-50.0], [-50.0] * 9 + [0.0]]), np.zeros((2, 10))], axis=1)
    assert shares_of(silent)[0] == pytest.approx([9.5 / 11, 1.5 / 11], abs=1e-6)
    # Where labels say as much for one as for the other, the commoner one is taken; where they say more, they decide.
    split = np.concatenate([sure, [[-1.0, -2.0], [-1.0, 0.0], [-50.0, -50.0]]], axis=1)
    assert shares_of(split)[1].argmax(axis=0)[-2:].tolist() == [0, 1]


def test_what_a_variant_by_segment_gains_is_shown_on_held_out_texts(
    data: AcrossVariants, found: SegmentFindings
) -> None:
    declared, guessed = found.methods["segment"], found.methods["router"]
    assert list(found.methods) == list(data.methods)
    assert declared.loss_gained.low > 0.05
    assert found.methods["one recipe, T by segment"].loss_gained.value < declared.loss_gained.value / 2
    assert found.routed_rightly > 0.9
    assert guessed.loss_gained.value == pytest.approx(declared.loss_gained.value, rel=0.3)
    assert "a segment is worth declaring: against the best single recipe" in found.sentence
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


class Blind(AcrossVariants):
    """Takes every text for one of the first segment."""

    def answers(self, fitted: FittedAcross, judged: AcrossVariants) -> dict[str, NDArray[np.float64]]:
        likely = np.eye(len(fitted.members))[np.zeros(len(judged.texts), dtype=int)]
        return super().answers(fitted, judged) | {"router": judged.log_probabilities(mixed(fitted, likely))}


def test_a_segment_that_loses_when_it_is_guessed_is_warned_about() -> None:
    apart = segment("chat", 200, "airline@0.8", seed=1), segment("mail", 200, "finance@0.8", seed=2)
    found = judged(across(*apart, kind=Blind), "all", draws=200)
    assert found.guessed_by_segment["mail"].loss_gained.high < 0 < found.by_segment["mail"].loss_gained.low
    (warning,) = found.warnings
    assert "'mail' should be declared: guessed from its words, it loses" in warning
    assert warning.endswith("log loss against the best single recipe")


# -- what is written -----------------------------------------------------------------------------------


def test_the_table_and_the_page_name_the_variant_of_each_segment(
    data: AcrossVariants, fitted: FittedAcross, found: SegmentFindings, tmp_path: Path
) -> None:
    table = data.table(fitted, "fingerprint")
    assert table.segments["chat"].variant == "airline" and table.segments["note"] == Setting(
        0.0, table.segments["note"].temperature, (0.0, 0.0), 400, "base"
    )
    assert table.pooled.variant == "finance" and table.pooled.texts == 1608
    found = replace(found, wanted=data.wanted(fitted))
    write(found, table, tmp_path)
    assert read_table(tmp_path / "segments.json").document() == table.document()
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["wanted"]["chat"]["airline"] > 0.99 and set(written["guessed_by_segment"]) == set(data.texts.names)
    rows = {row[0]: row for row in segments_of(found, table)}
    assert rows["segment"][2] == "variant" and rows["chat"][2] == "airline (sure)"
    assert rows["note"][2].startswith("base (") and rows["any other"][2] == "finance"
    assert found.sentence in text_of(found, table)
    page = (tmp_path / "report.html").read_text()
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    said = ["".join(text.itertext()) for text in drawing.iter("text")]
    assert f"airline {table.segments['chat'].t:.2f}" in said and said.count("base") == 2
    assert f"any other: finance {table.pooled.t:.2f}" in said


def test_a_page_shows_names_as_they_are_and_no_more_segments_than_can_be_seen(
    data: AcrossVariants, fitted: FittedAcross, found: SegmentFindings, tmp_path: Path
) -> None:
    table = data.table(fitted, "fingerprint")
    names = ["<script>alert(1)</script>", '"quoted" & $x$ \u96fb', *(f"segment {i}" for i in range(60))]
    gains = dict.fromkeys(names, found.by_segment["chat"])
    many = replace(
        found,
        line="base..<i>",
        by_segment=gains,
        guessed_by_segment=gains,
        warnings=[f"segment {names[0]!r} has 1 text"],
    )
    settings = {name: replace(table.segments["chat"], texts=900 - i) for i, name in enumerate(names)}
    write(many, replace(table, segments=settings, router=None), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<i>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;: 900 texts" in page
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert len([one for one in drawing.iter("text") if one.get("class") == "name"]) == 40
    assert "The 40 segments of most texts are drawn, 22 are not." in page and "segment 59" in page


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_chooses_among_all_variants_unless_some_are_named(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{'mail' if i % 2 else 'chat'},the {'late slow good'.split()[i % 3]} order {i},{i % 3}" for i in range(60)]
    (tmp_path / "own.csv").write_text("\n".join(["channel,text,label", *rows]))
    out = ["--out", str(tmp_path / "fitted")]
    options = _options(str(tmp_path / "own.csv"), *out)
    assert run_segments(options, lambda options: LocalProvider(bank, 64), tmp_path / "logits") == 0
    said = capsys.readouterr().out
    assert "variant and t by declared segment" in said and "choosing a variant and its t by segment gains" in said
    assert {path.name for path in (tmp_path / "fitted").iterdir()} == {"segments.json", "results.json", "report.html"}
    table = read_table(tmp_path / "fitted" / "segments.json").checked("auto", bank.variants)
    assert set(table.segments) == {"mail", "chat"} and table.bank == bank.fingerprint
    results = json.loads((tmp_path / "fitted" / "results.json").read_text())
    assert results["line"] == "base..angry, base..polite" and set(results["wanted"]["mail"]) == {"base", *bank.variants}


def test_what_is_no_variant_cannot_be_chosen_from(bank: Bank) -> None:
    provider = LocalProvider(bank, 64)

    def chosen(*options: str) -> list[str]:
        return variants_to_choose_from(_options("own.csv", *options), provider)

    assert chosen() == ["angry", "polite"]
    assert chosen("--variant", "polite") == chosen("--line", "base..polite") == ["polite"]
    assert chosen("--variant", "polite", "--variant", "angry") == ["polite", "angry"]
    for refused, words in [
        (["--line", "angry..polite"], "angry..polite is none"),
        (["--line", "angry@0.4"], "'angry@0.4' is none; loaded: angry, polite"),
        (["--variant", "angry", "--variant", "base"], "'base' is none"),
    ]:
        with pytest.raises(BadData, match=words):
            chosen(*refused)
    with pytest.raises(UnknownVariant, match="no variant 'rude'"):
        chosen("--variant", "rude")


def _options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_segments(parser)
    return parser.parse_args(words)
