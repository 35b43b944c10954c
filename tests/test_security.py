"""What docs/security.md says: no secret and no text of a customer is told, no name reaches a file or a host, and every
test that its table names is there."""

from __future__ import annotations

import ast
import logging
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Service, running
from pico import LABELS
from servers import server

from app.api.auth.api_keys import new_key
from app.models.bank import BankSpec

pytestmark = pytest.mark.service

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"
KEY, ENTRY = new_key("boss", "manage")
STRANGER, _ = new_key("stranger", "manage")
PASSWORD = "canary-password-of-redis"
TEXT = "canary text of a customer"
ORIGIN = "https://shop.example"

BODIES = {
    "/v1/predict": [{"texts": TEXT}, {"texts": [TEXT, 5]}, {"texts": TEXT, "function": "none", "recipe": "angry@9"}],
    "/v1/spectrum": [{"texts": [TEXT], "line": "angry"}, {"texts": [TEXT, ""], "line": "angry"}],
    "/v1/sweeps": [
        {"data": [{"text": f"{TEXT} {i}", "label": LABELS[i % 3]} for i in range(30)], "variant": "angry"},
        {"data": [{"text": TEXT, "label": "no such label"}], "variant": "angry"},
        {"data": f"text,label\n{TEXT},no such label\n", "variant": "angry"},
    ],
}
"""Bodies with a text of a customer; every other route gets one that it must refuse."""
REFUSED = [{"texts": [TEXT]}, [{"text": TEXT}], TEXT]

opened: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(watch)


@pytest.fixture(scope="module")
def service(spec: BankSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("security")
    (folder / "keys.toml").write_text(ENTRY)
    with server(folder, f"requirepass {PASSWORD}") as redis:
        url = f"redis://:{PASSWORD}@127.0.0.1:{redis.port}"
        options = {"api_keys": folder / "keys.toml", "cors_origins": ORIGIN, "memory_tier_mib": 16}
        with running(spec, redis_url=url, **options) as made:
            made.client.headers["Authorization"] = f"Bearer {KEY}"
            made.app.state.kill_redis = redis.kill
            yield made


def calls(service: Service) -> Iterator[tuple[str, str]]:
    for template, methods in service.app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), re.sub(r"\{\w+\}", "none", template)


def call_everything(service: Service) -> list[httpx.Response]:
    """Every route, with a key that is known and one that is not, and with texts of a customer in every body."""
    replies = []
    for method, path in calls(service):
        bodies = [None] if method == "GET" else BODIES.get(path, REFUSED)
        for body in bodies:
            for headers in ({}, {"Authorization": f"Bearer {STRANGER}"}, {"X-API-Key": KEY}):
                replies.append(service.client.request(method, path, json=body, headers=headers))
    return replies


NAMES = [
    "{secret}@0.4",
    "../../../../../../../../..{secret}@0.4",
    "file://{secret}@0.4",
    "angry/../../polite@0.4",
    "..\\..\\secret@0.4",
    "{host}/model@0.4",
    "http://{host}/model@0.4",
    "http://{host}/model..angry@0.4",
    "redis://{host}/0@0.4",
    "org/model@0.4",
    "hf://org/model@main@0.4",
    "@../{secret}",
    "exp:../../{secret}",
    "angry\u0000{secret}@0.4",
]


def test_no_name_in_a_request_reaches_a_file_or_a_host(service: Service, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_text("what nobody may read")
    with socket.create_server(("127.0.0.1", 0)) as host:
        host.settimeout(0)
        places = {"secret": str(secret), "host": f"127.0.0.1:{host.getsockname()[1]}"}
        opened.clear()
        for name in (name.format(**places) for name in NAMES):
            variant = name.rpartition("@")[0] or name
            for method, path, body in (
                ("POST", "/v1/predict", {"texts": "ok", "recipe": name}),
                ("POST", "/v1/predict", {"texts": "ok", "recipe": {"variant": variant, "t": 0.4}}),
                ("POST", "/v1/spectrum", {"texts": ["ok"], "line": variant}),
                ("POST", "/v1/blends", {"recipe": name}),
                ("POST", "/v1/sweeps", {"data": [{"text": "ok", "label": "positive"}], "variant": variant}),
                ("PUT", "/v1/aliases/prod", {"recipe": name}),
                ("PUT", "/v1/experiments/tone", {"arms": [{"name": "a", "recipe": name}], "control": "a"}),
            ):
                reply = service.client.request(method, path, json=body)
                assert 400 <= reply.status_code < 500, (method, path, name, reply.text)
        with pytest.raises(BlockingIOError):
            host.accept()
    assert not [path for path in opened if "secret" in path]


@pytest.mark.parametrize(
    "escape", ["..%2f..%2f..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "%2fetc%2fpasswd", "..;"]
)
def test_no_path_leads_out_of_the_service(service: Service, escape: str) -> None:
    opened.clear()
    for prefix in ("/static-offline-docs/", "/v1/segments/", "/v1/sweeps/", "/v1/blends/", "/v1/experiments/"):
        request = service.client.build_request("GET", "/x")
        request.url = request.url.copy_with(raw_path=(prefix + escape).encode())
        reply = service.client.send(request)
        assert 400 <= reply.status_code < 500 and "root:" not in reply.text, prefix
    assert not [path for path in opened if "passwd" in path]


def test_a_failure_that_nobody_expected_tells_its_id_and_nothing_else(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise RuntimeError("canary of a traceback")

    monkeypatch.setattr(service.app.state.engine.blends, "cached", fail)
    reply = service.client.get("/v1/blends", headers={"X-Request-Id": "mine", "Origin": ORIGIN})
    assert reply.status_code == 500 and reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-request-id"] == "mine" and reply.headers["access-control-allow-origin"] == ORIGIN
    assert "canary" not in reply.text and "Traceback" not in reply.text
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "unexpected RuntimeError at /v1/blends"
    ]


def test_no_key_password_or_text_is_told(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    replies = call_everything(service)
    assert {200, 202, 401, 404, 422} <= {reply.status_code for reply in replies}
    service.app.state.kill_redis()  # what fails is told, too; this is the last test that needs it
    replies += call_everything(service)
    told = {f"{r.request.method} {r.request.url.path}": f"{r.text} {r.headers}" for r in replies if _tells(r)}
    told["the log"] = caplog.text
    assert {"GET /metrics", "GET /v1/bank", "POST /v1/predict"} <= set(told) and "boss POST" in told["the log"]
    for place, words in told.items():
        for secret in (KEY, STRANGER, PASSWORD, TEXT):
            assert secret not in words, place


def _tells(reply: httpx.Response) -> bool:
    """What may hold no text: all but the results of a sweep, whose report shows its owner texts of his own."""
    return reply.status_code >= 400 or not reply.request.url.path.startswith("/v1/sweeps/")


def test_every_risk_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (API\d+) .*$", PAGE.read_text(), re.MULTILINE)
    assert list(dict.fromkeys(rows)) == [f"API{number}" for number in range(1, 11)]
    assert rows == sorted(rows, key=lambda name: int(name[3:])), "the rows of a risk stand together"
    for row in re.findall(r"^\| API.*$", PAGE.read_text(), re.MULTILINE):
        assert re.search(r"`test_\w+::test_\w+`", row), row
    named = re.findall(r"`(test_\w+)::(test_\w+)`", PAGE.read_text())
    missing = [f"{file}::{name}" for file, name in named if name not in functions(TESTS / f"{file}.py")]
    assert not missing


def functions(file: Path) -> set[str]:
    if not file.exists():
        return set()
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}
