"""`make soak`: 100,000 requests with 5,000 recipes while Redis comes and goes; no request fails, nothing grows.

    python -m tests.soak [REQUESTS]

Prints a line every few seconds: requests answered, memory (proportional set size: what processes share counts once),
open files, and whether Redis is up. Fails if a request fails, or if memory or files grow after the first fifth.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
from servers import Server  # noqa: E402

from tests.bench.requests import OURS, Caller, running  # noqa: E402

RECIPES = 5_000
CALLERS = 32
UP_SECONDS, DOWN_SECONDS, SAMPLE_SECONDS = 8.0, 3.0, 3.0
SETTINGS = {"TWEEN_WORKERS": "2", "TWEEN_MEMORY_TIER_MIB": "16"}
GROWTH = 1.1
"""How much memory may grow between the first fifth of the requests and the end."""


@dataclass
class Sample:
    """Bytes and open files of the service with all its processes, after so many answers."""

    answers: int
    bytes: int
    files: int


class Traffic:
    """Bodies of requests, counted as they are taken."""

    def __init__(self, requests: int) -> None:
        self.taken = 0
        self._requests = requests
        self._chooser = random.Random(1)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.taken == self._requests:
            raise StopIteration
        self.taken += 1
        words = " ".join(self._chooser.choices(pico.WORDS, k=self._chooser.randrange(1, 12)))
        recipe = f"angry@{self._chooser.randrange(1, RECIPES) / RECIPES}"
        return json.dumps({"texts": words, "recipe": recipe}).encode()


def family_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def measure(pid: int, answers: int) -> Sample:
    size = files = 0
    for one in family_of(pid):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            files += len(os.listdir(f"/proc/{one}/fd"))
        except OSError:
            continue
        size += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) * 1024
    return Sample(answers, size, files)


async def come_and_go(redis: Server) -> None:
    while True:
        await asyncio.sleep(UP_SECONDS)
        redis.kill()
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(redis.start)


async def soak(requests: int, folder: Path) -> list[Sample]:
    bank = pico.write_bank(folder, "bert") / "bank.toml"
    redis = Server(folder)
    os.environ |= SETTINGS | {"REDIS_URL": redis.url}
    loop, traffic, samples = asyncio.get_running_loop(), Traffic(requests), []
    try:
        async with running(bank, OURS) as (port, pid):
            trouble = asyncio.create_task(come_and_go(redis))
            ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(CALLERS)]
            for end in ends:
                await loop.create_connection(partial(Caller, traffic, end), "127.0.0.1", port)
            answered = asyncio.gather(*ends)
            started = time.monotonic()
            while not answered.done():
                await asyncio.wait([answered], timeout=SAMPLE_SECONDS)
                samples.append(measure(pid, traffic.taken))
                shown = samples[-1]
                print(
                    f"{time.monotonic() - started:6.0f} s {shown.answers:8d} requests "
                    f"{shown.bytes / 2**20:7.0f} MiB {shown.files:5d} files",
                    flush=True,
                )
            trouble.cancel()
            await asyncio.gather(trouble, return_exceptions=True)
            answered.result()
    finally:
        redis.kill()
    return samples


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        samples = asyncio.run(soak(requests, Path(folder)))
    early = [sample for sample in samples if sample.answers >= requests / 5]
    first, last = early[0], early[-1]
    growth = last.bytes / first.bytes
    print(f"memory: {growth:.2f} times that after the first fifth; files: {first.files} to {last.files}")
    assert growth < GROWTH, "memory grows"
    assert last.files <= first.files + 4, "open files grow"  # a pool may hold a few connections more


if __name__ == "__main__":
    main()
