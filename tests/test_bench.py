"""The benchmark for accelerators runs as a user would run it, small and on the CPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import gpu
from test_recorded import Tape

pytestmark = pytest.mark.service

ROOT = Path(__file__).parent.parent


def differences(printed: str) -> dict[str, float]:
    found = re.findall(r"largest difference of ([\w ]+) logits from transformers: (\S+)", printed)
    return {name: float(difference) for name, difference in found}


def test_the_gpu_benchmark_runs_and_its_logits_agree() -> None:
    small = ["--device", "cpu", "--dtype", "float32", "--layers", "1", "--rounds", "1"]
    command = [sys.executable, "-m", "tests.bench.gpu", *small]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert differences(done.stdout).keys() == {"packed", "mixed"}
    assert max(differences(done.stdout).values()) < 1e-4
    assert (
        len(re.findall(r"^\| (.+?) \| \d+ \| \d+ \| \d+ \|$", done.stdout, flags=re.MULTILINE)) == 1 + 4
    )  # below a head


def test_the_gpu_benchmark_shows_what_replays_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = torch.device("cpu")
    gpu.print_forward(gpu.make_bank(tmp_path, 1, cpu, torch.float32), cpu, 1, Tape())
    printed = capsys.readouterr().out
    assert differences(printed).keys() == {"packed", "mixed", "replayed", "replayed mixed"}
    assert max(differences(printed).values()) < 1e-4
    assert len(re.findall(r"^\| .+, recorded \| \d+ \| \d+ \| - \|$", printed, flags=re.MULTILINE)) == 2
