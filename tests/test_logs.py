"""Lines of the log: for people and for machines, with the request's id and without what callers send."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest

from app.api.logs import FORMATTERS, REQUEST_ID, Json
from app.models.bank import BankSpec

CANARY = "canary text of a customer"


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(Json())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def kept(caplog: pytest.LogCaptureFixture) -> Iterator[Kept]:
    caplog.set_level(logging.DEBUG)
    handler = Kept()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


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
