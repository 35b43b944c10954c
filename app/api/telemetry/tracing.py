"""Traces for OpenTelemetry: a span for each request, and within it what the request spent its time on.

Installed only where OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise this file is not even imported. The parts of a
request become spans when it has been answered, from what was said meanwhile (`app/spans.py`), and a thread of the SDK
sends them: no request waits for a collector, and what does not fit into the SDK's queue is dropped. Spans hold methods,
routes, statuses and ids, and nothing else that a caller sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth.route_table import ELSEWHERE, found_of
from app.api.http_server.middleware import header
from app.api.problems import GONE
from app.api.telemetry.logs import REQUEST_ID, TRACE_ID
from app.spans import SPANS
from app.spans import Span as Part

SEND_SECONDS = 1.0
"""For a collector to take a batch."""

LAST_SECONDS = 0.5
"""For what is left when the service leaves. A collector that lives takes that in milliseconds; for one that does not,
the SDK would wait and ask again."""

SPAN_CONTEXT = TraceContextTextMapPropagator()


class Tracer:
    """Makes spans and has them sent."""

    def __init__(self, endpoint: str, version: str) -> None:
        """`endpoint` is the collector's, without /v1/traces; `version` is the service's. Names, samplers and headers
        are read from the environment by the SDK: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS."""
        ours = Resource({SERVICE_NAME: "tween", SERVICE_VERSION: version})
        named = ours.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tween", version)

    def begin(self, scope: Scope) -> Span:
        """The span of a request; of its caller's trace, if he names one."""
        given = {name: header(scope, name.encode()) for name in ("traceparent", "tracestate")}
        parent = SPAN_CONTEXT.extract({name: value for name, value in given.items() if value})
        attributes = {"http.request.method": scope["method"], "tween.request_id": REQUEST_ID.get()}
        return self._tracer.start_span(scope["method"], parent, SpanKind.SERVER, attributes)

    def add(self, span: Span, parts: Collection[Part]) -> None:
        """Spans for the parts of a request."""
        inside = set_span_in_context(span)
        since = time.time_ns() - time.perf_counter_ns()
        for part in parts:
            child = self._tracer.start_span(part.name, inside, start_time=since + int(part.start * 1e9))
            child.end(since + int(part.end * 1e9))

    def around(self, app: ASGIApp) -> Tracing:
        """The application, traced."""
        return Tracing(app, self)

    async def close(self) -> None:
        """Send what is left, if the collector takes it at once. The thread that still tries after that ends with the
        process."""
        closing = threading.Thread(target=self._provider.shutdown, name="tween-spans", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, LAST_SECONDS)


class Tracing:
    """A span around every request that is not for a probe or the documentation."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or found_of(scope).right.role is None:
            await self._app(scope, receive, send)
            return
        span = self._tracer.begin(scope)
        known = span.get_span_context()
        trace = f"{known.trace_id:032x}"
        told = f"00-{trace}-{known.span_id:016x}-{known.trace_flags:02x}".encode()
        status = GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"traceresponse", told)]
            await send(message)

        parts: list[Part] | None = [] if span.is_recording() else None
        SPANS.set(parts)  # a request is a task of its own, so nobody else sees these
        TRACE_ID.set(trace)
        try:
            await self._app(scope, receive, noted)
        finally:
            self._end(span, scope, status, parts or ())

    def _end(self, span: Span, scope: Scope, status: int, parts: Collection[Part]) -> None:
        route = found_of(scope).pattern
        if route != ELSEWHERE:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        self._tracer.add(span, parts)
        span.end()
