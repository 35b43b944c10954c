"""A sweep outlives the pod that works on it: real server processes, one of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from servers import free_port, server, until
from test_command_line import ready, start  # noqa: F401  (start is a fixture)
from test_sweep_routes import ended, events, rows

Pod = tuple["subprocess.Popen[str]", int]

ASKED = {"data": rows(300, 20), "variant": "angry", "grid": [t / 10 for t in range(11)]}
"""11 passes of 2 chunks: enough to be killed in the middle of."""
PASSES = 11


@pytest.fixture
def pod(start: Callable[..., subprocess.Popen[str]], folders: Path) -> Callable[[str], Pod]:  # noqa: F811
    """Start a server on a Redis."""

    def run(url: str) -> Pod:
        port = free_port()
        more = {"TWEEN_WORKERS": "1", "TWEEN_MEMORY_TIER_MIB": "16", "REDIS_URL": url}
        return start("serve", "--bank", str(folders / "bank.toml"), "--port", str(port), **more), port

    return run


def found(client: httpx.Client, url: str) -> dict[str, Any]:
    """What the sweep found, without what depends on when and where."""
    state = ended(client, url, seconds=240)
    assert state["status"] == "done", state
    return {name: state[name] for name in ("best", "curve", "sentence", "warnings")}


def test_a_sweep_whose_pod_is_killed_is_finished_by_another_one_with_the_same_numbers(
    pod: Callable[[str], Pod], redis_url: str, redis: Redis
) -> None:
    first, port = pod(redis_url)
    with ready(first, port) as client:
        url = client.post("/v1/sweeps", json=ASKED).raise_for_status().headers["location"]
        seen = next(number for number, _, state in events(client, url) if state["texts_done"] >= 600)
        first.send_signal(signal.SIGKILL)
    first.wait()
    chunks = len(redis.keys("tween:sweep-logits:*"))
    assert 4 <= chunks < 2 * PASSES, "it was killed in the middle"
    second, port = pod(redis_url)
    with ready(second, port) as client:
        states = [(number, state) for number, _, state in events(client, url, {"Last-Event-ID": str(seen)})]
        assert [number for number, _ in states] == sorted({number for number, _ in states})
        assert states[0][0] > seen and states[-1][1]["status"] == "done"
        taken_over = found(client, url)
        run = client.get(f"{url}/results.json").json()["passes_run"]
        assert run <= PASSES - chunks // 2, "what was done before was not done again"
        redis.flushall()
        again = client.post("/v1/sweeps", json=ASKED).headers["location"]
        assert found(client, again) == taken_over
    assert _children(first.pid) == []


def _children(pid: int) -> list[str]:
    """Processes that still have this parent, by their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == pid:
                    found.append((folder / "cmdline").read_text())
            except OSError:
                continue
    return found


def test_a_pod_that_is_told_to_leave_hands_its_sweep_on_at_once(
    pod: Callable[[str], Pod], redis_url: str, redis: Redis
) -> None:
    (first, first_port), (second, second_port) = pod(redis_url), pod(redis_url)
    with ready(first, first_port) as client, ready(second, second_port) as other:
        url = client.post("/v1/sweeps", json=ASKED).raise_for_status().headers["location"]
        until(lambda: other.get(url).json()["texts_done"] > 0)
        working, staying = (first, other) if _works(first.pid) else (second, client)
        working.send_signal(signal.SIGTERM)
        _, log = working.communicate(timeout=30)
        assert working.returncode in (0, -signal.SIGTERM) and "Traceback" not in log
        assert ended(staying, url, seconds=240)["status"] == "done"


def _works(pid: int) -> bool:
    """Whether the server has a sweep's process."""
    return any("sweep_process" in command for command in _children(pid))


def test_a_sweep_goes_on_when_redis_dies_and_is_told_when_it_is_back(pod: Callable[[str], Pod], tmp_path: Path) -> None:
    with server(tmp_path) as broken:
        process, port = pod(broken.url)
        with ready(process, port) as client:
            url = client.post("/v1/sweeps", json=ASKED).raise_for_status().headers["location"]
            until(lambda: client.get(url).json()["texts_done"] > 0)
            broken.kill()
            until(lambda: not client.get(url).json()["shared"])
            assert found(client, url)["best"]
            broken.start()
            until(lambda: client.get(url).json()["shared"])
            with broken.client() as redis:
                assert redis.exists(f"tween:{{sweeps}}:files:{url.rpartition('/')[2]}")
                until(lambda: not redis.zcard("tween:{sweeps}:waiting"))


def test_a_sweep_whose_process_dies_has_failed_and_says_why(
    pod: Callable[[str], Pod], redis_url: str, redis: Redis
) -> None:
    process, port = pod(redis_url)
    with ready(process, port) as client:
        url = client.post("/v1/sweeps", json=ASKED).raise_for_status().headers["location"]
        until(lambda: _works(process.pid))
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and _parent_is(folder, process.pid):
                os.kill(int(folder.name), signal.SIGKILL)
        state = ended(client, url)
        assert state["status"] == "failed" and "the process that worked on it died" in state["error"]
        assert client.get("/readyz").status_code == 200


def _parent_is(folder: Path, pid: int) -> bool:
    try:
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == pid and "sweep_process" in (folder / "cmdline").read_text()
    except OSError:
        return False
