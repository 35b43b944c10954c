"""`python -m tests.bench.fetch`: a blend of 268 MB out of Redis, beside a bare socket reader, redis-py and the rebuild;
and the same blend into Redis.

The bare reader asks for one chunk after the other on a blocking socket and receives each into the slot, without
looking at it: nothing that reads the same chunks one by one can be faster. Ours reads the manifest, checks every
chunk's checksum and notes the use. All ways take turns, several rounds, in one process; read the ratios.
"""

from __future__ import annotations

import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis as redis_py
import torch
import uvloop
from redis.asyncio import Redis

from app.cache.bulk_transfer import CHUNK, BulkTransfer
from app.cache.redis_tier import BlendFormat, RedisTier
from app.cache.sharing_rule import SharingRule
from app.cluster.redis_client import connect
from app.cluster.redis_url import RedisUrl
from tests.servers import server

WEIGHTS = 67_108_864
ROUNDS = 7
KEY = "0" * 32
BARE = "a bare socket reader"
REDIS_PY_SET = "redis-py asyncio, SET one by one"

Way = Callable[[], Awaitable[object]]


class Bench:
    """A blend in Redis, and the ways to get it into a slot."""

    def __init__(self, url: str) -> None:
        address = RedisUrl.parse(url)
        self.client, self.chunks = connect(address), BulkTransfer(address)
        shape = BlendFormat("f" * 64, "0" * 64, "float32", WEIGHTS * 4)
        self.tier = RedisTier(self.client, self.chunks, shape, SharingRule("always"), "bench", 3600, 4 * WEIGHTS * 4)
        self.redis = Redis.from_url(url)
        self.base, self.variant = torch.randn(WEIGHTS), torch.randn(WEIGHTS)
        self.slot, self.blend = torch.zeros(WEIGHTS), torch.lerp(self.base, self.variant, 0.4)
        self.view: memoryview = self.slot.view(torch.uint8).numpy().data
        self.blend_view: memoryview = self.blend.view(torch.uint8).numpy().data
        self.names = [f"{self.tier._prefix}:{{{KEY}}}:{index}" for index in range(self.chunks.count(WEIGHTS * 4))]
        self.socket = _socket(url)

    async def close(self) -> None:
        self.socket.close()
        await self.redis.aclose()
        await self.client.aclose()
        await self.chunks.aclose()

    async def put(self) -> None:
        assert await self.tier.put(KEY, "finance@0.4", self.blend, lambda: False)

    async def ours(self) -> None:
        assert await self.tier.get(KEY, "", self.slot)

    async def redis_py(self) -> None:
        """What the client offers: GET, and a copy of each value into the slot."""
        for index, name in enumerate(self.names):
            self.view[index * CHUNK : (index + 1) * CHUNK] = await self.redis.get(name)

    async def redis_py_set(self) -> None:
        for index, name in enumerate(self.names):
            await self.redis.set(name, bytes(self.blend_view[index * CHUNK : (index + 1) * CHUNK]), ex=3600)

    async def bare(self) -> None:
        head, tail = memoryview(bytearray(len(b"$%d\r\n" % CHUNK))), memoryview(bytearray(2))
        for index, name in enumerate(self.names):
            self.socket.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name.encode()))
            for part in (head, self.view[index * CHUNK : (index + 1) * CHUNK], tail):
                left = part
                while left:
                    left = left[self.socket.recv_into(left) :]

    async def rebuild(self) -> None:
        torch.lerp(self.base, self.variant, 0.4, out=self.slot)

    def reads(self) -> dict[str, Way]:
        return {
            "ours, checked": self.ours,
            BARE: self.bare,
            "redis-py asyncio, unchecked": self.redis_py,
            "rebuild by one lerp": self.rebuild,
        }

    def writes(self) -> dict[str, Way]:
        return {"ours, with checksums and rests": self.put, REDIS_PY_SET: self.redis_py_set}


def _socket(url: str) -> socket.socket:
    if url.startswith("unix://"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(url.removeprefix("unix://"))
        return made
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))


@dataclass
class Measured:
    """Seconds that a way took, and for how many of them it kept the event loop's thread at work, by round."""

    taken: list[float] = field(default_factory=list)
    working: list[float] = field(default_factory=list)


async def measure(url: str) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """The ways to read and the ways to write, taking turns, after a round that does not count."""
    bench = Bench(url)
    reads = {name: Measured() for name in bench.reads()}
    writes = {name: Measured() for name in bench.writes()}
    try:
        for round_number in range(ROUNDS + 1):
            for name, way in bench.writes().items():
                await bench.redis.flushall()
                await _timed(way, writes[name] if round_number else Measured())
            await bench.redis.flushall()
            await bench.put()
            for name, way in bench.reads().items():
                bench.slot.zero_()
                await _timed(way, reads[name] if round_number else Measured())
                assert torch.equal(bench.slot, bench.blend), name
    finally:
        await bench.close()
    return reads, writes


async def _timed(way: Way, into: Measured) -> None:
    started, worked = time.perf_counter(), time.thread_time()
    await way()
    into.taken.append(time.perf_counter() - started)
    into.working.append(time.thread_time() - worked)


def main() -> None:
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    with tempfile.TemporaryDirectory() as name, server(Path(name), f"unixsocket {name}/redis.sock") as made:
        with made.client() as client:
            version = client.info("server")["redis_version"]
        print(f"versions: python {platform.python_version()}, redis-server {version}, redis-py {redis_py.__version__}")
        for link, url in (("TCP on loopback", made.url), ("Unix socket", f"unix://{name}/redis.sock")):
            reads, writes = uvloop.run(measure(url))
            size = f"{WEIGHTS * 4 / 1e6:.0f} MB in chunks of {CHUNK // 2**20} MiB, {link}"
            _table(f"A blend read, {size}", reads, BARE)
            _table(f"A blend written, {size}", writes, REDIS_PY_SET)


def _table(title: str, results: dict[str, Measured], yardstick: str) -> None:
    print(f"\n{title}\n")
    print(f"| way | ms, median (min-max) | time against {yardstick} | the event loop's thread at work, ms, median |")
    print("|---|---|---|---|")
    unit = statistics.median(results[yardstick].taken)
    for name, found in results.items():
        median, low, high = statistics.median(found.taken), min(found.taken), max(found.taken)
        times = f"{median * 1e3:.0f} ({low * 1e3:.0f}-{high * 1e3:.0f})"
        print(f"| {name} | {times} | {median / unit:.2f} | {statistics.median(found.working) * 1e3:.0f} |")


if __name__ == "__main__":
    main()
