"""Sweeps whose passes are run by other processes: the same numbers as in one."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis
from servers import free_port, until
from test_command_line import ready, start, tween  # noqa: F401  (start is a fixture)
from test_sweep_routes import as_csv, ended, rows

from app.__main__ import _parser
from app.models.bank import BankSpec
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.run import run_sweep
from app.sweep.sweep_spec import GivenData, SweepOrder, spec_from

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

DATA = rows(600, 30)
GRID = [t / 10 for t in range(11)]


@pytest.fixture
def local(spec: BankSpec) -> dict[str, Any]:
    """The curve and the best t of the same sweep in this process."""
    provider = LocalProvider.load(spec, torch.device("cpu"), torch.float32, max_tokens=512)
    sweep_spec = spec_from(SweepOrder([GivenData("own", DATA)], ["angry"], grid=GRID), provider.facts)
    found = run_sweep(sweep_spec, provider.facts, LogitCache(provider, MemoryLogitStore()))
    return {
        "losses": [point.data["own"]["loss"].value for point in found.curve],
        "best": (found.best.t, found.best.temperature, found.best.interval),
    }


def test_workers_give_the_numbers_of_one_process_and_a_killed_ones_part_is_taken_over(
    start: Callable[..., subprocess.Popen[str]],  # noqa: F811
    folders: Path,
    redis_url: str,
    redis: Redis,
    local: dict[str, Any],
) -> None:
    bank, port = str(folders / "bank.toml"), free_port()
    first, second = (start("sweep-worker", "--bank", bank, "--idle", "2", REDIS_URL=redis_url) for _ in range(2))
    server = start(
        "serve", "--bank", bank, "--port", str(port), REDIS_URL=redis_url, TWEEN_WORKERS="0",
        TWEEN_SWEEP_RUNNER="taskiq", TWEEN_MEMORY_TIER_MIB="16",
    )  # fmt: skip
    with ready(server, port) as client:
        until(lambda: _workers(redis) == 2, seconds=60)  # else one of them may have done it all before the other came
        asked = {"datasets": [{"name": "own", "data": DATA}], "variant": "angry", "grid": GRID}
        url = client.post("/v1/sweeps", json=asked).raise_for_status().headers["location"]
        until(lambda: len(redis.keys("tween:sweep-logits:*")) > 3, seconds=60)
        until(lambda: _dies_with_a_part(first, second, redis), seconds=20)
        state = ended(client, url)
        assert state["status"] == "done", state
        assert [point["loss"]["value"] for point in state["curve"]] == local["losses"]
        best = state["best"]
        assert (best["t"], best["temperature"], tuple(best["interval"])) == local["best"]
        assert client.get(f"{url}/results.json").json()["passes_run"] == len(GRID)
        # A part that was stored and not acknowledged stays on the list until workers hear of something else.
        another = client.post("/v1/sweeps", json={"data": DATA[:40], "variant": "angry"}).headers["location"]
        assert ended(client, another)["status"] == "done"
        until(lambda: redis.xpending("tween:sweep-tasks", "tween:sweep-workers")["pending"] == 0, seconds=30)
    assert second.poll() is None


def _workers(redis: Redis) -> int:
    """How many workers wait for parts."""
    return sum(client["cmd"] == "xreadgroup" for client in redis.client_list())


def _dies_with_a_part(worker: subprocess.Popen[str], other: subprocess.Popen[str], redis: Redis) -> bool:
    """Stop both workers where they are, and kill the first if it holds a part; else let both go on."""
    for process in (worker, other):
        process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)  # what they had sent reaches Redis
    held = redis.xpending_range(
        "tween:sweep-tasks", "tween:sweep-workers", "-", "+", 10, consumername=f"{socket.gethostname()}-{worker.pid}"
    )
    if held:
        worker.kill()
    for process in (worker, other):
        process.send_signal(signal.SIGCONT)
    return bool(held)


def test_an_indexed_jobs_processes_share_the_passes_and_the_last_one_collects(
    start: Callable[..., subprocess.Popen[str]],  # noqa: F811
    folders: Path,
    tmp_path: Path,
    redis_url: str,
    redis: Redis,
) -> None:
    (tmp_path / "own.csv").write_text(as_csv(DATA))
    command = ["sweep", str(tmp_path / "own.csv"), "--bank", str(folders / "bank.toml"), "--variant", "angry"]
    cache = {"XDG_CACHE_HOME": str(tmp_path), "REDIS_URL": redis_url}
    # The one that collects starts first, and waits for a share that nobody has yet.
    last, first = (
        start(*command, "--share", f"{index}/3", "--out", str(tmp_path / "shared"), **cache) for index in (2, 0)
    )
    assert first.wait(timeout=300) == 0 and last.poll() is None
    assert tween(*command, "--share", "1/3", **cache).returncode == 0
    assert last.wait(timeout=300) == 0, last.communicate()[1]
    alone = tween(*command, "--out", str(tmp_path / "alone"), **cache)
    assert alone.returncode == 0, alone.stderr
    shared, whole = (
        json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("shared", "alone")
    )
    assert shared == whole


def test_a_share_that_cannot_be_is_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(as_csv(DATA[:40]))
    command = ["sweep", str(tmp_path / "own.csv"), "--bank", str(folders / "bank.toml"), "--variant", "angry"]
    for share in ("4/4", "a/b", "1"):
        done = tween(*command, "--share", share, REDIS_URL="redis://127.0.0.1:1")
        assert done.returncode == 2 and "write which of how many" in done.stderr
    done = tween(*command, "--share", "0/2")
    assert done.returncode == 2 and "--share needs REDIS_URL" in done.stderr


def test_the_jobs_manifest_says_one_count_and_runs_what_the_command_line_knows() -> None:
    text = (Path(__file__).parent.parent / "k8s" / "sweep-job.yaml").read_text(encoding="utf-8")
    counts = re.findall(r"(?:completions: |parallelism: |--share=\$\(INDEX\)/)(\d+)", text)
    assert len(counts) == 3 and len(set(counts)) == 1
    arguments = re.findall(r"^            - (\S+)$", text, flags=re.MULTILINE)
    options = _parser().parse_args(arguments)
    assert arguments[0] == "sweep" and options.share == f"$(INDEX)/{counts[0]}"
