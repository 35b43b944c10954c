"""Nobody who calls can write a line of the log, or end one, or paint over one: as many lines as were said."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from servers import free_port, until
from test_access import BOSS, BOSS_ENTRY, ENTRY, SHOP, bearer

from app.api.telemetry.logs import FORMATTERS, REQUEST_ID, Json

pytestmark = pytest.mark.service

BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
"""Whatever some reader of lines takes for the end of one."""
TRICKS = ["\x1b[2K\x1b[1A", "\x9b2J", "\x08\x08", "\0", "\x7f", "\u202e", "\u2066", "\ud800", "\t"]
"""What a terminal or an editor obeys, and half a character."""
FORGED = "2026-12-01 12:00:00,000 INFO    tween.audit: boss DELETE /v1/aliases/prod: 200"
FORGED_JSON = '{"time": "2026-12-01T12:00:00.000+00:00", "logger": "tween.audit", "message": "boss"}'
EVIL = [f"a{trick}{line}{trick}b" for trick in BREAKS + TRICKS for line in (FORGED, FORGED_JSON)]
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?:DEBUG|INFO|WARNING|ERROR) +([\w.]+): ")
ALLOWED = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]*")


def record(message: str, *arguments: object, failed: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(failed), failed, failed.__traceback__) if failed else None
    return logging.LogRecord("tween", logging.WARNING, "file", 1, message, arguments, exc_info)


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
@pytest.mark.parametrize("kind", FORMATTERS)
def test_a_record_is_one_line_whatever_it_tells(kind: str, evil: str) -> None:
    token = REQUEST_ID.set("the-request")
    for said in (record(evil), record("%s was moved by %s", evil, evil), record("%r", {evil: evil})):
        (line,) = FORMATTERS[kind]().format(said).splitlines()
        assert ALLOWED.fullmatch(line), ascii(line)
        assert "the-request" in line
        line.encode()
    REQUEST_ID.reset(token)
    assert json.loads(Json().format(record("%s", evil)))["message"] == evil  # nothing of it is lost


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
@pytest.mark.parametrize("kind", FORMATTERS)
def test_a_failure_that_quotes_a_caller_forges_no_line(kind: str, evil: str) -> None:
    try:
        raise ValueError(evil)
    except ValueError as error:
        first, *others = FORMATTERS[kind]().format(record("cannot go on", failed=error)).splitlines()
    assert all(ALLOWED.fullmatch(line) for line in (first, *others))
    assert all(line.startswith("    ") for line in others) and bool(others) == (kind == "human")
    assert "cannot go on" in first and "ValueError" in "".join([first, *others])


@contextlib.contextmanager
def serving(folders: Path, folder: Path, kind: str) -> Iterator[httpx.Client]:
    """A service of its own, with keys, texts in its log, and its log in a file."""
    (folder / "keys.toml").write_text(ENTRY + BOSS_ENTRY)
    port = free_port()
    environ = os.environ | {
        "TWEEN_API_KEYS": str(folder / "keys.toml"),
        "TWEEN_LOG_TEXTS": "true",
        "TWEEN_LOG_LEVEL": "debug",
        "TWEEN_LOG_FORMAT": kind,
        "TWEEN_DRAIN_S": "0",
        "TWEEN_WORKERS": "0",
        "TWEEN_MEMORY_TIER_MIB": "16",
    }
    command = [sys.executable, "-W", "ignore", "-m", "app", "serve", "--bank", str(folders / "bank.toml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stderr=log, env=environ)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def is_ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            until(is_ready, 120)
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()


def calls(evil: str) -> Iterator[tuple[str, str, object]]:
    """Method, path and body, with the text wherever a caller may put one."""
    name = quote(evil.encode(errors="replace"), safe="")
    arm = {"name": evil, "recipe": evil}
    unit = {"unit": evil, "segment": evil, "attributes": {evil: evil}}
    yield "POST", "/v1/predict", {"texts": [evil, [evil, evil]], **unit}
    yield "POST", "/v1/predict", {"texts": evil, "recipe": evil}
    yield "POST", "/v1/predict", {"texts": "ok", "recipe": {"variant": evil, "t": 0.4}, evil: evil}
    yield "POST", "/v1/spectrum", {"texts": [evil], "line": evil}
    yield "POST", "/v1/blends", {"recipe": evil}
    yield "POST", "/v1/sweeps", {"data": [{"text": evil, "label": evil, "group": evil}] * 3, "variant": evil}
    yield "PUT", "/v1/aliases/prod", {"recipe": evil}
    yield "PUT", "/v1/experiments/tone", {"arms": [arm], "control": evil, "metrics": [{"name": evil}], "salt": evil}
    yield "POST", "/v1/experiments/tone/status", {"status": evil}
    yield "POST", "/v1/experiments/tone/promote", {"arm": evil, "alias": evil}
    yield "POST", "/v1/experiments/tone/outcomes", [{"unit": evil, "metric": evil, "value": 1, "id": evil}]
    yield "PUT", "/v1/segments/angry", {"variant": evil, "segments": {evil: {"t": evil}}}
    for path in ("aliases", "experiments", "segments", "sweeps", "blends"):
        yield "DELETE", f"/v1/{path}/{name}", None
        yield "GET", f"/v1/{path}/{name}?version={name}&{name}={name}", None
    yield "POST", f"/v1/aliases/{name}/rollback", None
    yield "GET", f"/v1/experiments/{name}/audit", None
    yield "GET", f"/{name}", None


HEADERS = ["From", "X-Tween-Actor", "X-Tween-Unit", "User-Agent", "traceparent", "X-Forwarded-For", "Referer"]


def with_headers(port: int | None, evil: str, others: dict[str, str]) -> str:
    """A managing call with the text in every header: what a header can carry of it, as a line break in one ends it.
    Gives the id of the request."""
    value = re.sub(r"[\r\n\0]", "", evil).encode(errors="replace")
    given = {"X-Request-Id": value, **dict.fromkeys(HEADERS, value), **others}
    connection = HTTPConnection("127.0.0.1", port or 0, timeout=60)
    with contextlib.closing(connection):
        connection.request("DELETE", "/v1/aliases/none", headers=given)
        reply = connection.getresponse()
        assert reply.status in (400, 403, 404)
        return reply.headers["X-Request-Id"]


SAID = {
    "tween.audit": re.compile(r"(boss|shop) [A-Z]+ /\S*: (\d{3}|refused)"),
    "tween.texts": re.compile(r"POST /\S*, \d{3}, \d texts: \[.*\]"),
}
"""What these loggers say."""


def told(line: str, kind: str) -> tuple[str, str, str]:
    """Logger, message and request of a line of the log."""
    if kind == "json":
        said = json.loads(line)
        return said["logger"], said["message"], said.get("request_id", "")
    match = LINE.match(line)
    assert match, line
    message, _, request = line[match.end() :].rpartition(" [")
    return match[1], message or request, request.removesuffix("]") if message else ""


@pytest.mark.parametrize("kind", FORMATTERS)
def test_no_field_of_a_request_forges_a_line(kind: str, folders: Path, tmp_path: Path) -> None:
    asked: Counter[str] = Counter()
    with serving(folders, tmp_path, kind) as client:
        for evil in EVIL[::2] if kind == "human" else EVIL[1::2]:
            for method, path, body in calls(evil):
                content = None if body is None else json.dumps(body)
                for key in (BOSS, SHOP) if body is None else (BOSS,):
                    given = {**bearer(key), "Content-Type": "application/json"}
                    reply = client.request(method, path, content=content, headers=given)
                    assert reply.status_code < 500, (method, path, reply.text)
                    asked[reply.headers["x-request-id"]] += 1
            for key in (BOSS, SHOP):
                asked[with_headers(client.base_url.port, evil, bearer(key))] += 1
    text = (tmp_path / "log").read_bytes().decode()
    lines = text.splitlines()
    assert text.count("\n") == len(lines) and all(ALLOWED.fullmatch(line) for line in lines)
    by_logger: dict[str, Counter[str]] = {name: Counter() for name in SAID}
    for logger, message, request in (told(line, kind) for line in lines):
        if logger in SAID:
            assert SAID[logger].fullmatch(message), message
            by_logger[logger][request] += 1
    for requests in by_logger.values():
        assert len(requests) > 50 and requests <= asked  # one line each, and none that nobody asked for
