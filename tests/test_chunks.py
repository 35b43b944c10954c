"""Chunks over a line that misbehaves."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trustme
from servers import Line, line_to, server

from app.cache import bulk_transfer as under_test
from app.cache.bulk_transfer import BulkTransfer, CalledOff
from app.cluster.redis_client import CircuitOpen, RedisCallFailed
from app.cluster.redis_url import RedisUrl

pytestmark = pytest.mark.service

DATA = memoryview(bytearray(range(256)) * 1000)
NAMES = ["{a}:0", "{a}:1", "{a}:2"]


class World:
    """Chunks at the far end of a line, and what they were written from and are read into."""

    def __init__(self, chunks: BulkTransfer) -> None:
        self.chunks = chunks
        self.checksums: list[str] = []

    async def write(self) -> None:
        self.checksums = await self.chunks.write(None, NAMES, DATA, 60, lambda: False)

    async def read(self, seconds: float = 5.0) -> None:
        out = memoryview(bytearray(len(DATA)))
        await self.chunks.read(None, NAMES, self.checksums, out, seconds)
        assert out == DATA


def run(url: str, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        chunks = BulkTransfer(RedisUrl.parse(url), size=100_000)
        try:
            await scenario(World(chunks))
        finally:
            await chunks.aclose()

    asyncio.run(main())


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with server(tmp_path) as made, line_to(made.port) as line:
        yield line


def test_a_connection_that_breaks_costs_a_read_one_retry_and_a_write_none(line: Line) -> None:
    async def scenario(world: World) -> None:
        await world.write()
        await world.read()
        line.state = "hang up once"
        await world.read()
        assert line.state == "up"
        line.state = "hang up once"
        with pytest.raises(RedisCallFailed, match="Connection|BrokenPipe"):
            await world.write()
        await world.write()
        assert world.chunks.breaker.openings == 0

    run(line.url, scenario)


def test_a_connection_that_was_closed_while_idle_is_not_used(line: Line) -> None:
    async def scenario(world: World) -> None:
        await world.write()
        line.cut()
        await asyncio.sleep(0.05)
        line.state = "up"
        await world.write()
        await world.read()

    run(line.url, scenario)


def test_a_cold_connection_that_breaks_is_not_tried_again(line: Line) -> None:
    async def scenario(world: World) -> None:
        line.state = "cut"
        for _ in range(3):
            with pytest.raises(RedisCallFailed):
                await world.write()
        with pytest.raises(CircuitOpen):
            await world.write()

    run(line.url, scenario)


@pytest.mark.parametrize("state", ["silent", 10_000])
@pytest.mark.parametrize("tls", [False, True])
def test_silence_and_drops_are_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str | int, tls: bool
) -> None:
    monkeypatch.setattr(under_test, "CHUNK_SECONDS", 0.3)
    context, option = _tls(tmp_path) if tls else (None, "")

    async def scenario(world: World) -> None:
        await world.write()
        line.state = state
        started = time.perf_counter()
        with pytest.raises(RedisCallFailed, match="Timeout") as failure:
            await world.read()
        assert failure.value.timed_out and world.chunks.breaker.is_open
        assert time.perf_counter() - started < 2

    with server(tmp_path) as made, line_to(made.port, context) as line:
        run(line.url + option, scenario)


def _tls(folder: Path) -> tuple[ssl.SSLContext, str]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return context, f"?ssl_ca_certs={folder / 'ca.pem'}"


def test_a_whole_read_has_a_limit_of_its_own(line: Line) -> None:
    async def scenario(world: World) -> None:
        await world.write()
        line.state = 200_000
        with pytest.raises(RedisCallFailed, match="Timeout"):
            await world.read(seconds=0.2)

    run(line.url, scenario)


def test_a_server_of_another_kind() -> None:
    def serve() -> None:
        with listening:
            connection, _ = listening.accept()
            with connection:
                # As Redis would while they say hello, and as a web server to the first chunk.
                while (said := connection.recv(1000)) and b"SETINFO" in said:
                    connection.sendall(b"+OK\r\n")
                while not said.endswith(b"$2\r\n60\r\n"):
                    said = (said + connection.recv(100_000))[-100:]
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def scenario(world: World) -> None:
        with pytest.raises(RedisCallFailed, match="ConnectionError"):
            await world.write()

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=serve)
    thread.start()
    run(f"redis://127.0.0.1:{port}", scenario)
    thread.join()


def test_closing_calls_off_what_is_under_way(line: Line) -> None:
    async def scenario(world: World) -> None:
        await world.write()
        line.state = 150_000
        reading = asyncio.create_task(world.read())
        await asyncio.sleep(0.1)
        await world.chunks.aclose()
        with pytest.raises(CalledOff):
            await reading

    run(line.url, scenario)


def test_who_hangs_up_waits_until_the_thread_is_done_with_his_memory(line: Line) -> None:
    async def scenario(world: World) -> None:
        await world.write()
        line.state = 500_000
        reading = asyncio.create_task(world.read())
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert time.perf_counter() - started > 0.1

    run(line.url, scenario)
