"""One caller's connection: uvicorn's, with an end to its patience.

uvicorn waits for ever for a caller who sends a byte a second or reads nothing of its reply, takes headers and trailers
of any size, loses the body of a request that offers an upgrade, and lets a handler work on after the caller has hung
up. Here headers and bodies must arrive within their time, headers and trailers have a limit in bytes, trailers are
read over, offers of an upgrade are ignored, and a handler that asked to be told (`scope["tween.hang_up"]`) is told when
the caller is gone. An open connection has a timer, a request that is being handled, or unsent bytes, which the server
looks after once a second (`reads`). A request that comes in one piece, as nearly all do, costs a few comparisons and no
timer.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.problems import MEDIA_TYPE, Problem

HANG_UP = "tween.hang_up"
"""Where in a request's scope a function without arguments may be left, to be called if the caller goes away."""

FRAMING = {b"connection", b"content-length", b"transfer-encoding", b"upgrade"}
"""Headers that the parser acts on, in trailers too, where RFC 9110 (6.5.1) forbids them."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds for a request's headers, from the first byte or the opening of the connection; seconds for its body,
    from then on; seconds that a caller may take nothing of its reply; bytes for headers, and for trailers."""

    header_seconds: float
    body_seconds: float
    write_seconds: float
    header_bytes: int


class CoalescingTransport:
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
        self._bytes = self._written = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)
        self._bytes += len(data)
        self._written += len(data)
        if self._bytes > self.MUCH:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def taken(self) -> int:
        """How many of the bytes that were written have reached the caller's machine."""
        return self._written - self._bytes - self._transport.get_write_buffer_size() - self._in_kernel()

    def _in_kernel(self) -> int:
        """Bytes that the kernel has and the caller's has not: megabytes for a slow reader, who takes them all the
        same. Linux tells; elsewhere what the kernel has counts as taken."""
        try:
            descriptor = self._transport.get_extra_info("socket").fileno()
            return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), "little")
        except OSError:
            return 0

    def _send(self) -> None:
        if self._held:
            held, self._held, self._bytes = self._held, [], 0
            if not self._transport.is_closing():  # as it may be for a request that others were pipelined after
                self._transport.writelines(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class RequestRefused(Exception):
    """Ends the parsing of a request whose answer is known already."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's connection, with limits."""

    def __init__(self, patience: ConnectionLimits, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._sending: CoalescingTransport | None = None
        self._taken = 0, 0.0  # bytes of replies that the caller had taken, and since when it has taken no more
        self._arriving = "headers"  # or "body", or nothing between two requests
        self._has_begun = False  # a request, of which more arrives
        self._offers_upgrade = False
        self._unparsed = 0  # bytes of headers seen so far, and of whatever came with them
        self._trailing = 0  # bytes since the last ones of a body: of trailers, or of a chunk's extensions
        self._trailer_bytes = 0
        self._refusal = 400, "Bad Request", "this is not HTTP as it is written in RFC 9112"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._sending = CoalescingTransport(transport, self.loop)
        super().connection_made(self._sending)  # type: ignore[arg-type]  # all that it needs
        self._wait("headers", self._patience.header_seconds)

    def data_received(self, data: bytes) -> None:
        before = self._arriving
        if before == "body":
            self._trailing += len(data)
        else:
            self._unparsed += len(data)
        self._parse(data)
        if not self._arriving and not self._is_handling():
            self._arriving = "headers"  # a line break between two requests, which is none, but ends uvicorn's timer
        if self.transport.is_closing():
            self._forget()
        elif self._arriving == "headers" and self._unparsed > self._patience.header_bytes:
            self._answer(*self._too_large("headers"))
        elif self._arriving == "body" and self._trailing > self._patience.header_bytes:
            self._answer(*self._too_large("trailers"))
        elif self._arriving != before or (self._arriving and self._timer is None):
            self._wait(self._arriving, self._seconds_for(self._arriving))

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        left = memoryview(data)
        try:
            while left:
                left = self._parse_some(left)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")

    def _parse_some(self, data: memoryview) -> memoryview:
        """What is left after a head that offers an upgrade, for which the parser stops: it takes the bytes that follow
        for another protocol. The offer is ignored, as RFC 9110 (7.8) allows: a fresh parser reads the head without it,
        and then goes on with the body."""
        try:
            self.parser.feed_data(data)
            return data[:0]
        except httptools.HttpParserUpgrade as offer:
            head = self._head_without_upgrade()
            self._offers_upgrade = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)
            return data[offer.args[0] :]

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self._arriving = "headers"
        self._has_begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._arriving == "headers":
            super().on_header(name, value)
            return
        # A trailer: it does not speak for the headers, which were acted on before it came.
        if name.lower() in FRAMING:
            self._refusal = 400, "Bad Request", "a trailer may not say where a message ends, nor what follows it"
            raise RequestRefused
        self._trailer_bytes += len(name) + len(value) + 4
        if self._trailer_bytes > self._patience.header_bytes:
            self._refusal = self._too_large("trailers")
            raise RequestRefused

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refusal = 400, "Bad Request", "this is no proxy: CONNECT is not served"
                raise RequestRefused
            self._offers_upgrade = True
            return
        # What came in one piece with a body is counted exactly, the rest cannot be too large.
        if self._unparsed > self._patience.header_bytes and self._header_bytes() > self._patience.header_bytes:
            self._refusal = self._too_large("headers")
            raise RequestRefused
        super().on_headers_complete()  # raises where the target is no URL, and there is nothing to answer with yet
        self._arriving = "body"
        self._trailing = self._trailer_bytes = 0

    def on_chunk_header(self) -> None:
        self._trailing = 0

    def on_body(self, body: bytes) -> None:
        self._trailing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return  # says the parser, which takes what follows for another protocol
        self._arriving = ""
        self._has_begun = False
        self._unparsed = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete:
            hang_up: Callable[[], None] | None = self.cycle.scope.get(HANG_UP)  # type: ignore[assignment]
            if hang_up is not None:
                hang_up()

    def reads(self, now: float) -> bool:
        """Whether the caller takes what it is sent, `now` by the loop's clock. A slow reader does: what counts is that
        it has taken something since it was asked last, or not long ago."""
        assert self._sending is not None
        if not self._sending.get_write_buffer_size():
            self._taken = 0, 0.0
            return True
        taken = self._sending.taken()
        if self._taken[1] == 0.0 or taken != self._taken[0]:
            self._taken = taken, now
        return now - self._taken[1] < self._patience.write_seconds

    def _is_handling(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

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
        if arriving == "headers" and not self._has_begun:
            self.transport.close()  # nothing was asked
        else:
            self._answer(408, "Request Timeout", f"the {arriving} did not arrive within {seconds:g} seconds")

    def _too_large(self, what: str) -> tuple[int, str, str]:
        limit = self._patience.header_bytes
        return 431, "Request Header Fields Too Large", f"the {what} are larger than {limit} bytes"

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _answer(self, status: int, title: str, detail: str) -> None:
        """Say why, unless that would be taken for the reply to another request, and hang up."""
        self._forget()
        if self._arriving == "body":
            owed = not self.pipeline and not self.cycle.response_started
        else:
            owed = not self._is_handling()
        if owed:
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
