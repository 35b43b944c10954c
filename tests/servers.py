"""Real redis-servers that a test may kill, pause, fill and bring back, and a line to them that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from app.cluster.embedded_redis import find_server

START_SECONDS = 60.0
"""Long, because a busy machine must fail no test; nothing waits for it where all is well."""


def free_port() -> int:
    """A port below 50,000, so that a cluster's bus finds its own ten thousand above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 50_000:
            return port


class Server:
    """A redis-server on a port of 127.0.0.1. Its configuration is a file, which a Sentinel rewrites."""

    def __init__(self, folder: Path, *lines: str, sentinel: bool = False) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._sentinel = sentinel
        self._file = folder / f"redis-{self.port}.conf"
        data = [] if sentinel else ['save ""', "appendonly no", f"cluster-config-file nodes-{self.port}.conf"]
        common = [f"port {self.port}", "bind 127.0.0.1", f"dir {folder}", *data]
        self._file.write_text("\n".join([*common, *lines]) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        binary = find_server()
        assert binary is not None
        command = [binary, str(self._file), *(["--sentinel"] if self._sentinel else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: self._answers() or self._has_ended())
        assert not self._has_ended(), f"redis-server does not start: {self._file.read_text()}"

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def client(self, **options: object) -> Redis:
        return Redis(port=self.port, **options)  # type: ignore[arg-type]

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As `kill -9` does it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def server(folder: Path, *lines: str, sentinel: bool = False) -> Iterator[Server]:
    made = Server(folder, *lines, sentinel=sentinel)
    try:
        yield made
    finally:
        made.kill()


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """A cluster whose nodes share the slots; made of plain commands, as the tool for it is another program."""
    with contextlib.ExitStack() as stack:
        settings = ("cluster-enabled yes", "cluster-node-timeout 1000")
        servers = [stack.enter_context(server(folder, *settings)) for _ in range(nodes)]
        share = -(-16384 // nodes)
        clients = [stack.enter_context(made.client()) for made in servers]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTS", *range(number * share, min((number + 1) * share, 16384)))
            client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port)
        until(lambda: all(c.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for c in clients))
        until(lambda: all(len(c.execute_command("CLUSTER SLOTS")) == nodes for c in clients))
        yield servers


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[tuple[list[Server], list[Server]]]:
    """A master, its replica, and three Sentinels that notice within a second when it is gone."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(server(folder))
        replica = stack.enter_context(server(folder, f"replicaof 127.0.0.1 {master.port}"))
        watch = [
            f"sentinel monitor main 127.0.0.1 {master.port} 2",
            "sentinel down-after-milliseconds main 700",
            "sentinel failover-timeout main 3000",
        ]
        sentinels = [stack.enter_context(server(folder, *watch, sentinel=True)) for _ in range(3)]
        clients = [stack.enter_context(made.client()) for made in sentinels]
        until(lambda: all(_sees(client, sentinels=2, replicas=1) for client in clients))
        yield [master, replica], sentinels


def _sees(client: Redis, sentinels: int, replicas: int) -> bool:
    state = client.sentinel_master("main")
    return state["num-other-sentinels"] == sentinels and state["num-slaves"] == replicas


def until(true: object, seconds: float = START_SECONDS) -> None:
    """Wait until a condition holds; what it raises because a server is not there yet counts as no."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError, OSError, KeyError):
            if true():  # type: ignore[operator]
                return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} seconds")


class Line:
    """A TCP proxy to a server on 127.0.0.1, in a thread of its own. `state` may be changed while it runs.

    `up` forwards; `cut` hangs up on everybody; `hang up once` on whoever speaks next; `silent` takes connections and
    bytes and never answers; a number is the bytes a second that come back. With a TLS context it is a TLS server in
    front of a plain one.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.state: str | int = "up"
        self.connections = 0
        self._target = port
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls), self._loop
        )
        self._server = listening.result()
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{self.port}"

    def cut(self) -> None:
        self.state = "cut"
        self._loop.call_soon_threadsafe(self._hang_up)

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            self._hang_up()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.state == "cut":
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            ends = {writer, back}
            self._writers |= ends
            await asyncio.gather(self._pass(reader, back, paced=False), self._pass(there, writer, paced=True))
            self._writers -= ends
        writer.transport.abort()  # where nobody was there to connect to

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, paced: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.state == "hang up once":
                    self.state = "up"
                    break
                while self.state == "silent":
                    await asyncio.sleep(0.02)
                if paced and isinstance(self.state, int):
                    await asyncio.sleep(len(data) / self.state)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextlib.contextmanager
def line_to(port: int, tls: ssl.SSLContext | None = None) -> Iterator[Line]:
    made = Line(port, tls)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def messages_lost(redis: Redis) -> Iterator[None]:
    """Whoever subscribes is cut off at once, again and again."""
    heard = threading.Event()

    def cut() -> None:
        while not heard.is_set():
            redis.client_kill_filter(_type="pubsub")
            time.sleep(0.001)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        heard.set()
        thread.join()
