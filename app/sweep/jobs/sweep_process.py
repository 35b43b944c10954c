"""A sweep in a process of its own, beside the server that it asks for logits.

Choosing is seconds of numpy, which in a thread of the server would stand in the way of predictions. This process yields
to everybody and uses one core. It speaks through one pipe: the server tells it the order, then it says what
it wants (`Wants`) and the server answers those that ask for logits. When either end of the pipe closes, so does the
other: a server that dies leaves no process behind, and ending the process is how a sweep is called off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.blocked_signals import sigterm_blocked
from app.errors import TweenError
from app.sweep.logits.logit_cache import Asked, LogitCache, MemoryLogitStore
from app.sweep.report import plots, sweep_report
from app.sweep.run import run_sweep
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import BankFacts, SweepOrder, spec_from
from app.weights.recipe import Recipe

NICE = 10
"""Beside a process that never rests, a tenth of a core is left: predictions hardly notice, and sweeps still end."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PLOT, RAMP, RELIABILITY = "curve.svg", plots.RAMP_SVG, "reliability.svg"
FILES = (sweep_report.JSON, sweep_report.CSV, sweep_report.HTML, PLOT, RAMP, RELIABILITY)


@dataclass(frozen=True)
class Progress:
    """Texts done and expected."""

    done: int
    expected: int


@dataclass(frozen=True)
class Foreseen:
    """These texts are going to be run through these recipes; whoever can may begin."""

    chunks: list[tuple[list[str], str]]


@dataclass(frozen=True)
class Logits:
    """Wants logits (N, C), as the bytes of float32, and whether they were remembered; waits for them."""

    texts: list[str]
    recipe: str


@dataclass(frozen=True)
class Done:
    """The end: what the service replies with, and the files of the report by name."""

    result: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class SweepRefused:
    """The end: a sentence for whoever asked."""

    sentence: str


Wants = Progress | Foreseen | Logits | Done | SweepRefused


def start() -> tuple[subprocess.Popen[bytes], Connection]:
    """A process that waits for an order and the facts (as plain values), and the server's end of its pipe."""
    ours, theirs = Pipe()
    with theirs, sigterm_blocked():
        process = subprocess.Popen(
            [sys.executable, "-m", "app.sweep.jobs.sweep_process", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **ONE_THREAD},
        )
    return process, ours


class _Distant:
    """A provider whose models are at the other end of the pipe."""

    def __init__(self, pipe: Connection, classes: int) -> None:
        self._pipe = pipe
        self._classes = classes
        self.run: set[Recipe] = set()

    def key(self, recipe: Recipe) -> str:
        return recipe.text

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        self._pipe.send(Logits(list(texts), recipe.text))
        logits, remembered = self._pipe.recv()
        if not remembered:
            self.run.add(recipe)
        return np.frombuffer(logits, dtype=np.float32).reshape(len(texts), self._classes)


def work(pipe: Connection) -> None:
    """One sweep, told through the pipe."""
    values, bank = pipe.recv()
    try:
        found = answer(SweepOrder.of(values), BankFacts(**bank), pipe)
        files = dict(_files(found))  # first, because it may add a warning
        pipe.send(Done(result_of(found), files))
    except TweenError as error:
        pipe.send(SweepRefused(str(error)))


def answer(order: SweepOrder, bank: BankFacts, pipe: Connection) -> SweepResult:
    """The result of an order, with the server's logits."""

    def tell(done: int, expected: int) -> None:
        pipe.send(Progress(done, expected))

    def foresee(chunks: Sequence[Asked]) -> None:
        pipe.send(Foreseen([(list(texts), recipe.text) for texts, recipe in chunks]))

    distant = _Distant(pipe, len(bank.labels))
    passes = LogitCache(distant, MemoryLogitStore(), tell, foresee)
    found = run_sweep(spec_from(order, bank), bank, passes)
    found.passes_run = len(distant.run)
    return found


def result_of(found: SweepResult) -> dict[str, Any]:
    """The part of it that a reply shows: a row of the curve for each t and data set."""
    best = found.best
    curve = [
        {"t": point.t, "temperature": point.temperature, "data": name, **{m: asdict(v) for m, v in values.items()}}
        for point in found.curve
        for name, values in point.data.items()
    ]
    shown = {
        "t": best.t,
        "interval": list(best.interval),
        "interval_is": best.interval_is,
        "temperature": best.temperature,
        "recipe": best.recipe,
    }
    drawn = ("surface", "run")
    ramp = None if found.ramp is None else {k: v for k, v in asdict(found.ramp).items() if k not in drawn}
    return {
        "curve": curve,
        "best": shown,
        "ramp": ramp,
        "guards": [asdict(guard) for guard in found.guards],
        "baseline": [{"data": name, **{m: asdict(v) for m, v in by.items()}} for name, by in found.baseline.items()],
        "sentence": found.sentence,
        "warnings": found.warnings,
    }


def _files(found: SweepResult) -> Mapping[str, bytes]:
    """The report; where there is nothing to draw with, its figures. Where the disk takes no files there are none: the
    answer is in memory, and is worth more than its pictures."""
    try:
        with tempfile.TemporaryDirectory(prefix="tween-sweep-") as name:
            folder = Path(name)
            try:
                sweep_report.write(found, folder)
            except TweenError as error:
                found.warnings.append(str(error))
            return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in FILES}
    except OSError as error:
        found.warnings.append(f"there is no report, as the disk for temporary files refuses it: {error.strerror}")
        return {}


def main() -> None:
    os.nice(NICE)
    with Connection(int(sys.argv[1])) as pipe:
        try:
            work(pipe)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            sys.exit(1)  # the server is gone, or wants no answer any more


if __name__ == "__main__":
    # By its full name, because what is pickled here is read where this module is not the main one.
    from app.sweep.jobs.sweep_process import main as full_name

    full_name()
