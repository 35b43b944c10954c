"""`tween sweep` as a user runs it: a process of its own, on a tiny real bank."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Service
from test_command_line import tween

from app.cli.sweep_command import add_sweep
from app.cli.sweep_options import order_of
from app.errors import TweenError
from app.models.bank import BankSpec
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.sweep_spec import spec_from

pytestmark = pytest.mark.service

Run = Callable[..., "subprocess.CompletedProcess[str]"]

LABELS = ["negative", "neutral", "positive"]
WORDS = "the parcel refund came late early broken works great awful fine thanks never slow fast order".split()


def texts_file(path: Path, texts: int, seed: int, header: str = "text,label") -> Path:
    rng = np.random.default_rng(seed)
    rows = [f"{' '.join(rng.choice(WORDS, 6))} {i % 10},{LABELS[rng.integers(0, 3)]}" for i in range(texts)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(folders: Path, tmp_path: Path) -> Run:
    """Run a command on the bank, with results and stored logits below tmp_path."""

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        bank = ["--bank", str(folders / "bank.toml")]
        return tween(*map(str, arguments), *bank, XDG_CACHE_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")

    return command


def test_a_sweep_prints_a_sentence_and_writes_a_folder_and_the_next_question_costs_no_pass(
    run: Run, tmp_path: Path
) -> None:
    own, general = (
        texts_file(tmp_path / "own.csv", 120, 1),
        texts_file(tmp_path / "general.csv", 60, 2, "body,sentiment"),
    )
    command = ["sweep", f"{own}:2", general, "--variant", "angry", "--out", tmp_path / "out"]
    done = run(*command, "--guard", f"{texts_file(tmp_path / 'kept.csv', 80, 3)}:2pt:macro_f1")
    assert done.returncode == 0, done.stderr
    assert "own: 120 texts; text from 'text', label from 'label'" in done.stdout
    assert "general: 60 texts; text from 'body', label from 'sentiment'" in done.stdout
    assert "Serve " in done.stdout and "that the guards allow" in done.stdout
    assert "label frequencies" in done.stdout
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [about["share"] for about in first["data"]] == pytest.approx([2 / 3, 1 / 3, 0])
    (guard,) = first["guards"]
    assert (guard["name"], guard["metric"], guard["margin"], guard["confidence"]) == ("kept", "macro_f1", 0.02, 0.9)
    assert 6 <= first["passes_run"] == first["passes"]
    done = run(*command, "--objective", "cost", "--cost", "0,1,5;1,0,1;2,1,0", "--lambda", "folds")
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["objective"] == "cost" and again["penalty"]["by_folds"] and again["passes_run"] <= 1, done.stderr


def test_the_command_line_attacks_too(run: Run, tmp_path: Path) -> None:
    own = texts_file(tmp_path / "own.csv", 30, 1)
    done = run("sweep", own, "--variant", "angry", "--robustness", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"typos", "embeddings"} <= set(found["robustness"]) and "not attacked" not in done.stdout


def test_a_ramp_is_looked_for_from_the_command_line(run: Run, tmp_path: Path) -> None:
    own = texts_file(tmp_path / "own.csv", 60, 1)
    done = run("sweep", own, "--variant", "angry", "--ramp", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ramp = json.loads((tmp_path / "out" / "results.json").read_text())["ramp"]
    assert ramp["recipe"] in done.stdout and "layer" in done.stdout and "ramp.png" in done.stdout


def test_a_bank_may_be_named_by_its_members_and_a_line_may_run_between_variants(folders: Path, tmp_path: Path) -> None:
    own = texts_file(tmp_path / "own.csv", 60, 1)
    members = [f"--variant={name}={folders / name}" for name in ("angry", "polite")]
    command = ["sweep", str(own), "--base", str(folders / "base"), *members, "--out", str(tmp_path / "out")]
    done = tween(*command, "--line", "angry..polite", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["line"] == "angry..polite" and found["start"]["recipe"] == "angry@1"


def test_a_barrier_is_measured_with_and_without_labels(run: Run, tmp_path: Path) -> None:
    own = texts_file(tmp_path / "own.csv", 60, 1)
    done = run("barrier", own, "--line", "angry..polite", "--label", "-", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "barrier.json").read_text())
    assert found["sentence"] in done.stdout and not found["labelled"] and found["texts"] == 60


REFUSED = [
    ("{own}", [], "which way? name a variant, or a line; loaded: angry, polite"),
    ("{own}", ["--variant", "odd"], "no variant 'odd'; loaded: base, angry, polite"),
    ("{own}", ["--line", "angry@0"], "'angry@0' is no line: both ends are base"),
    ("{own}", ["--variant", "angry", "--text", "body"], "no column 'body'; columns: text, label"),
    ("gone.csv", ["--variant", "angry"], "there is no file gone.csv"),
    ("{own}:0", ["--variant", "angry"], "a weight must be above 0"),
    ("{own}", ["--variant", "angry", "--guard", "{own}"], "write DATA:MARGIN, such as"),
    ("{own}", ["--variant", "angry", "--guard", "{own}:1pt:0.3"], "a confidence is a number from 0.5 to 0.999"),
    ("{own}", ["--variant", "angry", "--guard", "{own}:1pt:loss:2"], "a confidence is a number from 0.5 to 0.999"),
    ("{own}", ["--variant", "angry", "--guard", "{own}:1pt:0.9:loss"], "no metric '0.9loss'; metrics: loss"),
    ("{own}", ["--variant", "angry", "--guard", "{own}:1pt:f2"], "no metric 'f2'; metrics: loss, accuracy, macro_f1"),
    ("{own}", ["--variant", "angry", "--guard", "{own}:1pt"], "two data sets have one name: own; name them apart"),
    ("{own}", ["--variant", "angry", "--lambda", "some"], "--lambda some: give a number from 0 up, or 'folds'"),
    ("{own}", ["--variant", "angry", "--cost", "0,1;1,0"], "cost has 3 rows of 3 numbers"),
    ("{own}", ["--variant", "angry", "--objective", "worst_group"], "worst_group needs a column of segments or groups"),
    ("{own}", ["--variant", "angry", "--ramp", "--rule", "nearest"], "leave grid, lambda and the rule nearest out"),
]


@pytest.fixture(scope="module")
def provider(spec: BankSpec) -> LocalProvider:
    return LocalProvider.load(spec, torch.device("cpu"), torch.float32, max_tokens=64)


@pytest.mark.parametrize(("data", "arguments", "sentence"), REFUSED, ids=[case[2][:30] for case in REFUSED])
def test_what_cannot_be_asked_is_one_sentence(
    provider: LocalProvider, tmp_path: Path, data: str, arguments: list[str], sentence: str
) -> None:
    own = texts_file(tmp_path / "own.csv", 30, 1)
    parser = argparse.ArgumentParser()
    add_sweep(parser)
    options = parser.parse_args([data.format(own=own), *(argument.format(own=own) for argument in arguments)])
    with pytest.raises(TweenError) as refusal:
        spec_from(order_of(options), provider.facts)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_refusal_is_printed_and_ends_with_status_2(run: Run, tmp_path: Path) -> None:
    done = run("sweep", tmp_path / "gone.csv", "--variant", "angry")
    assert done.returncode == 2  # what is doubtful about the variants is told before
    assert done.stderr.splitlines()[-1] == f"tween: there is no file {tmp_path / 'gone.csv'}"


def test_a_service_does_the_same_and_is_followed_from_here(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path
) -> None:
    client = serve(spec).client
    own, kept = texts_file(tmp_path / "own.csv", 120, 1), texts_file(tmp_path / "kept.csv", 60, 2, "body,mood")
    command = ["sweep", f"{own}:2", "--variant", "angry", "--server", str(client.base_url)]
    done = tween(*command, "--out", str(tmp_path / "out"), "--seed", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert found["sentence"] in done.stdout and found["seed"] == 3 and found["data"][0]["name"] == "own"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "report.html", "curve.svg"}
    assert "text/s" in done.stderr, "a progress bar"
    refused = tween(*command, "--guard", f"{kept}:1pt")
    assert refused.returncode == 2
    assert refused.stderr == "tween: kept: cannot tell which column holds the label; name it. Columns: body, mood\n"
    away = tween("sweep", str(own), "--variant", "angry", "--server", "http://127.0.0.1:1")
    assert away.returncode == 2 and "does not answer: [Errno 111] Connection refused" in away.stderr
