"""What a fleet asks of its one Redis, and what the caches answer: `python -m tests.bench.capacity [PODS ...]`.

Pods are real followers of aliases (`cluster/replicated.py`) with connections of their own, all in this process, on one
real redis-server. How often a prediction is remembered is worked out for texts that come as words do (Zipf): in a pod's
memory, the least recently used goes (Che's approximation, IEEE JSAC 20(7), 2002); in Redis, each lives for a day.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis
from scipy.optimize import brentq

sys.path.insert(0, str(Path(__file__).parent.parent))

from servers import Server  # noqa: E402

from app.cache.prediction_cache import ENTRY_BYTES, NEAR_BYTES  # noqa: E402
from app.cluster.document_store import DocumentStore  # noqa: E402
from app.cluster.replicated import Replicated  # noqa: E402
from app.errors import AliasConflict  # noqa: E402

FLEETS = (1, 10, 100, 1000)
REST_SECONDS = 5.0
MOVES = 5
CLASSES = 3
TEXTS = 1_000_000
ZIPF = 1.0
DAY = 86_400
PER_POD = 100.0
"""Requests a second."""


@dataclass(frozen=True)
class Move:
    """A document that tells when it was written."""

    name: str
    version: int
    gone_since: float | None = None

    def encoded(self) -> bytes:
        return str(self.version).encode()


async def fleet(pods: int, url: str) -> None:
    """Print what so many pods cost Redis at rest, and how long a moved alias takes to reach the last of them."""
    control = Redis.from_url(url)
    arrived: list[float] = []

    async def note(move: Move) -> None:
        arrived.append(time.perf_counter())

    def decode(name: str, document: bytes) -> Move:
        return Move(name, int(document))

    clients = [Redis.from_url(url) for _ in range(pods)]
    followers = [
        Replicated("aliases", DocumentStore(client, "fleet", "aliases"), decode, note, AliasConflict, "alias")
        for client in clients
    ]
    for start in range(0, pods, 50):
        await asyncio.gather(*(follower.start() for follower in followers[start : start + 50]))
    store = DocumentStore(control, "fleet", "aliases")
    await asyncio.sleep(2)

    before, started = await control.info(), time.perf_counter()
    await asyncio.sleep(REST_SECONDS)
    after, seconds = await control.info(), time.perf_counter() - started
    commands = (after["total_commands_processed"] - before["total_commands_processed"]) / seconds
    busy = sum(after[f"used_cpu_{kind}"] - before[f"used_cpu_{kind}"] for kind in ("user", "sys")) / seconds

    middle, last = [], []
    for version in range(1, MOVES + 1):
        arrived.clear()
        old = (await store.read()).documents.get("prod")
        moved = time.perf_counter()
        await store.swap("prod", old, Move("prod", version).encoded())
        while len(arrived) < pods:
            await asyncio.sleep(0.01)
        middle.append(statistics.median(arrived) - moved)
        last.append(max(arrived) - moved)
        await asyncio.sleep(0.5)
    print(
        f"| {pods} | {after['connected_clients'] - 1} | {commands:.0f} | {busy:.1%} | "
        f"{statistics.median(middle) * 1e3:.0f} | {statistics.median(last) * 1e3:.0f} |",
        flush=True,
    )
    await asyncio.gather(*(follower.close() for follower in followers))
    for client in [*clients, control]:
        await client.aclose()


def shares_of_texts() -> NDArray[np.float64]:
    """How often each text comes, (TEXTS,), adding up to 1."""
    weights = 1.0 / np.arange(1, TEXTS + 1) ** ZIPF
    return np.asarray(weights / weights.sum())


def in_memory(shares: NDArray[np.float64], room: int) -> NDArray[np.float64]:
    """Chance that each text is in a cache of so many that forgets the least recently used."""
    age = brentq(lambda age: (1 - np.exp(-shares * age)).sum() - room, 1, 1e12)
    return np.asarray(1 - np.exp(-shares * age))


def in_redis(shares: NDArray[np.float64], per_second: float, seconds: float) -> NDArray[np.float64]:
    """Chance that each text was written within so long, when each write lets it live for that time."""
    expected = shares * per_second * seconds
    return np.asarray(expected / (1 + expected))


def print_hits(pods: int) -> None:
    shares = shares_of_texts()
    room = NEAR_BYTES // (4 * CLASSES + ENTRY_BYTES)
    near = in_memory(shares, room)
    # A text that the pod remembers never asks Redis, and texts that come often are the ones that it remembers.
    missed = shares * (1 - near)
    far = in_redis(shares, pods * PER_POD * (1 - near), DAY)
    print(
        f"| {pods} | {pods * PER_POD:.0f} | {(shares * near).sum():.0%} | {(missed * far).sum():.0%} | "
        f"{(missed * (1 - far)).sum():.0%} | {pods * PER_POD * missed.sum():.0f} | "
        f"{pods * PER_POD * (missed * (1 - far)).sum():.0f} |"
    )


def main() -> None:
    fleets = [int(argument) for argument in sys.argv[1:]] or FLEETS
    print("What pods cost Redis at rest, and how long a moved alias takes to reach them\n")
    print("| pods | connections | commands a second | of one core of Redis | ms to half of them | ms to the last |")
    print("|---|---|---|---|---|---|")
    for pods in fleets:
        with tempfile.TemporaryDirectory() as folder:
            redis = Server(Path(folder), "maxclients 20000")
            try:
                asyncio.run(fleet(pods, redis.url))
            finally:
                redis.kill()
    texts = f"{TEXTS:,} texts (Zipf, exponent {ZIPF:g})"
    print(f"\nRemembered predictions: {texts}, {PER_POD:.0f} requests a second and pod\n")
    print("| pods | requests/s | in memory | in Redis | computed | look-ups in Redis/s | writes/s |")
    print("|---|---|---|---|---|---|---|")
    for pods in fleets:
        print_hits(pods)


if __name__ == "__main__":
    main()
