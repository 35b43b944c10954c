"""What was asked over HTTP: requests in flight, and how long each took, by method, route and status.

The route is the path's pattern and never the path, so that no caller can make up new series.
"""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth.route_table import ELSEWHERE, found_of
from app.api.problems import GONE
from app.serving.histogram import SECONDS, Histogram

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class RequestTally:
    """What was counted since the start."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.unread = 0
        """Connections that were cut because their callers took nothing of their replies."""
        self.requests: dict[tuple[str, str, int], Histogram] = {}

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        histogram = self.requests.get((method, route, status))
        if histogram is None:
            histogram = self.requests[method, route, status] = Histogram(SECONDS)
        histogram.note(seconds)


class RequestMetrics:
    """Counts every request, until the last byte of its reply."""

    def __init__(self, app: ASGIApp, tally: RequestTally) -> None:
        self._app = app
        self._tally = tally

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._tally.in_flight += 1
        try:
            await self._app(scope, receive, noted)
        except Exception:  # half a reply: what fails before it begins is answered by `Unexpected`
            status = 500
            raise
        finally:
            self._tally.in_flight -= 1
            method = scope["method"] if scope["method"] in METHODS else ELSEWHERE
            self._tally.note(method, found_of(scope).pattern, status, time.perf_counter() - started)
