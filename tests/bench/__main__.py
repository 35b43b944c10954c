"""`make bench`: what a blend costs and how many requests are answered, beside the plain ways of doing it.

Every figure is a median over rounds in which the ways take turns, so that a machine whose speed drifts
treats them alike; read the ratios.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import fastapi
import torch
import transformers

from app.demo.build import demo_bank
from app.models.bank import BankSpec, load_bank
from tests.bench import blend
from tests.bench.requests import rates

Ways = dict[str, Callable[[], None]]


def medians(ways: Ways, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Seconds of each way: median, minimum, maximum over `rounds`, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if round_number:
                times[name].append(time.perf_counter() - started)
    return {name: (statistics.median(values), min(values), max(values)) for name, values in times.items()}


def main() -> None:
    file = demo_bank()
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(
        f"versions: python {platform.python_version()}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"transformers {transformers.__version__}, fastapi {fastapi.__version__}"
    )
    bank = load_bank(BankSpec.from_toml(file), torch.device("cpu"))

    print(f"\nOne blend, {bank.arena.row_bytes / 1e6:.0f} MB, base and one variant (float32)\n")
    print("| way | ms, median (min-max) | time against the copy |")
    print("|---|---|---|")
    results = medians(blend.ways(bank), rounds=25)
    copy = results[blend.COPY][0]
    for name, (median, low, high) in results.items():
        print(f"| {name} | {median * 1e3:.1f} ({low * 1e3:.1f}-{high * 1e3:.1f}) | {median / copy:.2f} |")

    print("\nRequests per second, one text each (8 to 60 tokens), recipe finance@0.4\n")
    print("| concurrency | over HTTP | in process | HTTP / in process | transformers, one by one | HTTP / this |")
    print("|---|---|---|---|---|---|")
    for concurrency, http, inside, plain in rates(file):
        print(f"| {concurrency} | {http:.0f} | {inside:.0f} | {http / inside:.2f} | {plain:.0f} | {http / plain:.2f} |")


if __name__ == "__main__":
    main()
