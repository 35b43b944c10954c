"""uvicorn, told how to leave, whom not to wait for, and what every reply carries.

uvicorn alone closes its listener in the moment of a SIGTERM. But whoever sends requests here, a Kubernetes Service or
a proxy, learns of it seconds later, and meanwhile its requests would be refused. So a service that is told to leave
first says so at /readyz and goes on serving for the drain window; each reply closes its connection, so that callers
go elsewhere by themselves. Only then does it listen no more, finish what is in flight, and exit with status 0.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.api.http_server.http_protocol import ConnectionLimits, HttpProtocol

log = logging.getLogger(__name__)

FINISH_SECONDS = 20
"""How long what is in flight may take once nothing new is let in."""
LAST_CALL_SECONDS = 0.2
"""From closing the listener until idle connections are closed: who has just come has not been heard yet."""
TICKS_A_LOOK = 10
"""uvicorn ticks ten times a second; once a second it is looked who reads nothing of its reply."""
HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    (
        "Content-Security-Policy",
        # The pages of this service hold their scripts and styles in themselves, and ask nobody but this service.
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
]
"""What every reply carries; uvicorn writes them without asking the application."""


class DrainServer(uvicorn.Server):
    """Drains on the first SIGTERM, leaves on the second, and drops what is in flight on the third."""

    def __init__(self, app: FastAPI, host: str, port: int, drain_seconds: float, patience: ConnectionLimits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host,
                port,
                ws="none",
                http=partial(HttpProtocol, patience),  # type: ignore[arg-type]  # all that uvicorn does is call it
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                headers=HEADERS,
                timeout_graceful_shutdown=FINISH_SECONDS,
            )
        )
        self._app = app
        self._drain_seconds = drain_seconds
        self._leave_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal. uvicorn would raise it again at the end, which is right for Ctrl-C alone: who asks for
        an orderly end gets status 0."""
        if sig == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            super().handle_exit(sig, frame)
        elif self.should_exit:
            self.force_exit = True
        elif self._leave_at is not None or self._app.state.engine is None:
            self.should_exit = True
        else:
            self._drain()

    def _drain(self) -> None:
        self._app.state.draining = True
        self._leave_at = time.monotonic() + self._drain_seconds
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        log.info("told to leave: no longer ready, serving for another %g s", self._drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        if counter % TICKS_A_LOOK == 0:
            self._cut_who_reads_nothing()
        return await super().on_tick(counter)

    def _cut_who_reads_nothing(self) -> None:
        """Closing waits until all is sent, so nothing else ends such a connection."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpProtocol) and not connection.reads(now):
                connection.transport.abort()
                self._app.state.tally.unread += 1

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_CALL_SECONDS)
        await super().shutdown(sockets)
