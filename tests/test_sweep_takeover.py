"""A sweep outlives the pod that works on it: real server processes, one of them killed.

A sweep's process is stopped (SIGSTOP) while something happens to its pod, so that it is in the middle on any machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import running
from redis import Redis
from servers import free_port, server, until
from test_command_line import ready, start  # noqa: F401  (start is a fixture)
from test_sweep_routes import ended, events, rows

from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

Pod = tuple["subprocess.Popen[str]", int]

PASSES = 11
TEXTS = 100
ASKED = {"data": rows(TEXTS, 20), "variant": "angry", "grid": [t / 10 for t in range(PASSES)]}
"""A chunk for each pass."""
PATIENCE = 120.0
"""Seconds that a machine with other work may take for what it does in one or two."""


@pytest.fixture
def pod(start: Callable[..., subprocess.Popen[str]], folders: Path) -> Callable[[str], Pod]:  # noqa: F811
    """Start a server on a Redis."""

    def run(url: str) -> Pod:
        port = free_port()
        # As many workers as there may be cores: two threads of one pass wait for each other where others have work.
        more = {"TWEEN_WORKERS": "2", "TWEEN_MEMORY_TIER_MIB": "16", "OMP_NUM_THREADS": "1", "REDIS_URL": url}
        return start("serve", "--bank", str(folders / "bank.toml"), "--port", str(port), **more), port

    return run


def ordered(client: httpx.Client) -> str:
    """Where a new sweep is."""
    url: str = client.post("/v1/sweeps", json=ASKED).raise_for_status().headers["location"]
    return url


def stopped(client: httpx.Client, url: str, pid: int) -> int:
    """The sweep's process, a child of this one, stopped when two passes or more were done."""
    until(lambda: client.get(url).json()["texts_done"] >= 2 * TEXTS, PATIENCE)
    (worker,) = sweeping(pid)
    os.kill(worker, signal.SIGSTOP)
    return worker


def sweeping(pid: int) -> list[int]:
    """The processes of sweeps that have this parent."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == pid and "sweep_process" in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def found(client: httpx.Client, url: str) -> dict[str, Any]:
    """What the sweep found, without what depends on when and where."""
    state = ended(client, url, seconds=PATIENCE)
    assert state["status"] == "done", state
    return {name: state[name] for name in ("best", "curve", "sentence", "warnings")}


def test_a_sweep_whose_pod_is_killed_is_finished_by_another_one_with_the_same_numbers(
    pod: Callable[[str], Pod], redis_url: str, redis: Redis
) -> None:
    first, port = pod(redis_url)
    with ready(first, port) as client:
        url = ordered(client)
        worker = stopped(client, url, first.pid)
        seen, _, _ = next(events(client, url))
        first.send_signal(signal.SIGKILL)
    first.wait()
    os.kill(worker, signal.SIGCONT)
    until(lambda: not Path(f"/proc/{worker}").exists(), PATIENCE)  # nobody is left who would listen to it
    chunks = len(redis.keys("tween:sweep-logits:*"))
    assert 2 <= chunks < PASSES, "it was killed in the middle"
    second, port = pod(redis_url)
    with ready(second, port) as client:
        states = [(number, state) for number, _, state in events(client, url, {"Last-Event-ID": str(seen)})]
        assert [number for number, _ in states] == sorted({number for number, _ in states})
        assert states[0][0] > seen and states[-1][1]["status"] == "done"
        taken_over = found(client, url)
        run = client.get(f"{url}/results.json").json()["passes_run"]
        assert run == PASSES - chunks, "what was done before was not done again"
        redis.flushall()
        assert found(client, ordered(client)) == taken_over


def test_a_pod_that_is_told_to_leave_hands_its_sweep_on_at_once(
    pod: Callable[[str], Pod], redis_url: str, redis: Redis
) -> None:
    (first, first_port), (second, second_port) = pod(redis_url), pod(redis_url)
    with ready(first, first_port) as client, ready(second, second_port) as other:
        url = ordered(client)
        until(lambda: sweeping(first.pid) or sweeping(second.pid), PATIENCE)
        pods = [(first, client), (second, other)]
        (working, at), (staying, elsewhere) = pods if sweeping(first.pid) else pods[::-1]
        stopped(at, url, working.pid)
        working.send_signal(signal.SIGTERM)
        _, log = working.communicate(timeout=PATIENCE)
        assert working.returncode in (0, -signal.SIGTERM) and "Traceback" not in log
        assert not redis.exists(f"tween:{{sweeps}}:lease:{url.rpartition('/')[2]}") or sweeping(staying.pid)
        assert found(elsewhere, url)["best"]


def test_a_sweep_goes_on_when_redis_dies_and_is_told_when_it_is_back(spec: BankSpec, tmp_path: Path) -> None:
    with server(tmp_path) as broken, running(spec, redis_url=broken.url, memory_tier_mib=16) as service:
        client = service.client
        url = ordered(client)
        worker = stopped(client, url, os.getpid())
        broken.kill()
        until(lambda: not client.get(url).json()["shared"], PATIENCE)
        os.kill(worker, signal.SIGCONT)
        assert found(client, url)["best"]
        broken.start()
        until(lambda: client.get(url).json()["shared"], PATIENCE)
        with broken.client() as redis:
            assert redis.exists(f"tween:{{sweeps}}:files:{url.rpartition('/')[2]}")
            until(lambda: not redis.zcard("tween:{sweeps}:waiting"), PATIENCE)


def test_a_sweep_whose_process_dies_has_failed_and_says_why(spec: BankSpec, redis_url: str, redis: Redis) -> None:
    with running(spec, redis_url=redis_url, memory_tier_mib=16) as service:
        url = ordered(service.client)
        os.kill(stopped(service.client, url, os.getpid()), signal.SIGKILL)
        state = ended(service.client, url, PATIENCE)
        assert state["status"] == "failed" and "the process that worked on it died" in state["error"]
        assert service.client.get("/readyz").status_code == 200
