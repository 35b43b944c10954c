"""One caller's connection: uvicorn's, with an end to its patience.

uvicorn waits for ever for a caller who sends a byte a second, takes headers of any size, and lets a handler work on
for somebody who has hung up. Here headers and bodies must arrive within their time, headers have a limit in bytes, and
a handler that asked to be told (`scope["tween.hang_up"]`) is told when the caller is gone. A request that comes in one
piece, as nearly all do, costs a few comparisons and no timer.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.problems import MEDIA_TYPE, Problem

HANG_UP = "tween.hang_up"
"""Where in a request's scope a function without arguments may be left, to be called if the caller goes away."""


@dataclass(frozen=True)
class Patience:
    """Seconds for a request's headers, from the first byte or the opening of the connection; seconds for its body,
    from then on; bytes for its headers."""

    header_seconds: float
    body_seconds: float
    header_bytes: int


class Together:
    """A transport that sends the head of a reply and its body in one piece, and not before all have theirs who were
    answered in this turn of the loop.

    uvicorn writes head and body one after the other, each a system call that wakes the reader. And a caller who is
    woken between two replies takes turns with the loop, where there are few cores. Much is sent at once, so that a long
    body, which may come in many pieces within a turn, is never gathered here.
    """

    MUCH = 64 * 1024

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes > self.MUCH:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            held, self._held, self._bytes = self._held, [], 0
            self._transport.writelines(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Refused(Exception):
    """Ends the parsing of a request whose answer is known already."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits."""

    def __init__(self, patience: Patience, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._arriving = "headers"  # or "body", or nothing between two requests
        self._unparsed = 0  # bytes of headers seen so far, and of whatever came with them
        self._refusal = 400, "Bad Request", "this is not HTTP as it is written in RFC 9112"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Together(transport, self.loop))  # type: ignore[arg-type]  # all that it needs
        self._wait("headers", self._patience.header_seconds)

    def data_received(self, data: bytes) -> None:
        before = self._arriving
        if before != "body":
            self._unparsed += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            self._forget()
        elif self._arriving == "headers" and self._unparsed > self._patience.header_bytes:
            self._answer(*self._headers_too_large())
        elif self._arriving != before or (self._arriving and self._timer is None):
            self._wait(self._arriving, self._seconds_for(self._arriving))

    def on_message_begin(self) -> None:
        self._arriving = "headers"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        # What came in one piece with a body is counted exactly, the rest cannot be too large.
        if self._unparsed > self._patience.header_bytes and self._header_bytes() > self._patience.header_bytes:
            self._refusal = self._headers_too_large()
            raise Refused
        self._arriving = "body"
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._arriving = ""
        self._unparsed = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete:
            hang_up: Callable[[], None] | None = self.cycle.scope.get(HANG_UP)  # type: ignore[assignment]
            if hang_up is not None:
                hang_up()

    def send_400_response(self, msg: str) -> None:
        """Called where parsing failed; says why in the shape of every other error."""
        self._answer(*self._refusal)

    def _wait(self, arriving: str, seconds: float) -> None:
        self._forget()
        if arriving:
            self._timer = self.loop.call_later(seconds, self._too_slow, arriving, seconds)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _seconds_for(self, arriving: str) -> float:
        return self._patience.body_seconds if arriving == "body" else self._patience.header_seconds

    def _too_slow(self, arriving: str, seconds: float) -> None:
        if arriving == "headers" and self._unparsed == 0:
            self.transport.close()  # nothing was asked
        else:
            self._answer(408, "Request Timeout", f"the {arriving} did not arrive within {seconds:g} seconds")

    def _headers_too_large(self) -> tuple[int, str, str]:
        limit = self._patience.header_bytes
        return 431, "Request Header Fields Too Large", f"the headers are larger than {limit} bytes"

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _answer(self, status: int, title: str, detail: str) -> None:
        """Say why, unless that would be taken for the reply to another request, and hang up."""
        self._forget()
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy or (self._arriving == "body" and not self.cycle.response_started):
            problem = Problem(type="about:blank", title=title, status=status, detail=detail, instance="")
            body = problem.model_dump_json().encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                (b"x-request-id", uuid.uuid4().hex.encode()),
            ]
            lines = [name + b": " + value + b"\r\n" for name, value in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()
