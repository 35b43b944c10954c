"""Traces as a collector gets them: a real service, and a receiver of OTLP on a port of this machine."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from collector import Collector, collecting
from conftest import running
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from servers import free_port

from app.api.telemetry.logs import Json
from app.api.telemetry.tracing import Tracer
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXT = "canary text of a customer"
ASK = {"texts": TEXT, "recipe": "angry@0.4"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(Json().format(record)))


def test_a_request_is_a_span_of_its_caller_s_trace_with_its_parts(
    collector: Collector, spec: BankSpec, redis_url: str, redis: object
) -> None:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    options = {"redis_url": redis_url, "memory_tier_mib": 16, "otlp_endpoint": collector.url}
    try:
        with running(spec, **options) as service:
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-Id": "mine"}
            reply = service.client.post("/v1/predict", json=ASK, headers=headers)
            service.client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"})
            service.client.post("/v1/blends", json={"recipe": "angry@0.7"})
            service.client.get("/v1/nothing/at/all", headers={"traceparent": "nonsense"})

            async def fail() -> None:
                raise RuntimeError("broken")

            service.app.state.engine.blends.cached = fail
            service.client.get("/v1/blends", headers=headers)
            service.client.get("/livez")
    finally:
        logging.getLogger().removeHandler(kept)

    requests = {span.name: span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER}
    assert set(requests) == {
        *("POST /v1/predict", "PUT /v1/aliases/{name}", "POST /v1/blends", "GET /v1/blends", "GET")  # and no probe
    }
    asked = requests["POST /v1/predict"]
    assert (asked.trace_id.hex(), asked.parent_span_id.hex()) == (TRACE, CALLER)
    assert reply.headers["traceresponse"] == f"00-{TRACE}-{asked.span_id.hex()}-01"
    told = {attribute.key: attribute.value for attribute in asked.attributes}
    assert told["http.route"].string_value == "/v1/predict" and told["tween.request_id"].string_value == "mine"
    assert told["http.response.status_code"].int_value == 200
    parts = {span.name: span for span in collector.spans if span.parent_span_id == asked.span_id}
    # By what was measured, the blend may be looked for in Redis, too.
    assert set(parts) - {"redis"} == {"tokenize", "recall", "blend", "queue", "forward"}
    for part in parts.values():
        assert asked.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano <= asked.end_time_unix_nano and part.trace_id == asked.trace_id
    moved = requests["PUT /v1/aliases/{name}"]
    assert moved.trace_id.hex() != TRACE and not moved.parent_span_id
    made = requests["POST /v1/blends"].span_id
    assert "redis" in {span.name for span in collector.spans if span.parent_span_id == made}
    assert requests["GET"].trace_id.hex() != TRACE
    assert requests["GET /v1/blends"].status.code == 2
    failed = next(line for line in kept.lines if line["message"].startswith("unexpected"))
    assert failed["trace_id"] == TRACE and failed["request_id"] == "mine"
    assert collector.resources[0]["service.name"] == "tween" and TEXT.encode() not in collector.raw


@contextmanager
def dead_collector(kind: str) -> Iterator[str]:
    """The address of one that is gone, or that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{free_port() if kind == 'gone' else silent.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["gone", "silent"])
def test_a_dead_collector_costs_no_request_and_little_of_the_end(kind: str, spec: BankSpec, redis_url: str) -> None:
    with dead_collector(kind) as url:
        options = {"redis_url": redis_url, "memory_tier_mib": 16, "otlp_endpoint": url}
        with running(spec, **options) as service:
            started = time.monotonic()
            replies = [service.client.post("/v1/predict", json=ASK) for _ in range(600)]  # more than a batch
            assert {reply.status_code for reply in replies} == {200}
            asked = time.monotonic() - started
            leaving = time.monotonic()
        assert time.monotonic() - leaving < 10
    assert asked < 60


@pytest.mark.parametrize("kind", ["gone", "silent"])
def test_what_a_dead_collector_never_takes_is_given_up_within_a_second(kind: str) -> None:
    """The best of three, so that a busy machine does not count."""

    async def close_with_spans_left() -> float:
        tracer = Tracer(url, "1")
        for _ in range(2000):  # nearly as many as the queue holds, and four batches
            tracer.begin({"method": "GET", "headers": []}).end()
        started = time.monotonic()
        await tracer.close()
        return time.monotonic() - started

    with dead_collector(kind) as url:
        assert min(asyncio.run(close_with_spans_left()) for _ in range(3)) < 1


WITHOUT = """
import sys
import app.main as main
main.create_app(main.Settings(), None, print)
sys.exit(any(name.startswith(("app.api.telemetry.tracing", "opentelemetry.exporter")) for name in sys.modules))
"""


def test_without_a_collector_nothing_of_it_is_loaded() -> None:
    assert subprocess.run([sys.executable, "-c", WITHOUT]).returncode == 0
