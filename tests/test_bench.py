"""The benchmark for accelerators runs as a user would run it, small and on the CPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_gpu_benchmark_runs_and_its_logits_agree() -> None:
    small = ["--device", "cpu", "--dtype", "float32", "--layers", "1", "--rounds", "1"]
    command = [sys.executable, "-m", "tests.bench.gpu", *small]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    differences = re.findall(r"largest difference of (\w+) logits from transformers: (\S+)", done.stdout)
    assert {name for name, _ in differences} == {"packed", "mixed"}
    assert all(float(difference) < 1e-4 for _, difference in differences)
    assert len(re.findall(r"^\| ours", done.stdout, flags=re.MULTILINE)) == 4
