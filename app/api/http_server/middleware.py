"""What every reply and every body has in common: a request id, a shape even of failures, and a limit in bytes."""

from __future__ import annotations

import re
import secrets

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem, unexpected
from app.api.telemetry.logs import REQUEST_ID
from app.errors import BodyTooLarge

SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Watched:
    """Sends, and knows whether the reply has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)


class RequestId:
    """Every reply carries X-Request-Id: the caller's own, if it is printable and short, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if SANE_ID.fullmatch(given) else secrets.token_hex(16)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        REQUEST_ID.set(request_id)  # a request is a task of its own, so nobody else sees it
        await self._app(scope, receive, send_with_id)


class UnexpectedErrors:
    """Answers what nobody expected with a 500. The framework would do so outside of everything that is added to a
    reply: its id, and the headers that let pages of other origins read it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = Watched(send)
        try:
            await self._app(scope, receive, reply)
        except Exception as error:
            if reply.has_begun:
                raise  # the server cuts the connection, so that nobody takes half a reply for a whole one
            await unexpected(Request(scope), error)(scope, receive, send)


class BodyLimit:
    """Refuses a body above `limit` bytes, by its announced length or, if that lies, while it streams in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = header(scope, b"content-length")
        if announced.isdecimal() and int(announced) > self._limit:
            reply = problem(Request(scope), BodyTooLarge(self._sentence))
            reply.headers["Connection"] = "close"
            await reply(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                # The framework turns other exceptions of a body into a 400.
                raise HTTPException(413, self._sentence)
            return message

        await self._app(scope, counted, send)

    @property
    def _sentence(self) -> str:
        return f"the body is larger than {self._limit} bytes; send fewer or shorter texts in one call"


def header(scope: Scope, name: bytes) -> str:
    """The value of a header, empty if it is not there; a server gives names in small letters."""
    return next((value.decode("latin-1") for header, value in scope["headers"] if header == name), "")
