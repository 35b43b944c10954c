"""Pods as processes, a proxy in front of three of them, and callers who note what they meet.

The proxy is HAProxy, which does what a Service of Kubernetes does; it has to be installed (Debian: haproxy).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
from servers import Server, free_port  # noqa: E402

PROXY = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout check 2s
    retries 2
    option redispatch
    retry-on conn-failure empty-response
frontend all
    bind 127.0.0.1:{port}
    default_backend pods
backend pods
    balance leastconn
    option httpchk GET /readyz
    http-check expect status 200
    default-server inter 200ms fall 1 rise 1
"""


class Absent(Exception):
    """What a scenario needs and this machine lacks, as a sentence."""


@dataclass
class Seen:
    """What callers met: seconds of answers by status; 0 stands for a connection that broke."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    @property
    def count(self) -> Counter[int]:
        return Counter({status: len(seconds) for status, seconds in self.seconds.items()})

    def p99(self, status: int = 200) -> float:
        return statistics.quantiles(self.seconds[status], n=100)[98]


@dataclass(frozen=True)
class Outcome:
    """A promise, what was seen, and whether that keeps it."""

    promise: str
    seen: str
    kept: bool


# -- callers -------------------------------------------------------------------------------------------


class Connection:
    """One connection that is opened when it is needed, and again when it broke."""

    def __init__(self, port: int) -> None:
        self.body = b""
        """That of the last answer."""
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", header: str = "") -> int:
        """The status of the answer; 0 if the connection broke before there was one. `header`: a further line."""
        used = self._streams is not None
        status = await self._ask(method, path, body, header)
        # A server may close a connection that was idle for seconds; every client then takes a new one.
        return await self._ask(method, path, body, header) if status == 0 and used else status

    async def tell(self, method: str, path: str, what: object = None, header: str = "") -> int:
        """The same with a body of JSON."""
        return await self.ask(method, path, b"" if what is None else json.dumps(what).encode(), header)

    async def _ask(self, method: str, path: str, body: bytes, header: str) -> int:
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            head = [
                f"{method} {path} HTTP/1.1",
                "Host: localhost",
                "Content-Type: application/json",
                *([header] if header else []),
            ]
            lines = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""])
            writer.write(lines.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            self.body = await reader.readexactly(int(answer.partition(b"content-length:")[2].split(b"\r\n")[0]))
            if b"connection: close" in answer:
                self.close()
            return int(answer.split()[1])
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def timed(connection: Connection, seen: Seen, method: str, path: str, body: bytes = b"") -> None:
    started = time.perf_counter()
    status = await connection.ask(method, path, body)
    seen.add(status, time.perf_counter() - started)


async def one_after_the_other(port: int, body: Callable[[], bytes], callers: int, stop: asyncio.Event) -> Seen:
    """A closed loop: each caller asks as soon as he was answered."""
    seen = Seen()

    async def caller() -> None:
        connection = Connection(port)
        while not stop.is_set():
            await timed(connection, seen, "POST", "/v1/predict", body())
        connection.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return seen


async def at_a_rate(port: int, body: Callable[[], bytes], per_second: float, seconds: float) -> Seen:
    """An open loop: requests come as they do from many people (Poisson), however slow the answers are."""
    seen, free, asked = Seen(), [], []
    chooser, ends = random.Random(5), time.perf_counter() + seconds
    due = time.perf_counter()

    async def ask() -> None:
        connection = free.pop() if free else Connection(port)
        await timed(connection, seen, "POST", "/v1/predict", body())
        free.append(connection)

    while due < ends:
        due += chooser.expovariate(per_second)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask()))
    await asyncio.gather(*asked)
    for connection in free:
        connection.close()
    return seen


async def during(work: Awaitable[None], port: int, body: Callable[[], bytes], callers: int) -> Seen:
    """What a closed loop meets while something happens, and a second before and after."""
    stop = asyncio.Event()
    load = asyncio.create_task(one_after_the_other(port, body, callers, stop))
    await asyncio.sleep(1)
    await work
    await asyncio.sleep(1)
    stop.set()
    return await load


def body_of(tokens: int) -> Callable[[], bytes]:
    chooser = random.Random(3)

    def body() -> bytes:
        words = " ".join(chooser.choices(pico.WORDS, k=tokens))
        return json.dumps({"texts": words, "recipe": "angry@0.4", "cache": False}).encode()

    return body


# -- pods ----------------------------------------------------------------------------------------------


class Pod:
    """A service in a process of its own."""

    def __init__(self, bank: Path, settings: Mapping[str, str], log: Path | None = None) -> None:
        """`log`: the file that gets what it logs as an error, beside what it prints; otherwise that is shown."""
        self.port = free_port()
        self.bank = bank
        self.log = log
        self._settings = settings
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environ = {**os.environ, "TWEEN_LOG_LEVEL": "error", **self._settings}
        command = [sys.executable, "-W", "ignore", "-m", "app", "serve", "--bank", str(self.bank)]
        command += ["--port", str(self.port)]
        with open(self.log, "ab") if self.log else contextlib.nullcontext() as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, env=environ, stderr=log, start_new_session=True
            )
        connection = Connection(self.port)
        while await connection.ask("GET", "/readyz") != 200:
            assert self.process.returncode is None, "the service ended"
            await asyncio.sleep(0.1)
        connection.close()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        assert self.process is not None
        return await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@contextlib.asynccontextmanager
async def pod(bank: Path, log: Path | None = None, **settings: str) -> AsyncIterator[Pod]:
    one = Pod(bank, settings, log)
    try:
        await one.start()
        yield one
    finally:
        await one.stop()


@contextlib.asynccontextmanager
async def three_pods(folder: Path, **settings: str) -> AsyncIterator[tuple[int, list[Pod]]]:
    """The port of a proxy, and the pods behind it."""
    bank = pico.write_bank(folder, "bert") / "bank.toml"
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if binary is None:
        raise Absent("haproxy is not installed (Debian: apt-get install haproxy)")
    redis, port = Server(folder), free_port()
    pods = [Pod(bank, {"TWEEN_WORKERS": "0", "REDIS_URL": redis.url, **settings}) for _ in range(3)]
    servers = "".join(f"    server pod{n} 127.0.0.1:{one.port} check\n" for n, one in enumerate(pods))
    (folder / "haproxy.cfg").write_text(PROXY.format(port=port) + servers)
    proxy = None
    try:
        await asyncio.gather(*(one.start() for one in pods))
        proxy = await asyncio.create_subprocess_exec(binary, "-q", "-f", str(folder / "haproxy.cfg"))
        connection = Connection(port)
        while await connection.ask("GET", "/livez") != 200:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        yield port, pods
    finally:
        if proxy is not None:
            proxy.kill()
            await proxy.wait()
        for one in pods:
            await one.stop()
        redis.kill()
