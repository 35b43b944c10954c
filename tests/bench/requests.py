"""Requests per second: our service over HTTP, our engine in process, transformers one text after the other."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import torch

from app.demo import corpus
from app.main import build_engine
from app.models.bank import BankSpec, load_bank
from app.settings import Settings
from app.weights.methods import METHODS

RECIPE = "finance@0.4"
ROUNDS = 3
SETTLE = 3.0
"""Seconds for which a service that has just built its blends is left to write them to Redis."""
REQUESTS = {1: 150, 8: 300, 32: 640}
TEXTS = [example.text for name in (corpus.GENERAL, *corpus.DOMAINS) for example in corpus.read(name, "test")]

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

Ask = Callable[[str], Awaitable[None]]


def rates(file: Path, ways: Sequence[str], concurrencies: Sequence[int]) -> Iterator[tuple[int, list[float]]]:
    """For each concurrency: median requests per second of each way, the ways taking turns."""
    for concurrency in concurrencies:
        rounds = [[_measure(way, file, concurrency, REQUESTS[concurrency]) for way in ways] for _ in range(ROUNDS)]
        yield concurrency, [statistics.median(values) for values in zip(*rounds, strict=True)]


def _measure(way: str, file: Path, concurrency: int, count: int) -> float:
    """One way in a process of its own: OpenMP's threads, once made, slow down whoever comes next."""
    command = [sys.executable, "-m", "tests.bench.requests", way, str(file), str(concurrency), str(count)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


async def _rate(ask: Ask, concurrency: int, count: int) -> float:
    texts = iter(TEXTS[:count])

    async def caller() -> None:
        for text in texts:
            await ask(text)

    for text in TEXTS[-64:]:  # warm, and what the scheduler has to learn it has learnt
        await ask(text)
    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return count / (time.perf_counter() - started)


async def _inside(file: Path, concurrency: int, count: int) -> float:
    async with AsyncExitStack() as resources:
        engine = await build_engine(Settings(), BankSpec.from_toml(file), resources)
        recipe = engine.cookbook.read(RECIPE)

        async def ask(text: str) -> None:
            await engine.predict([text], recipe)

        return await _rate(ask, concurrency, count)


async def _http(file: Path, concurrency: int, count: int, recipes: Callable[[], str] = lambda: RECIPE) -> float:
    async with _service(file) as port:
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def ask(text: str) -> None:
            # A bare client: a comfortable one would cost the two cores as much as the service.
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"texts": text, "recipe": recipes()}).encode()
            writer.write(HEAD % len(body) + body)
            reply = await reader.readuntil(b"\r\n\r\n")
            assert reply.startswith(b"HTTP/1.1 200"), reply
            length = next(line for line in reply.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            idle.append((reader, writer))

        for text in TEXTS[-64:]:
            await ask(text)
        await asyncio.sleep(SETTLE)
        rate = await _rate(ask, concurrency, count)
        for _, writer in idle:
            writer.close()
        return rate


@asynccontextmanager
async def _service(file: Path) -> AsyncIterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--bank", str(file), "--port", str(port)],
        env={**os.environ, "TWEEN_LOG_LEVEL": "error"},
    )
    try:
        while True:
            assert process.poll() is None, "the service ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    break
            except OSError:
                await asyncio.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


async def _transformers(file: Path, concurrency: int, count: int) -> float:
    """What a script does: the blend in a transformers model, a text at a time, whatever the concurrency."""
    bank = load_bank(BankSpec.from_toml(file), torch.device("cpu"))
    slot = bank.arena.new_vector()
    METHODS["linear"](bank.arena, {"base": 0.6, "finance": 0.4}, slot)
    model = bank.bind(slot)

    async def ask(text: str) -> None:
        with torch.inference_mode():
            model(**bank.tokenizer(text, truncation=True, return_tensors="pt")).logits.softmax(-1).tolist()

    return await _rate(ask, 1, count)


async def _value(awaitable: Awaitable[float]) -> float:
    return await awaitable


CHOOSER = random.Random(9)

WAYS: dict[str, Callable[[Path, int, int], Awaitable[float]]] = {
    "one recipe": _http,
    "8 recipes": partial(_http, recipes=lambda: f"finance@{CHOOSER.randrange(1, 9) / 10}"),
    "every request its own t": partial(_http, recipes=lambda: f"finance@{CHOOSER.random():.6f}"),
    "in process": _inside,
    "transformers": _transformers,
}

if __name__ == "__main__":
    way, file, concurrency, count = sys.argv[1:]
    print(asyncio.run(_value(WAYS[way](Path(file), int(concurrency), int(count)))))
