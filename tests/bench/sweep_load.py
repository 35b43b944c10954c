"""`python -m tests.bench.sweep_load`: what callers notice of a sweep in the pod that serves them.

One service on the demo bank is asked for predictions, nothing remembered, alone and beside a sweep, in turns: while the
sweep's texts go through the models, and while it chooses (its logits are remembered, so that it does nothing else).
Latencies of all rounds are taken together.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.demo import corpus
from app.demo.build import demo_bank
from tests.bench.requests import OURS, RECIPE, TEXTS, Caller, running

ROUNDS = 5
SECONDS = 2.5
"""Many short turns: what else the machine does then falls on all alike."""
SETTLE = 2.0
"""Seconds in which a sweep that was just ordered gets to its work."""
LOADS = {"4 callers, a pause of 100 ms on average": (4, 0.1), "8 callers without a pause": (8, 0.0)}
BESIDE = ("nothing", "passes of a sweep", "statistics of a sweep")


class TimedCaller(Caller):
    """Notes how long each answer took, and pauses before it asks again."""

    def __init__(self, bodies: Iterator[bytes], last: asyncio.Future[None], pause: float, took: list[float]) -> None:
        super().__init__(bodies, last)
        self._pause, self._took, self._asked = pause, took, 0.0

    def _ask(self) -> None:
        if self._asked:
            self._took.append(time.perf_counter() - self._asked)
        loop = asyncio.get_running_loop()
        if self._pause:
            loop.call_later(random.expovariate(1 / self._pause), self._ask_now)
        else:
            self._ask_now()

    def _ask_now(self) -> None:
        self._asked = time.perf_counter()
        super()._ask()


async def load(port: int, callers: int, pause: float) -> list[float]:
    """Seconds of each answer."""
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + SECONDS
    texts = itertools.takewhile(lambda _: time.perf_counter() < end, itertools.cycle(TEXTS))
    bodies = (json.dumps({"texts": text, "recipe": RECIPE, "cache": False}).encode() for text in texts)
    took: list[float] = []
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(callers)]
    for last in ends:
        await loop.create_connection(partial(TimedCaller, bodies, last, pause, took), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return took


def ask(port: int, path: str, body: object = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def order(rows: list[dict[str, str]], **more: object) -> dict[str, object]:
    return {"data": rows, "variant": "finance", **more}


async def sweeping(port: int, beside: str, rows: list[dict[str, str]]) -> None:
    """Keep a sweep going until this is cancelled."""
    for number in itertools.count():
        texts = [{**row, "text": f"{row['text']} {number} {random.random()}"} for row in rows]
        asked = order(texts, grid=list(np.linspace(0, 1, 101))) if beside == BESIDE[1] else order(rows, seed=number)
        sweep = (await asyncio.to_thread(ask, port, "/v1/sweeps", asked))["id"]
        try:
            while (await asyncio.to_thread(ask, port, f"/v1/sweeps/{sweep}"))["status"] in ("queued", "running"):
                await asyncio.sleep(0.2)
        finally:
            await asyncio.shield(asyncio.to_thread(ask, port, f"/v1/sweeps/{sweep}", None, "DELETE"))


async def main(file: Path) -> None:
    rows = [{"text": e.text, "label": e.label} for e in corpus.read("finance", "test")]
    took: dict[tuple[str, str], list[float]] = {(name, beside): [] for name in LOADS for beside in BESIDE}
    async with running(file, OURS) as (port, _):
        ask(port, "/v1/predict", {"texts": TEXTS[:64], "recipe": RECIPE})
        first = ask(port, "/v1/sweeps", order(rows))["id"]
        started = time.perf_counter()
        while ask(port, f"/v1/sweeps/{first}")["status"] != "done":
            await asyncio.sleep(0.1)
        print(f"A sweep of {len(rows)} texts, nothing else asked: {time.perf_counter() - started:.1f} s\n", flush=True)
        for _, (name, (callers, pause)), beside in itertools.product(range(ROUNDS), LOADS.items(), BESIDE):
            sweep = asyncio.create_task(sweeping(port, beside, rows)) if beside != BESIDE[0] else None
            await asyncio.sleep(SETTLE)
            took[name, beside] += await load(port, callers, pause)
            if sweep is not None:
                sweep.cancel()
                await asyncio.gather(sweep, return_exceptions=True)
    print("| load | beside | answers | p50, ms | p99, ms | p50 / alone | p99 / alone |\n|---|---|---|---|---|---|---|")
    for (name, beside), seconds in took.items():
        p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
        alone = np.percentile(took[name, BESIDE[0]], (50, 99)) * 1e3
        ratios = f"{p50 / alone[0]:.2f} | {p99 / alone[1]:.2f}"
        print(f"| {name} | {beside} | {len(seconds)} | {p50:.1f} | {p99:.1f} | {ratios} |")


if __name__ == "__main__":
    asyncio.run(main(demo_bank()))
