"""Texts of callers in the log: where they are asked for, nowhere else, and none where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from collector import collecting
from conftest import running
from kept_lines import Kept

from app.api.telemetry.request_text_log import MOST_CHARACTERS, MOST_TEXTS, shortened, texts_of
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

CANARY = "canary text of a customer"
ASK = {"texts": CANARY, "recipe": "angry@0.4"}


def with_canary(kept: Kept) -> list[dict[str, str]]:  # noqa: F811
    return [json.loads(line) for line in kept.lines if CANARY in line]


def test_without_the_setting_no_line_shows_a_text(serve: Callable, spec: BankSpec, kept: Kept) -> None:
    client = serve(spec).client
    assert client.post("/v1/predict", json=ASK).status_code == 200
    assert client.post("/v1/spectrum", json={"texts": CANARY, "variant": "angry"}).status_code == 200
    assert not with_canary(kept)


def test_with_it_the_line_of_a_request_shows_its_texts_and_what_became_of_it(
    serve: Callable, spec: BankSpec, kept: Kept
) -> None:
    client = serve(spec, log_texts=True).client
    assert any("TWEEN_LOG_TEXTS" in line for line in kept.lines)
    for number, (path, body) in enumerate(
        [
            ("/v1/predict", ASK),
            ("/v1/predict", {"texts": ["short", [CANARY, "late\norder"]]}),
            ("/v1/predict", {**ASK, "recipe": "nobody@0.4"}),
            ("/v1/spectrum", {"texts": CANARY, "variant": "angry"}),
        ]
    ):
        client.post(path, json=body, headers={"X-Request-Id": f"request-{number}"})
    told = with_canary(kept)
    assert [(line["request_id"], line["message"]) for line in told] == [
        ("request-0", f'POST /v1/predict, 200, 1 texts: ["{CANARY}"]'),
        ("request-1", f'POST /v1/predict, 200, 2 texts: ["short", ["{CANARY}", "late\\norder"]]'),
        ("request-2", f'POST /v1/predict, 404, 1 texts: ["{CANARY}"]'),
        ("request-3", f'POST /v1/spectrum, 200, 1 texts: ["{CANARY}"]'),
    ]
    assert {line["logger"] for line in told} == {"tween.texts"}


def test_texts_in_the_log_are_in_no_refusal_metric_or_trace(spec: BankSpec, redis_url: str, kept: Kept) -> None:
    with collecting() as collector:
        with running(
            spec, redis_url=redis_url, prediction_cache=False, log_texts=True, otlp_endpoint=collector.url
        ) as service:
            assert service.client.post("/v1/predict", json=ASK).status_code == 200
            refused = service.client.post("/v1/predict", json={"texts": [CANARY, 5], CANARY: CANARY})
            unknown = service.client.post("/v1/predict", json={**ASK, "recipe": "nobody@0.4"})

            def fail(*arguments: object) -> None:
                raise RuntimeError("out of memory")

            service.app.state.engine.blends.use = fail
            failed = service.client.post("/v1/predict", json=ASK)
            assert [reply.status_code for reply in (refused, unknown, failed)] == [422, 404, 500]
            assert not any(CANARY in reply.text for reply in (refused, unknown, failed))
            assert CANARY not in service.client.get("/metrics").text
    assert [line["message"].split(", ")[1] for line in with_canary(kept)] == ["200", "422", "404", "failed"]
    assert len(collector.spans) > 4 and CANARY.encode() not in collector.raw


def test_what_is_shown_has_bounds() -> None:
    long = "x" * (MOST_CHARACTERS + 1)
    assert shortened("x" * MOST_CHARACTERS) == "x" * MOST_CHARACTERS
    assert shortened(long) == f"{'x' * MOST_CHARACTERS}... ({MOST_CHARACTERS + 1} characters)"
    assert shortened(["a", [long] * 1000]) == ["a", "(list)"] and shortened({"a": long}) == "(dict)"


def test_many_texts_are_counted_and_few_are_shown(serve: Callable, spec: BankSpec, kept: Kept) -> None:
    serve(spec, log_texts=True).client.post("/v1/predict", json={"texts": [CANARY] * 50})
    (line,) = with_canary(kept)
    assert "50 texts" in line["message"] and line["message"].count(CANARY) == MOST_TEXTS


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'"texts"', b"{}", b"[" * 100_000, b"\xff"])
def test_a_body_without_texts_has_no_line(body: bytes) -> None:
    assert texts_of(body) == []
