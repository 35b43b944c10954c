"""`make chaos`: what the service promises under overload and faults, kept or not, on real processes.

    python -m tests.promises [NAME ...]

Prints the table of docs/reliability.md and fails if a promise is not kept. Three pods share one redis-server and stand
behind an HAProxy, which is what a Service of Kubernetes does for them; it has to be installed (Debian: haproxy).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import BertConfig

sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
from servers import Server, free_port  # noqa: E402

LONG = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
TOKENS = 512
PROXY = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
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
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """The status of the answer; 0 if the connection broke before there was one."""
        used = self._streams is not None
        status = await self._ask(method, path, body)
        # A server may close a connection that was idle for seconds; every client then takes a new one.
        return await self._ask(method, path, body) if status == 0 and used else status

    async def _ask(self, method: str, path: str, body: bytes) -> int:
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            writer.write(head.encode() + b"\r\n\r\n" + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(answer.partition(b"content-length:")[2].split(b"\r\n")[0]))
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

    def __init__(self, bank: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-W", "ignore", "-m", "app", "serve", "--bank", str(bank)]
        self._settings = settings
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environ = {**os.environ, "TWEEN_LOG_LEVEL": "error", **self._settings}
        self.process = await asyncio.create_subprocess_exec(*self._command, "--port", str(self.port), env=environ)
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
async def pod(bank: Path, **settings: str) -> AsyncIterator[Pod]:
    one = Pod(bank, settings)
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
    assert binary is not None, "haproxy is not installed (Debian: apt-get install haproxy)"
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


# -- promises ------------------------------------------------------------------------------------------


def long_texts(folder: Path) -> Path:
    """A bank whose model is slow enough that a few callers overload two cores."""
    pico.CONFIGS["long"] = BertConfig(
        **{**pico.CONFIGS["bert"].to_diff_dict(), **LONG, "max_position_embeddings": TOKENS}
    )
    bank = pico.write_bank(folder, "long")
    for file in bank.glob("*/tokenizer_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": TOKENS}))
    return bank / "bank.toml"


async def overload(folder: Path) -> list[Outcome]:
    """Ten times of what the service can do, from callers who do not wait for each other."""
    body = body_of(TOKENS - 2)
    async with pod(long_texts(folder), TWEEN_QUEUE_MS="25", TWEEN_PREDICTION_CACHE="false") as service:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(6, stop.set)
        capacity = (await one_after_the_other(service.port, body, 4, stop)).count[200] / 6
        calm = await at_a_rate(service.port, body, capacity / 2, 10)
        probes, over = Seen(), asyncio.Event()

        async def probe() -> None:
            connection = Connection(service.port)
            while not over.is_set():
                await timed(connection, probes, "GET", "/livez")
                await asyncio.sleep(0.1)

        probing = asyncio.create_task(probe())
        storm = await at_a_rate(service.port, body, capacity * 10, 10)
        over.set()
        await probing
    times, refused = storm.p99() / calm.p99(), storm.p99(429)
    served = storm.count[200] / 10 / capacity
    return [
        Outcome(
            "at 10 times its capacity the service answers 200 or 429, and nothing else",
            f"{storm.count[200]} answered, {storm.count[429]} refused, {dict(storm.count)} in all",
            set(storm.count) == {200, 429},
        ),
        Outcome(
            "whom it serves then waits at most 3 times as long (p99) as at half its capacity",
            f"{storm.p99() * 1e3:.0f} ms against {calm.p99() * 1e3:.0f} ms: {times:.1f} times",
            times < 3,
        ),
        Outcome(
            "it goes on serving what it can",
            f"{served:.0%} of its capacity of {capacity:.0f} requests a second",
            served > 0.6,
        ),
        Outcome(
            "whom it refuses learns that at once (p99)",
            f"{refused * 1e3:.0f} ms",
            refused < 0.25,
        ),
        Outcome(
            "probes answer meanwhile (p99)",
            f"{probes.p99() * 1e3:.0f} ms",
            probes.p99() < 0.25 and set(probes.count) == {200},
        ),
    ]


async def killed(folder: Path) -> list[Outcome]:
    """kill -9 of one of three pods."""
    callers = 12
    async with three_pods(folder) as (port, pods):

        async def kill() -> None:
            pods[0].send(signal.SIGKILL)
            await pods[0].ended()
            await asyncio.sleep(2)
            await pods[0].start()

        seen = await during(kill(), port, body_of(10), callers)
    lost = seen.count.total() - seen.count[200]
    return [
        Outcome(
            "kill -9 of one of three pods costs no more than the requests that were in it",
            f"{lost} of {seen.count.total()} requests lost, with {callers} callers",
            lost <= callers,
        )
    ]


async def rolling(folder: Path) -> list[Outcome]:
    """Every pod is asked to leave and started anew, one after the other, as a rolling update does it."""
    codes = []
    async with three_pods(folder, TWEEN_DRAIN_S="2") as (port, pods):

        async def restart() -> None:
            for one in pods:
                one.send(signal.SIGTERM)
                codes.append(await one.ended())
                await one.start()
                await asyncio.sleep(0.5)

        seen = await during(restart(), port, body_of(10), 12)
    lost = seen.count.total() - seen.count[200]
    return [
        Outcome(
            "a rolling restart loses no request, and pods leave by themselves",
            f"{lost} of {seen.count.total()} requests lost; exit codes {codes}; {dict(seen.count)}",
            lost == 0 and set(codes) <= {0, -signal.SIGTERM},
        )
    ]


PROMISES: dict[str, Callable[[Path], Awaitable[list[Outcome]]]] = {
    "overload": overload,
    "killed": killed,
    "rolling": rolling,
}


def main() -> None:
    print("| promise | seen | kept |\n|---|---|---|", flush=True)
    broken = 0
    for name in sys.argv[1:] or PROMISES:
        with tempfile.TemporaryDirectory() as folder:
            for outcome in asyncio.run(PROMISES[name](Path(folder))):
                print(f"| {outcome.promise} | {outcome.seen} | {'yes' if outcome.kept else '**no**'} |", flush=True)
                broken += not outcome.kept
    sys.exit(min(broken, 1))


if __name__ == "__main__":
    main()
