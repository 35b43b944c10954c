"""`python -m tests.bench.cache_hits`: what remembered predictions and blends in memory save and cost.

Two services share a Redis; one fills it, the other is measured, so that it meets predictions that only Redis holds.
The ways take turns on that one service in every round; figures are medians, and ratios are taken round by round.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from app.cluster.embedded_redis import EmbeddedRedis, find_server
from app.demo.build import demo_bank
from app.main import build_engine
from app.models.bank import BankSpec
from app.serving.engine import Engine
from app.settings import Settings
from tests.bench.requests import OURS, RECIPE, TEXTS, Caller, running

ROUNDS = 7
CONCURRENCIES = (1, 8, 32)
RUN = 400
"""Texts of a round that are run, by every way that runs them."""
WAYS = ("forward pass", "in memory", "in Redis", "new, looked up in vain")


async def rate(port: int, texts: Sequence[str], concurrency: int, cache: bool = True) -> float:
    """Requests per second, one text each."""
    loop = asyncio.get_running_loop()
    bodies = (json.dumps({"texts": text, "recipe": RECIPE, "cache": cache}).encode() for text in texts)
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(concurrency)]
    started = time.perf_counter()
    for end in ends:
        await loop.create_connection(partial(Caller, bodies, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return len(texts) / (time.perf_counter() - started)


@asynccontextmanager
async def services(file: Path) -> AsyncIterator[tuple[int, int]]:
    """The ports of two services on one Redis."""
    server = find_server()
    assert server is not None
    redis = EmbeddedRedis(server, 256)
    try:
        async with (
            running(file, OURS, REDIS_URL=redis.url) as (filling, _),
            running(file, OURS, REDIS_URL=redis.url) as (measured, _),
        ):
            yield filling, measured
    finally:
        redis.stop()


async def print_rates(file: Path) -> None:
    async with services(file) as (filling, measured):
        numbers = itertools.count()

        def new() -> list[str]:
            """Texts that nobody has seen, as long as the others."""
            number = next(numbers)
            return [f"{text} {number}" for text in TEXTS[:RUN]]

        for port in (filling, measured):
            await rate(port, TEXTS[-128:], 8, cache=False)
        await rate(measured, TEXTS, 8)
        for concurrency in CONCURRENCIES:
            rounds: list[list[float]] = []
            for _ in range(ROUNDS):
                shared = new()
                await rate(filling, shared, 32)
                await asyncio.sleep(0.1)
                rounds.append(
                    [
                        await rate(measured, new(), concurrency, cache=False),
                        await rate(measured, TEXTS, concurrency),
                        await rate(measured, shared, concurrency),
                        await rate(measured, new(), concurrency),
                    ]
                )
            columns = list(zip(*rounds, strict=True))
            rates = [f"{statistics.median(column):.0f}" for column in columns]
            ratios = [
                f"{statistics.median(way / run for way, run in zip(column, columns[0], strict=True)):.2f}"
                for column in columns[1:]
            ]
            print(f"| {concurrency} | {' | '.join(rates)} | {' | '.join(ratios)} |")


async def memory_hit(file: Path) -> tuple[float, float, float]:
    """Microseconds of getting a blend that lies in memory, of getting a member, and of a whole prediction with it."""
    async with AsyncExitStack() as resources:
        engine = await build_engine(Settings(prediction_cache=False), BankSpec.from_toml(file), resources)
        await engine.predict([TEXTS[0]], engine.cookbook.read(RECIPE))
        rounds = [
            [await _getting(engine, RECIPE), await _getting(engine, "finance"), await _predicting(engine)]
            for _ in range(ROUNDS)
        ]
    blend, member, whole = (statistics.median(values) * 1e6 for values in zip(*rounds, strict=True))
    return blend, member, whole


async def _getting(engine: Engine, text: str, times: int = 2000) -> float:
    started = time.perf_counter()
    for _ in range(times):
        async with engine.blends.use(engine.cookbook.read(text), 20) as weights:
            assert weights.source == "memory"
    return (time.perf_counter() - started) / times


async def _predicting(engine: Engine, times: int = 100) -> float:
    started = time.perf_counter()
    for text in TEXTS[:times]:
        await engine.predict([text], engine.cookbook.read(RECIPE))
    return (time.perf_counter() - started) / times


def main() -> None:
    file = demo_bank()
    print(f"Requests per second over HTTP, one text each, recipe {RECIPE}; medians of {ROUNDS} rounds\n")
    print(f"| concurrency | {' | '.join(WAYS)} | {' | '.join(f'{way} / pass' for way in WAYS[1:])} |")
    print("|---|---|---|---|---|---|---|---|")
    asyncio.run(print_rates(file))
    blend, member, whole = asyncio.run(memory_hit(file))
    print("\nA blend that lies in memory, from the recipe's text to its weights\n")
    print("| blend in memory, us | member of the bank, us | whole prediction in process, us | share |")
    print("|---|---|---|---|")
    print(f"| {blend:.0f} | {member:.0f} | {whole:.0f} | {blend / whole:.3f} |")


if __name__ == "__main__":
    main()
