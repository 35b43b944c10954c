"""The folder of a sweep: it can be read by machines, and the page by people, without another file."""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic import LINE, Synthetic, drawn

from app.errors import BadData
from app.sweep.build_result import findings
from app.sweep.jobs import sweep_process
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.one_line import sweep
from app.sweep.report import sweep_report
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import Guard, SweepSpec


@pytest.fixture(scope="module")
def found() -> SweepResult:
    provider = Synthetic()
    target = drawn(provider, 300, t=0.6, temperature=1.3, seed=1, name="own & <dear>")
    guard = Guard(drawn(provider, 200, t=0.0, temperature=1.0, seed=2, name="general"), "accuracy", 0.05)
    spec = SweepSpec(LINE, [target], [1.0], 4.0, [guard], draws=200)
    passes = LogitCache(provider, MemoryLogitStore())
    return findings(spec, *sweep(spec, passes), passes, provider.labels)


@pytest.fixture(scope="module")
def folder(found: SweepResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report") / "deep" / "sweep"
    sweep_report.write(found, place)
    return place


def test_the_folder_holds_json_csv_pictures_and_a_page(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "curve.csv",
        "curve.svg",
        "curve.png",
        "reliability.svg",
        "report.html",
    }
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    for name in ("curve.svg", "reliability.svg"):
        assert ElementTree.parse(folder / name).getroot().tag.endswith("svg")


def test_json_and_csv_hold_the_same_curve_as_was_found(found: SweepResult, folder: Path) -> None:
    read = json.loads((folder / "results.json").read_text())
    assert read["best"]["t"] == found.best.t and read["sentence"] == found.sentence
    assert read["curve"][0]["data"]["general"]["accuracy"].keys() == {"value", "low", "high"}
    with (folder / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(found.curve)
    last = found.curve[-1].data["general"]["macro_f1"]
    assert float(rows[-1]["t"]) == 1 and rows[-1]["data"] == "general"
    assert float(rows[-1]["macro_f1"]) == pytest.approx(last.value, abs=1e-5)
    assert float(rows[-1]["macro_f1_low"]) <= float(rows[-1]["macro_f1"]) <= float(rows[-1]["macro_f1_high"])


class Tags(HTMLParser):
    """Notes tags that are not closed, and every address that a page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href") and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_shows_names_as_text(found: SweepResult, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert all(address.startswith("#") for address in tags.addresses)
    assert "own &amp; &lt;dear&gt;" in page and "<dear>" not in page
    assert page.count("<svg") == 2 and not re.search(r"\$\w", page)


def test_the_terminal_gets_a_table_and_the_sentence(found: SweepResult) -> None:
    text = sweep_report.text_of(found)
    assert found.sentence in text
    assert text.splitlines()[0].split("  ")[0] == "blend" and "base" in text and found.best.recipe in text


def test_a_sweep_without_matplotlib_says_what_is_missing(
    found: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadData, match=r"pictures need matplotlib \(pip install 'tween\[sweep\]'\)"):
        sweep_report.write(found, tmp_path)
    assert (tmp_path / "results.json").is_file(), "what was computed is not lost"


def test_where_the_disk_takes_no_files_the_findings_are_kept_and_say_so(
    found: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(sweep_process._files(found)) >= {"results.json", "report.html", "curve.svg"}
    told = replace(found, warnings=[])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert sweep_process._files(told) == {}
    assert told.warnings == [
        "there is no report, as the disk for temporary files refuses it: No such file or directory"
    ]
