"""Lines of the log: for people and for machines, with the request's id and without what callers send."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from kept_lines import Kept
from servers import free_port, until

from app.api.telemetry import logs
from app.api.telemetry.logs import FORMATTERS, REQUEST_ID, Json, Unhurried
from app.bootstrap import meanwhile
from app.models.bank import BankSpec

CANARY = "canary text of a customer"


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("tween", logging.WARNING, "file", 1, message, arguments, None)


@pytest.mark.parametrize("kind", FORMATTERS)
def test_every_line_names_its_request(kind: str) -> None:
    token = REQUEST_ID.set("abc")
    inside = FORMATTERS[kind]().format(record("%s is odd", "it"))
    REQUEST_ID.reset(token)
    outside = FORMATTERS[kind]().format(record("%s is odd", "it"))
    assert "it is odd" in inside and "abc" in inside and "abc" not in outside


def test_a_line_break_makes_no_second_line() -> None:
    line = Json().format(record("first\nsecond"))
    assert "\n" not in line and json.loads(line)["message"] == "first\nsecond"


def test_a_failure_is_told_with_its_request_and_without_texts(serve: Callable, spec: BankSpec, kept: Kept) -> None:
    service = serve(spec)

    def fail(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    service.app.state.engine.blends.use = fail
    headers = {"X-Request-Id": "the-request"}
    reply = service.client.post("/v1/predict", json={"texts": CANARY, "recipe": "angry@0.4"}, headers=headers)
    assert reply.status_code == 500 and reply.headers["x-request-id"] == "the-request"
    told = [json.loads(line) for line in kept.lines]
    failure = next(line for line in told if line["message"].startswith("unexpected RuntimeError"))
    assert failure["request_id"] == "the-request" and "out of memory" in failure["exception"]
    assert not any(CANARY in line for line in kept.lines) and CANARY not in reply.text


@pytest.mark.parametrize(
    "body",
    [
        {"texts": [CANARY, 5]},
        {"texts": CANARY, "recipe": CANARY},
        {"texts": CANARY, CANARY: 1},
        {"texts": CANARY, "function": CANARY},
        {"texts": CANARY + "\ud800"},
    ],
    ids=["texts", "recipe", "field", "function", "surrogate"],
)
def test_a_refusal_is_not_logged_with_what_was_sent(
    serve: Callable, spec: BankSpec, kept: Kept, body: dict[str, object]
) -> None:
    reply = serve(spec).client.post(
        "/v1/predict", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert 400 <= reply.status_code < 500
    assert not any(CANARY in line for line in kept.lines)


def test_lines_that_nobody_takes_are_dropped_and_counted_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 10)
    reader, writer = os.pipe()
    handler = Unhurried(writer)
    handler.setFormatter(Json())
    for number in range(20_000):  # a pipe takes 64 KiB
        handler.handle(record("line %d", number))
    started = time.monotonic()
    handler.flush()
    assert time.monotonic() - started < 10
    os.set_blocking(reader, False)
    read = b""

    def everything_is_there() -> bool:
        nonlocal read
        with contextlib.suppress(BlockingIOError):
            read += os.read(reader, 1 << 16)
        return read.endswith(b'"the end"}\n')

    with pytest.raises(AssertionError):
        until(everything_is_there, 0.5)
    handler.handle(record("the end"))
    until(everything_is_there)
    said = [json.loads(line)["message"] for line in read.decode().splitlines()]
    dropped = [int(line.split()[0]) for line in said if line.endswith("lines were dropped, as nobody took them")]
    written = [int(line.split()[1]) for line in said if line.startswith("line ")]
    assert written == sorted(written) and sum(dropped) == 20_000 - len(written) > 10_000
    os.close(reader)
    handler.handle(record("nobody is there any more"))
    handler.flush()


def test_a_service_whose_log_nobody_reads_goes_on_and_leaves_when_told(spec: BankSpec, folders: Path) -> None:
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "app", "serve", "--bank", str(folders / "bank.toml")]
    environ = os.environ | {"TWEEN_DRAIN_S": "0", "TWEEN_WORKERS": "0", "TWEEN_MEMORY_TIER_MIB": "16"}
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen([*command, "--port", str(port)], stderr=writer, env=environ)
    os.close(writer)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def is_ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            until(is_ready, 60)
            for number in range(100):  # each is told in the log
                client.put("/v1/aliases/prod", json={"recipe": f"angry@0.{number + 1}"}).raise_for_status()
            assert client.post("/v1/predict", json={"texts": "late again"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0
        read = os.read(reader, 8192)
        assert b"prod: version 1," in read and b"prod: version 99," not in read, "the pipe was full"
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_work_in_the_background_that_fails_shows_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    async def service() -> None:
        async with contextlib.AsyncExitStack() as resources:
            meanwhile(fail(), resources)
            await asyncio.sleep(0)

    asyncio.run(service())
    (line,) = caplog.records
    assert "fail" in line.getMessage() and "is not done any more" in line.getMessage()
    assert line.exc_info is not None and str(line.exc_info[1]) == "a bug"
