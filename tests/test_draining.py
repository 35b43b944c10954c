"""How the service leaves: a real process, told by real signals, under load."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from processes import children_of, is_running
from servers import free_port, until
from test_command_line import environment

CALLERS = 4


@contextmanager
def serving(
    folders: Path, redis_url: str, terminal: bool = False, session: bool = False, **settings: str
) -> Iterator[tuple]:
    """A service of its own process, and session if asked for, ready: the process, and its address."""
    address = f"http://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--bank", str(folders / "bank.toml"), "--port", port],
        stdin=theirs if terminal else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(**{"REDIS_URL": redis_url, "TWEEN_WORKERS": "0", "TWEEN_MEMORY_TIER_MIB": "8", **settings}),
        start_new_session=session,
        # Who runs the tests in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        until(lambda: _ready(address) or process.poll() is not None, 180)
        assert process.poll() is None, "the service ended"
        yield process, address
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False


class Load:
    """Callers who ask again and again, as long as the service lets them in."""

    def __init__(self, address: str) -> None:
        self.answers: list[int] = []
        self.lost: list[Exception] = []
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with httpx.Client(base_url=self._address, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    reply = client.post("/v1/predict", json={"texts": "thanks", "recipe": "angry@0.4", "cache": False})
                except httpx.TransportError as error:
                    self.lost.append(error)
                    return
                self.answers.append(reply.status_code)


def test_who_is_told_to_leave_serves_on_for_a_while_and_loses_nothing(folders: Path, redis_url: str) -> None:
    with serving(folders, redis_url, TWEEN_DRAIN_S="600") as (process, address):
        load = Load(address)
        until(lambda: len(load.answers) > 20)
        process.send_signal(signal.SIGTERM)
        until(lambda: not _ready(address))
        refusal = httpx.get(f"{address}/readyz")
        assert refusal.status_code == 503 and refusal.json()["type"] == "urn:tween:draining"
        before = len(load.answers)
        until(lambda: len(load.answers) > before + 20)  # on new connections, as each reply closes its own
        assert httpx.get(f"{address}/livez").headers["connection"] == "close"
        load.stop()  # callers have seen that it is not ready
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0
        assert load.lost == [] and set(load.answers) == {200}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("whom", ["the process group", "every process"])
def test_a_sigterm_that_reaches_all_processes_costs_nothing(folders: Path, whom: str) -> None:
    """`kill -- -PGID` and systemd (KillMode=control-group) do not pick the main process."""

    def tell(process: subprocess.Popen) -> None:
        if whom == "the process group":
            os.killpg(process.pid, signal.SIGTERM)
            return
        for pid in (process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    alone = {"session": True, "REDIS_URL": "", "TWEEN_WORKERS": "2", "TWEEN_DRAIN_S": "600"}
    with serving(folders, "", **alone) as (process, address):
        children = children_of(process.pid)
        assert len(children) >= 2 + 1 + 3, "workers; the server that they are forked from; a shell, its cat, and Redis"
        load = Load(address)
        until(lambda: len(load.answers) > 20)
        tell(process)
        until(lambda: not _ready(address))
        before = len(load.answers)
        until(lambda: len(load.answers) > before + 20)
        assert all(is_running(pid) for pid in children)
        assert "tween_worker_restarts_total 0.0" in httpx.get(f"{address}/metrics").text
        load.stop()
        tell(process)
        assert process.wait(timeout=300) == 0
        assert load.lost == [] and set(load.answers) == {200}
        until(lambda: not any(is_running(pid) for pid in children), 60)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_process_outlives_a_service_that_is_killed(folders: Path) -> None:
    with serving(folders, "", REDIS_URL="", TWEEN_WORKERS="2") as (process, _):
        children = children_of(process.pid)
        process.kill()
        process.wait()
        until(lambda: not any(is_running(pid) for pid in children), 60)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_service_told_to_drop_everything_leaves_no_process_either(folders: Path) -> None:
    with serving(folders, "", REDIS_URL="", TWEEN_WORKERS="2", TWEEN_DRAIN_S="600") as (process, address):
        children = children_of(process.pid)
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as caller:
            caller.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
            )  # is never done
            while process.poll() is None:
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
        until(lambda: not any(is_running(pid) for pid in children), 60)


def test_what_is_in_flight_is_finished_after_the_drain_window(folders: Path, redis_url: str) -> None:
    many = {"texts": ["thanks again please " * 10] * 512, "recipe": "angry@0.4", "cache": False}
    with serving(folders, redis_url, TWEEN_DRAIN_S="0") as (process, address):
        replies: list[int] = []

        def ask() -> None:
            replies.append(httpx.post(f"{address}/v1/predict", json=many, timeout=30).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: "tween_waiting_rows 0.0" not in httpx.get(f"{address}/metrics").text or replies)
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert process.wait(timeout=300) == 0 and replies == [200]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_who_is_told_twice_does_not_wait_out_the_window(folders: Path, redis_url: str, second: signal.Signals) -> None:
    with serving(folders, redis_url, TWEEN_DRAIN_S="600") as (process, address):
        process.send_signal(signal.SIGTERM)
        until(lambda: not _ready(address))
        process.send_signal(second)
        assert process.wait(timeout=300) == 0


def test_ctrl_c_in_a_terminal_leaves_at_once(folders: Path, redis_url: str) -> None:
    with serving(folders, redis_url, terminal=True, TWEEN_DRAIN_S="600") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130


def test_who_is_not_ready_yet_leaves_at_once(folders: Path) -> None:
    command = [sys.executable, "-m", "app", "serve", "--bank", str(folders / "bank.toml"), "--port", str(free_port())]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TWEEN_DRAIN_S="600", TWEEN_LOG_LEVEL="info"),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Application startup complete" in line:
            break
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0
