"""Who waits no more, because his time is over or because he is gone, costs nobody anything."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable

import pytest
from servers import until

from app.models.bank import BankSpec

LONG = ["thanks again please help " * 12] * 512
BODY = {"texts": LONG, "recipe": "angry@0.4", "cache": False}


def test_a_deadline_that_passes_is_told_by_its_number(serve: Callable, spec: BankSpec) -> None:
    service = serve(spec)
    reply = service.client.post("/v1/predict", json=BODY, headers={"X-Request-Timeout": "0.01"})
    assert reply.status_code == 504 and reply.json()["type"] == "urn:tween:deadline-passed"
    assert reply.json()["detail"] == "no answer within the 0.01 seconds of X-Request-Timeout"
    assert service.app.state.engine.batcher.waiting_rows == 0


def test_a_deadline_that_is_kept_changes_nothing(serve: Callable, spec: BankSpec) -> None:
    reply = serve(spec).client.post("/v1/predict", json={"texts": "ok"}, headers={"X-Request-Timeout": "60"})
    assert reply.status_code == 200


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_deadline_that_is_no_number_of_seconds_is_refused(serve: Callable, spec: BankSpec, given: str) -> None:
    reply = serve(spec).client.post("/v1/predict", json={"texts": "ok"}, headers={"X-Request-Timeout": given})
    assert reply.status_code == 400 and reply.json()["title"] == "Bad deadline"


def test_a_caller_who_hangs_up_frees_his_place_in_the_queue(serve: Callable, spec: BankSpec) -> None:
    service = serve(spec, batch_tokens=64, queue_ms=60_000)
    batcher = service.app.state.engine.batcher
    url, body = service.client.base_url, json.dumps(BODY).encode()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection((url.host, url.port)) as caller:
        caller.sendall(head % len(body) + body)
        until(lambda: batcher.waiting_rows > 300)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: batcher.waiting_rows == 0)
    run = batcher.rows_on_vectors + batcher.rows_mixed
    assert run < len(LONG)  # a batch of 64 tokens is a text or two; what was in line was not run
    assert service.client.post("/v1/predict", json={"texts": "ok"}).status_code == 200


def test_who_moves_an_alias_and_hangs_up_has_moved_it(serve: Callable, spec: BankSpec) -> None:
    service = serve(spec)
    url, body = service.client.base_url, b'{"recipe": "angry@0.7"}'
    head = (
        b"PUT /v1/aliases/prod HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as caller:
        caller.sendall(head % len(body) + body)
    until(lambda: service.client.get("/v1/aliases/prod").json().get("recipe") == "angry@0.7")
