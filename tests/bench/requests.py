"""Requests per second: our service over HTTP, our engine in process, and a transformers pipeline behind FastAPI.

`python -m tests.bench.requests` prints what HTTP and many recipes cost at 32 callers; `make bench` prints the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from app.demo import corpus
from app.demo.build import demo_bank
from app.main import build_engine
from app.models.bank import BankSpec
from app.settings import Settings

RECIPE = "finance@0.4"
ROUNDS = 3
SETTLE = 3.0
"""Seconds for which a service that has just built its blends is left to write them to Redis."""
REQUESTS = {1: 200, 8: 600, 32: 1_500}
"""By concurrency; as many before them do not count: kernels are compiled, and what is to learn of traffic is learnt."""
TEXTS = [example.text for name in (corpus.GENERAL, *corpus.DOMAINS) for example in corpus.read(name, "test")]

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
OURS = ("app", "serve", "--bank", "{file}", "--port", "{port}")
PIPELINE = ("tests.bench.pipeline_server", "{file}", "{port}")


class Way(Protocol):
    """Requests per second at a concurrency, over so many requests."""

    async def __call__(self, file: Path, concurrency: int, count: int) -> float: ...


def rates(file: Path, ways: Sequence[str], concurrencies: Sequence[int]) -> Iterator[tuple[int, list[float]]]:
    """For each concurrency: median requests per second of each way, the ways taking turns."""
    for concurrency in concurrencies:
        rounds = [[_measure(way, file, concurrency, REQUESTS[concurrency]) for way in ways] for _ in range(ROUNDS)]
        yield concurrency, [statistics.median(values) for values in zip(*rounds, strict=True)]


def _measure(way: str, file: Path, concurrency: int, count: int) -> float:
    """One way in a process of its own: OpenMP's threads, once made, slow down whoever comes next."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.requests", way, str(file), str(concurrency)]
    done = subprocess.run([*command, str(count)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def _texts(count: int) -> Iterator[str]:
    return (TEXTS[i % len(TEXTS)] for i in range(count))


async def _inside(file: Path, concurrency: int, count: int) -> float:
    async with AsyncExitStack() as resources:
        engine = await build_engine(Settings(prediction_cache=False), BankSpec.from_toml(file), resources)
        recipe = engine.cookbook.read(RECIPE)

        async def load(callers: int, requests: int) -> None:
            texts = _texts(requests)

            async def caller() -> None:
                for text in texts:
                    await engine.predict([text], recipe)

            await asyncio.gather(*(caller() for _ in range(callers)))

        await load(concurrency, REQUESTS[concurrency])
        await asyncio.sleep(SETTLE)
        started = time.perf_counter()
        await load(concurrency, count)
        return count / (time.perf_counter() - started)


def ask_all(port: int, callers: int, bodies: Iterator[bytes]) -> None:
    """So many connections, each of which asks again as soon as it was answered. Bare, because it runs on the cores that
    the service runs on: a comfortable client would cost as much as the service does."""
    with selectors.DefaultSelector() as waiting, ExitStack() as connections:
        for body in itertools.islice(bodies, callers):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting.register(connection, selectors.EVENT_READ, (connection, bytearray()))
            connection.sendall(HEAD % len(body) + body)
        while waiting.get_map():
            for key, _ in waiting.select():
                connection, reply = key.data
                piece = connection.recv(1 << 16)
                assert piece, "the service hung up"
                reply += piece
                if not _is_whole(reply):
                    continue
                assert reply.startswith(b"HTTP/1.1 200"), reply
                reply.clear()
                following = next(bodies, None)
                if following is None:
                    waiting.unregister(connection)
                else:
                    connection.sendall(HEAD % len(following) + following)


def _is_whole(reply: bytes | bytearray) -> bool:
    head, end, body = reply.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])


class Caller(asyncio.Protocol):
    """One such connection for who does other things meanwhile."""

    def __init__(self, bodies: Iterator[bytes], last: asyncio.Future[None]) -> None:
        self._bodies, self._last, self._reply = bodies, last, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if not _is_whole(self._reply):
            return
        if self._reply.startswith(b"HTTP/1.1 200"):
            self._reply = b""
            self._ask()
        else:
            self._fail(repr(self._reply))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the service hung up")

    def _fail(self, why: str) -> None:
        if not self._last.done():
            self._last.set_exception(AssertionError(why))
        self._transport.close()

    def _ask(self) -> None:
        body = next(self._bodies, None)
        if body is None:
            self._transport.close()
            self._last.set_result(None)
        else:
            self._transport.write(HEAD % len(body) + body)


async def _http(
    file: Path, concurrency: int, count: int, server: Sequence[str] = OURS, recipe: Callable[[], str] | None = None
) -> float:
    async with running(file, server) as (port, _):

        def load(callers: int, requests: int) -> None:
            # What a pass costs is measured, so nothing is remembered; the pipeline knows neither recipes nor that.
            bodies = (
                json.dumps({"texts": text} | ({"recipe": recipe(), "cache": False} if recipe else {})).encode()
                for text in _texts(requests)
            )
            ask_all(port, callers, bodies)

        load(concurrency, REQUESTS[concurrency])
        await asyncio.sleep(SETTLE)
        started = time.perf_counter()
        load(concurrency, count)
        return count / (time.perf_counter() - started)


@asynccontextmanager
async def running(file: Path, server: Sequence[str], **environ: str) -> AsyncIterator[tuple[int, int]]:
    """The port and the process id of a server that is ready, with these settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-m", *(part.format(file=file, port=port) for part in server)]
    process = subprocess.Popen(command, env={**os.environ, "TWEEN_LOG_LEVEL": "error", "TWEEN_DRAIN_S": "0", **environ})
    try:
        while True:
            assert process.poll() is None, "the service ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    break
            except OSError:
                await asyncio.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


CHOOSER = random.Random(9)

WAYS: dict[str, Way] = {
    "one recipe": partial(_http, recipe=lambda: RECIPE),
    "8 recipes": partial(_http, recipe=lambda: f"finance@{CHOOSER.randrange(1, 9) / 10}"),
    "every request its own t": partial(_http, recipe=lambda: f"finance@{CHOOSER.random():.6f}"),
    "in process": _inside,
    "pipeline": partial(_http, server=PIPELINE),
}


def main(file: Path, rounds: int = 5, count: int = 2_000) -> None:
    """The ways take turns, so that what else the machine does falls on all alike."""
    ways = ("in process", "one recipe", "8 recipes", "every request its own t")
    measured = [[_measure(way, file, 32, count) for way in ways] for _ in range(rounds)]
    inside, *http = (statistics.median(values) for values in zip(*measured, strict=True))
    print("| way, 32 callers | requests/s | of the engine in process | of one recipe |\n|---|---|---|---|")
    print(f"| {ways[0]} | {inside:.0f} | | |")
    for way, rate in zip(ways[1:], http, strict=True):
        print(f"| over HTTP, {way} | {rate:.0f} | {rate / inside:.2f} | {rate / http[0]:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main(demo_bank())
    else:
        name, path, callers, requests = sys.argv[1:]
        print(asyncio.run(WAYS[name](Path(path), int(callers), int(requests))))
