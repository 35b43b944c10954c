"""Large values, straight between Redis and memory, on threads of their own.

redis-py hands a value over as a `bytes` object that has been copied three times on the event loop, which takes two
to three times as long as a bare socket needs for the same chunks (`python -m tests.bench.fetch`). So redis-py makes
the connection here (TLS, user and password, database), and this file then reads and writes its socket: a chunk is
received where it will be used and sent from where it lies. Its checksum is taken on the same thread, while its
bytes are still in the processor's cache.

The sockets block, with time-outs kept by the kernel, because a Python time-out would wake the thread for every
few kilobytes, and each time it would queue for the interpreter's lock behind a busy event loop (beside one that never
rests, a fetch was measured to take up to a minute, and half a second this way).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import xxhash
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.connection import Connection as TcpConnection
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from app.cluster.circuit_breaker import CircuitBreaker
from app.cluster.redis_client import FAULTS, TIMEOUT, CircuitOpen, Place, RedisCallFailed
from app.cluster.redis_url import RedisUrl

CHUNK = 4 * 1024 * 1024
"""Bytes in a value: while one of a few MiB is sent, other clients wait for milliseconds and not for a whole blend.
One at a time: pipelining such values was measured to be slower and to hold up other clients."""
CHUNK_SECONDS = 1.0
"""For one chunk, from the question to the last byte."""
THREADS = 4
"""Blends that are read or written at the same time; the next one waits for one of them."""
MISSING = b"$-1\r\n"

T = TypeVar("T")


class Wrong(Exception):
    """What lies in Redis is not what was written there."""


class CalledOff(Exception):
    """A transfer was stopped because somebody needs what it uses."""


class BulkTransfer:
    """Moves runs of chunks. Lives on one event loop; its threads touch nothing but sockets and the given memory."""

    def __init__(self, url: RedisUrl, size: int = CHUNK) -> None:
        """Raises `TypeError`, `ValueError` or `RedisError` for options of the address that nobody knows."""
        self.breaker = CircuitBreaker()
        self.size = size
        self._url = url
        self._threads = ThreadPoolExecutor(THREADS, "tween-redis")
        self._idle: dict[Place, list[_Wire]] = {}
        self._closing = threading.Event()
        _connection(url, None)

    def count(self, length: int) -> int:
        """How many chunks so many bytes take."""
        return -(-length // self.size)

    async def read(
        self, place: Place, names: Sequence[str], checksums: Sequence[str], out: memoryview, seconds: float
    ) -> None:
        """Fill `out` with the chunks of those names, each compared with its checksum, within so many seconds.

        Raises `Wrong` where they are not what they should be and `RedisCallFailed` where they cannot be had in time.
        """
        until = time.monotonic() + seconds

        def work(wire: _Wire) -> None:
            for name, checksum, part in zip(names, checksums, self._parts(out), strict=True):
                self._go_on(False)
                wire.limit(until)
                wire.get(name, part)
                if xxhash.xxh3_128_hexdigest(part) != checksum:
                    raise Wrong(f"the checksum of {_last(name)} differs")

        await self._run(place, work, attempts=2)

    async def write(
        self, place: Place, names: Sequence[str], data: memoryview, ttl: int, called_off: Callable[[], bool]
    ) -> list[str]:
        """Send `data` as chunks of those names; gives their checksums. Rests after each one for as long as it took.

        Raises `RedisCallFailed`, and `CalledOff` when `called_off`, asked before each chunk on a thread, says so.
        """

        def work(wire: _Wire) -> list[str]:
            checksums = []
            for name, part in zip(names, self._parts(data), strict=True):
                self._go_on(called_off())
                started = time.monotonic()
                wire.limit(started + CHUNK_SECONDS)
                checksums.append(xxhash.xxh3_128_hexdigest(part))
                wire.set(name, part, ttl)
                self._closing.wait(time.monotonic() - started)
            return checksums

        return await self._run(place, work, attempts=1)

    async def aclose(self) -> None:
        """Stop what is under way after its present chunk, and hang up."""
        self._closing.set()
        await asyncio.to_thread(self._threads.shutdown)
        self._hang_up(*self._idle)

    async def _run(self, place: Place, work: Callable[[_Wire], T], attempts: int) -> T:
        if not self.breaker.allows():
            raise CircuitOpen
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._on_a_wire, place, work, attempts)
        try:
            result = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread must be done with the memory before its owner may use that again.
            await asyncio.wait([future])
            raise
        except (Wrong, CalledOff):
            self.breaker.succeeded()
            raise
        except ResponseError as error:
            self.breaker.succeeded()
            raise RedisCallFailed(str(error)) from error
        except FAULTS as error:
            reason = RedisCallFailed.because(error)
            self.breaker.failed(reason.timed_out)
            raise reason from error
        self.breaker.succeeded()
        return result

    def _parts(self, data: memoryview) -> Iterator[memoryview]:
        return (data[start : start + self.size] for start in range(0, len(data), self.size))

    def _go_on(self, called_off: bool) -> None:
        if called_off or self._closing.is_set():
            raise CalledOff

    # -- on a thread -----------------------------------------------------------------------------------

    def _on_a_wire(self, place: Place, work: Callable[[_Wire], T], attempts: int) -> T:
        """Do the work on an idle connection, else on a new one. An idle one may break at once, because the server was
        restarted or went away meanwhile: then another attempt is made, if there is one."""
        idle = self._idle.setdefault(place, [])
        wire = _taken(idle)
        if wire is not None and wire.is_stale():
            wire.close()
            self._hang_up(place)
            wire = None
        was_idle = wire is not None
        if wire is None:
            wire = _Wire(_connection(self._url, place))
        try:
            result = work(wire)
        except ConnectionError:
            wire.close()
            self._hang_up(place)
            if was_idle and attempts > 1:
                return self._on_a_wire(place, work, attempts - 1)
            raise
        except BaseException:
            # There may be a rest of the reply on its way.
            wire.close()
            raise
        idle.append(wire)
        return result

    def _hang_up(self, *places: Place) -> None:
        for place in places:
            while (wire := _taken(self._idle[place])) is not None:
                wire.close()


def _taken(idle: list[_Wire]) -> _Wire | None:
    """A wire that nobody else holds from now on: threads share the list, and looking at one before it is taken may meet
    another thread's hanging up."""
    try:
        return idle.pop()
    except IndexError:
        return None


class _Wire:
    """A connection, logged in. Used by one thread at a time."""

    def __init__(self, connection: AbstractConnection) -> None:
        connection.connect()
        connected = connection._get_socket()
        assert connected is not None
        self._connection = connection
        self._socket = connected
        self._is_tls = isinstance(self._socket, ssl.SSLSocket)
        self._until = 0.0
        if not self._is_tls:
            self._socket.settimeout(None)

    def is_stale(self) -> bool:
        """Whether the server has hung up (or said something unasked) while nobody looked."""
        try:
            return bool(self._connection.can_read(0))
        except RedisError:
            return True

    def limit(self, until: float) -> None:
        """The next chunk must be done by that moment of the monotonic clock, and within CHUNK_SECONDS."""
        now = time.monotonic()
        self._until = min(until, now + CHUNK_SECONDS)
        seconds = max(self._until - now, 0.001)
        if self._is_tls:
            self._socket.settimeout(seconds)
        else:
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def get(self, name: str, part: memoryview) -> None:
        """Read a value of exactly that length; raises `Wrong` for any other and for none."""
        self._send(b"*2\r\n$3\r\nGET\r\n" + _argument(name))
        expected = b"$%d\r\n" % len(part)
        head = b""
        while len(head) < len(expected) and not head.endswith(b"\r\n"):
            head += self._receive(len(expected) - len(head))
        if head == expected:
            self._fill(part)
            self._fill(memoryview(bytearray(2)))
        elif head.startswith(b"$"):
            raise Wrong(f"{_last(name)} is missing" if head == MISSING else f"{_last(name)} has another length")
        else:
            self._refused(head + self._receive(512))

    def set(self, name: str, part: memoryview, ttl: int) -> None:
        """Write a value that expires after so many seconds."""
        self._send(b"*5\r\n$3\r\nSET\r\n" + _argument(name) + b"$%d\r\n" % len(part))
        self._send(part)
        self._send(b"\r\n$2\r\nEX\r\n" + _argument(str(ttl)))
        reply = b""
        while not reply.endswith(b"\r\n"):
            reply += self._receive(512)
        if reply != b"+OK\r\n":
            self._refused(reply)

    def close(self) -> None:
        self._connection.disconnect()

    def _refused(self, reply: bytes) -> None:
        word = reply[1:].split(b" ", 1)[0].decode("ascii", "replace")
        if not reply.startswith(b"-"):
            raise ConnectionError("this is not the language of Redis")
        if word == "WRONGTYPE":
            raise Wrong("the value is of another type")
        raise ResponseError(word)

    def _send(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._in_time(self._socket.send, left) :]

    def _receive(self, longest: int) -> bytes:
        received = self._in_time(self._socket.recv, longest)
        if not received:
            raise ConnectionError("the server hung up")
        return received

    def _fill(self, part: memoryview) -> None:
        # Waits in the kernel until all of it is there, where there is no TLS to take out first.
        flags = 0 if self._is_tls else socket.MSG_WAITALL
        while part:
            received = self._in_time(self._socket.recv_into, part, len(part), flags)
            if not received:
                raise ConnectionError("the server hung up")
            part = part[received:]

    def _in_time(self, call: Callable[..., T], *arguments: Any) -> T:
        """Each call has the time-out of the whole chunk, so a server that drips bytes must be watched here."""
        if time.monotonic() > self._until:
            raise TimeoutError
        try:
            return call(*arguments)
        except BlockingIOError:
            raise TimeoutError from None


def _connection(url: RedisUrl, place: Place) -> AbstractConnection:
    """A connection of redis-py's to the server at that place, not yet made."""
    options: dict[str, Any] = dict(parse_url(url.plain))
    make: Callable[..., AbstractConnection] = options.pop("connection_class", TcpConnection)
    for of_a_pool in ("max_connections", "timeout"):
        options.pop(of_a_pool, None)
    if place:
        options["host"], options["port"] = place
    ours = {
        "socket_timeout": CHUNK_SECONDS,
        "socket_connect_timeout": TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        # RESP2: no messages come that nobody asked for.
        "protocol": 2,
    }
    return make(**{**options, **ours})


def _argument(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text.encode()), text.encode())


def _last(name: str) -> str:
    """What a key ends with: `chunk 3`."""
    return f"chunk {name.rsplit(':', 1)[1]}"
