"""How long a caller waits: until the deadline that he names, or until he hangs up.

Work that nobody waits for any more is not begun, and its place in the queue is free at once: the handler is cancelled,
which takes its rows out of the line. What is running on a unit of compute then runs to its end. Only handlers that
change nothing are stopped like this; who moves an alias and hangs up has moved it.
"""

from __future__ import annotations

import asyncio
import math

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.auth.route_table import found_of
from app.api.http_server.http_protocol import HANG_UP
from app.api.http_server.middleware import Watched, header
from app.api.problems import problem
from app.errors import BadDeadline, DeadlinePassed

LONGEST = 3600.0
"""Seconds that a deadline may lie ahead."""


class DeadlineMiddleware:
    """Stops what computes for a caller whose `X-Request-Timeout` (seconds) has passed, or who is gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not found_of(scope).right.only_computes:
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-timeout")
        if not given:
            await self._until_gone(scope, receive, send)
            return
        reply = Watched(send)
        try:
            seconds = read(given)
            async with asyncio.timeout(seconds) as deadline:
                await self._until_gone(scope, receive, reply)
        except BadDeadline as error:
            await problem(Request(scope), error)(scope, receive, send)
        except TimeoutError:
            if reply.has_begun or not deadline.expired():
                raise
            passed = DeadlinePassed(f"no answer within the {seconds:g} seconds of X-Request-Timeout")
            await problem(Request(scope), passed)(scope, receive, send)

    async def _until_gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        gone = False

        def hang_up() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        scope[HANG_UP] = hang_up
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
        finally:
            del scope[HANG_UP]


def read(given: str) -> float:
    """Seconds, from a header; raises `BadDeadline`."""
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:
        raise BadDeadline(f"X-Request-Timeout is a number of seconds, above 0 and up to {LONGEST:g}")
    return seconds
