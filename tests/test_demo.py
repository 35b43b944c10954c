"""The demo: its corpus, its encoder, and the bank that is really trained from them (about three minutes, once)."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from app.demo import build, corpus
from app.demo.build import demo_bank
from app.demo.table import GRID, scores_along_t
from app.errors import BadBank

pytestmark = [pytest.mark.service, pytest.mark.timeout(3600)]
"""The first test trains the demo bank: minutes on idle cores, much longer on busy ones."""

BENCHMARKS = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
SETS = (corpus.GENERAL, *corpus.DOMAINS)


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.mark.parametrize(("name", "least"), [(corpus.GENERAL, 1200), *((domain, 300) for domain in corpus.DOMAINS)])
def test_the_corpus_is_large_enough_and_balanced(name: str, least: int) -> None:
    train, test = corpus.read(name, "train"), corpus.read(name, "test")
    assert len(train) + len(test) >= least and len(test) >= 300
    for split in (train, test):
        shares = [count / len(split) for count in Counter(example.label for example in split).values()]
        assert len(shares) == 3 and min(shares) > 0.3


def test_no_two_texts_are_alike() -> None:
    seen: dict[str, list[frozenset[str]]] = {}
    for name in SETS:
        for example in corpus.read(name, "train") + corpus.read(name, "test"):
            mine = words(example.text)
            rivals = {id(other): other for word in mine for other in seen.get(word, [])}.values()
            assert all(len(mine & other) / len(mine | other) < 0.7 for other in rivals), example.text
            for word in mine:
                seen.setdefault(word, []).append(mine)


def test_texts_start_in_many_ways() -> None:
    openings = Counter(" ".join(e.text.lower().split()[:2]) for name in SETS for e in corpus.read(name, "train"))
    assert openings.most_common(1)[0][1] <= 0.01 * sum(openings.values())


def test_an_encoder_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_from_hub", lambda: None)
    folder = tmp_path / "encoder" / build.WHEEL_FOLDER
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(BadBank, match="has sha256 .* it is not used"):
        build.encoder_folder(tmp_path)


@pytest.fixture(scope="module")
def bank_file() -> Path:
    return demo_bank()


def test_the_demo_bank_is_made_once(bank_file: Path) -> None:
    written = bank_file.stat().st_mtime_ns
    assert demo_bank() == bank_file and bank_file.stat().st_mtime_ns == written


def test_an_interior_t_beats_both_ends(bank_file: Path) -> None:
    for variant, along in scores_along_t(bank_file, grid=(0.0, 0.3, 0.5, 0.7, 1.0)).items():
        both = {t: parts["both"] for t, parts in along.items()}
        interior = [both[t] for t in (0.3, 0.5, 0.7)]
        for end in (both[0.0], both[1.0]):
            assert max(s.accuracy for s in interior) > end.accuracy, variant
            assert max(s.macro_f1 for s in interior) > end.macro_f1, variant
            assert min(s.log_loss for s in interior) < end.log_loss, variant
            assert min(s.calibration_error for s in interior) < end.calibration_error, variant


@pytest.mark.parametrize("variant", corpus.DOMAINS)
def test_the_benchmarks_page_shows_the_whole_table(variant: str) -> None:
    table = BENCHMARKS.split(f"**{variant}** (own = ")[1].split("\n\n")[1].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [f"{t:g}" for t in GRID]
    best = [float(cell) for cell in re.findall(r"\| ([\d.]+) \|.*\*\*", "\n".join(table))]
    assert best and 0 not in best and 1 not in best
