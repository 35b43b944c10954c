"""A t for each segment: fitted with partial pooling, guessed from words, kept in a file."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from synthetic import LINE, Synthetic, drawn

from app.cli.segments_command import add_segments, run_segments
from app.errors import BadData, BadSegments
from app.models.bank import Bank
from app.segments.fit.evaluate_gain import fit_table, judged
from app.segments.fit.fit_one_line import Segmented, SegmentTexts
from app.segments.fit.partial_pooling import pooled_settings
from app.segments.fit.segments_report import text_of, write
from app.segments.segment_classifier import buckets_of
from app.segments.segment_table import SegmentTable, read_table, table_of
from app.sweep.data.dataset import Dataset
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.logits.logit_curve import LogitCurve
from app.sweep.metrics_of_t import ScoredTexts

WORDS = {"mail": ["dear", "regards", "attached"], "chat": ["lol", "hey", "btw"], "phone": ["hello", "hold", "line"]}


class Worded(Synthetic):
    """A text is a number, and words of its segment after it."""

    def of(self, texts: list[str], t: float) -> NDArray[np.float64]:  # type: ignore[override]
        return super().of([text.split()[0] for text in texts], t)


def segment(name: str, texts: int, t: float, seed: int, temperature: float = 1.5) -> Dataset:
    """Labels that come from the blend at t, in texts that use the segment's words."""
    made = drawn(Worded(), texts, t, temperature, seed, name)
    rng = np.random.default_rng(seed)
    return replace(made, texts=tuple(f"{text} {' '.join(rng.choice(WORDS[name], 2))}" for text in made.texts))


def segmented(*datasets: Dataset) -> Segmented:
    curve = LogitCurve(LINE, [d.texts for d in datasets], LogitCache(Worded(), MemoryLogitStore()))
    return Segmented(SegmentTexts(datasets, [1.0] * len(datasets)), curve)


@pytest.fixture(scope="module")
def apart() -> Segmented:
    """Two segments whose best t's lie apart."""
    return segmented(segment("mail", 400, 0.15, seed=1), segment("chat", 400, 0.85, seed=2))


@pytest.fixture(scope="module")
def table(apart: Segmented) -> SegmentTable:
    return fit_table(apart, "finance", "fingerprint")


# -- fitting -------------------------------------------------------------------------------------------


def test_t_and_temperature_of_each_segment_are_found(table: SegmentTable) -> None:
    assert table.segments["mail"].t == pytest.approx(0.15, abs=0.12)
    assert table.segments["chat"].t == pytest.approx(0.85, abs=0.12)
    for setting in table.segments.values():
        assert setting.interval[0] <= setting.t <= setting.interval[1]
        assert setting.temperature == pytest.approx(1.5, rel=0.25) and setting.texts == 400
    assert table.segments["mail"].t < table.pooled.t < table.segments["chat"].t


def test_a_segment_of_few_texts_leans_on_the_others() -> None:
    ts, temperatures = np.linspace(0, 1, 101), np.array([1.0])
    losses = np.stack([((ts - t) ** 2)[:, None] for t in (0.28, 0.3, 0.32, 1.0)])
    few = pooled_settings(losses, np.array([500.0, 500.0, 500.0, 2.0]), ts, temperatures)
    many = pooled_settings(losses, np.array([500.0, 500.0, 500.0, 500.0]), ts, temperatures)
    none = pooled_settings(losses, np.array([500.0, 500.0, 500.0, 0.0]), ts, temperatures)
    assert few.t[3] < 0.6 and many.t[3] > 0.9
    assert none.t[3] == pytest.approx(0.3, abs=0.05)
    assert few.t[:3] == pytest.approx([0.28, 0.3, 0.32], abs=0.03)
    assert few.scatter < many.scatter


@pytest.mark.parametrize(("texts", "scatter"), [(30, 0.0), (30, 0.2)])
def test_intervals_of_small_segments_hold_their_t_s(texts: int, scatter: float) -> None:
    """Where segments say little, the likeliest scatter is none; that they lie at one point for sure does not follow."""
    provider, ts, temperatures = Synthetic(), np.round(np.linspace(0, 1, 51), 2), np.exp(np.linspace(-1, 1, 17))
    held, widths = 0, []
    for seed in range(10):
        true = np.clip(0.5 + scatter * np.random.default_rng(seed).normal(size=4), 0, 1)
        losses = []
        for k, t in enumerate(true):
            data = drawn(provider, texts, float(t), 1.0, seed=1000 * seed + k)
            z = np.stack([provider.of(data.texts, at) for at in ts])
            rows = [ScoredTexts(z / temperature, data.truth).losses.mean(axis=1) for temperature in temperatures]
            losses.append(np.stack(rows, axis=1))
        found = pooled_settings(np.array(losses), np.full(4, float(texts)), ts, temperatures)
        held += ((found.interval[:, 0] <= true + 0.01) & (true - 0.01 <= found.interval[:, 1])).sum()
        widths.append(found.interval[:, 1] - found.interval[:, 0])
    assert held >= 33, "of 40, of which 38 are to be expected"
    assert np.min(widths) > 0.1


def test_labels_at_random_leave_a_segment_s_t_open() -> None:
    rng = np.random.default_rng(0)
    ts, temperatures = np.round(np.linspace(0, 1, 51), 2), np.exp(np.linspace(0, 2, 17))
    provider, losses = Synthetic(), []
    for k in range(3):
        data = drawn(provider, 30, 0.5, 1.0, seed=k)
        z = np.stack([provider.of(data.texts, at) for at in ts])
        labels = rng.integers(0, 3, 30)
        losses.append(np.stack([ScoredTexts(z / by, labels).losses.mean(axis=1) for by in temperatures], axis=1))
    found = pooled_settings(np.array(losses), np.full(3, 30.0), ts, temperatures)
    assert (found.interval[:, 1] - found.interval[:, 0] > 0.5).all()


def test_what_segments_gain_is_shown_on_held_out_texts(apart: Segmented, table: SegmentTable, tmp_path: Path) -> None:
    found = judged(apart, "base..finance", draws=400)
    declared, routed = found.methods["segment"], found.methods["router"]
    assert declared.loss_gained.low > 0.01
    assert found.methods["one t, T by segment"].loss_gained.value < declared.loss_gained.value / 2
    assert found.routed_rightly > 0.95
    assert routed.loss_gained.value == pytest.approx(declared.loss_gained.value, rel=0.2)
    assert found.methods["one t"].loss_gained.value == 0
    assert "worth declaring" in found.sentence and "not shown" not in found.sentence

    write(found, table, tmp_path)
    assert read_table(tmp_path / "segments.json").document() == table.document()
    assert "any other" in (tmp_path / "report.html").read_text() and found.sentence in text_of(found, table)
    assert json.loads((tmp_path / "results.json").read_text())["folds"] == 5


def test_nothing_is_gained_where_segments_do_not_differ() -> None:
    found = judged(segmented(segment("mail", 300, 0.5, seed=3), segment("chat", 300, 0.5, seed=4)), "line", draws=400)
    gained = found.methods["segment"].loss_gained
    assert gained.low < 0.002 and abs(gained.value) < 0.01
    assert "not shown to be worth" in found.sentence


def test_the_router_learns_from_texts_without_labels() -> None:
    data = segmented(segment("mail", 60, 0.2, seed=5), segment("chat", 60, 0.8, seed=6))
    more = [(f"zebra number {i}", "mail") for i in range(200)] + [(f"otter number {i}", "chat") for i in range(200)]
    without, having = (fit_table(data, "finance", "f", extra).router for extra in ([], more))
    assert without is not None and having is not None
    chat, mail = having.segments.index("chat"), having.segments.index("mail")
    assert having.probabilities(["otter", "zebra"]).argmax(dim=1).tolist() == [chat, mail]
    assert without.probabilities(["otter"])[0].tolist() == pytest.approx([0.5, 0.5], abs=0.15)


def test_one_segment_is_refused() -> None:
    alone = segment("mail", 40, 0.5, seed=7)
    with pytest.raises(BadData, match="cannot tell which column holds the segment"):
        segmented(alone)
    with pytest.raises(BadData, match="at least two"):
        segmented(replace(alone, segments=np.zeros(40, dtype=np.int64), segment_names=("mail",)))


# -- the file ------------------------------------------------------------------------------------------


def test_words_have_the_same_place_for_ever() -> None:
    assert buckets_of("The refund, the REFUND!") == buckets_of(("the", "refund")) == [1702, 4914]
    assert buckets_of("!?") == []


def test_a_router_survives_the_file(table: SegmentTable) -> None:
    texts = ["dear sir, regards", "lol btw", "!?"]
    before, after = table.router, table_of(json.loads(json.dumps(table.document()))).router
    assert before is not None and after is not None
    torch.testing.assert_close(before.probabilities(texts), after.probabilities(texts), atol=2e-3, rtol=0)


def test_an_entropy_rule_of_an_older_file_is_ignored(table: SegmentTable, caplog: pytest.LogCaptureFixture) -> None:
    rule = {"gain": 1.0, "offset": 0.0, "base_temperature": 1.0, "variant_temperature": 1.0, "temperature": 1.3}
    with caplog.at_level("INFO", logger="app.segments.segment_table"):
        assert table_of(table.document() | {"entropy": rule}).document() == table.document()
    assert caplog.messages == [
        "the segment table of finance holds an entropy rule; it is ignored: t is chosen by segment alone"
    ]
    without = {name: value for name, value in table.document().items() if name != "entropy"}
    assert table_of(without).document() == table.document()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "is not 'tween segments 1'"),
        ({"segments": {}, "router": None}, "0 segments"),
        ({"segments": {"a": {"t": 7, "temperature": 1, "interval": [0, 1], "texts": 1}}}, "t is '7'"),
        ({"segments": {"": {"t": 0, "temperature": 1, "interval": [0, 1], "texts": 1}}}, "name has 1 to"),
        ({"pooled": None}, "cannot be read"),
        ({"router": {"segments": ["strange"]}}, "strange"),
        ({"router": {"segments": ["mail"], "buckets": 8192, "bias": [0], "weights": "AAAA"}}, "do not fit"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: SegmentTable, change: dict[str, object], words: str) -> None:
    with pytest.raises(BadSegments, match=words):
        table_of(table.document() | change)


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_writes_the_table_that_the_bank_file_names(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{'mail' if i % 2 else 'chat'},the {'late slow good'.split()[i % 3]} order {i},{i % 3}" for i in range(60)]
    (tmp_path / "own.csv").write_text("\n".join(["channel,text,label", *rows]))
    (tmp_path / "more.csv").write_text("channel,text\n" + "\n".join(f"mail,more {i}" for i in range(30)))
    parser = argparse.ArgumentParser()
    add_segments(parser)
    data = [str(tmp_path / "own.csv"), "--unlabelled", str(tmp_path / "more.csv")]
    options = parser.parse_args([*data, "--variant", "angry", "--out", str(tmp_path / "fitted")])
    assert run_segments(options, lambda options: LocalProvider(bank, 64), tmp_path / "logits") == 0
    said = capsys.readouterr().out
    assert "t by declared segment" in said and "On held-out texts a segment" in said
    assert {path.name for path in (tmp_path / "fitted").iterdir()} == {"segments.json", "results.json", "report.html"}
    table = read_table(tmp_path / "fitted" / "segments.json")
    assert set(table.segments) == {"mail", "chat"} and table.variant == "angry" and table.bank == bank.fingerprint
