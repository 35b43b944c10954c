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
from pathlib import Path

import fastapi
import torch
import transformers

from app.demo.build import demo_bank
from app.models.bank import Bank, BankSpec, load_bank
from tests.bench import blend, forward, int8
from tests.bench.requests import rates

Ways = dict[str, tuple[Callable[[], None], int]]


def medians(ways: Ways, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Seconds of each way: median, minimum, maximum over `rounds`, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, (run, _) in ways.items():
            started = time.perf_counter()
            run()
            if round_number:
                times[name].append(time.perf_counter() - started)
    return {name: (statistics.median(t), min(t), max(t)) for name, t in times.items()}


def print_blends(bank: Bank) -> None:
    size = bank.arena.row_bytes
    print(f"\nOne blend, {size / 1e6:.0f} MB, base and one variant (float32)\n")
    print("| way | ms, median (min-max) | GB/s moved | speed against the copy | ours is faster |")
    print("|---|---|---|---|---|")
    ways = blend.ways(bank)
    results = medians(ways, rounds=25)
    speed = {name: ways[name][1] * size / median / 1e9 for name, (median, _, _) in results.items()}
    ours = results[blend.OURS][0]
    for name, (median, low, high) in results.items():
        print(
            f"| {name} | {median * 1e3:.1f} ({low * 1e3:.1f}-{high * 1e3:.1f}) | {speed[name]:.0f} | "
            f"{speed[name] / speed[blend.COPY]:.2f} | {median / ours:.1f} times |"
        )


def print_forward(file: Path, bank: Bank) -> None:
    print("\nTexts per second in one process, 8 to 64 tokens, by texts in a batch\n")
    print("| way | 1 | 8 | 32 | ours / this, 32 |")
    print("|---|---|---|---|---|")
    results = list(forward.rates(file))
    ours = results[0][1]
    for name, (one, eight, many), _ in results:
        print(f"| {name} | {one:.0f} | {eight:.0f} | {many:.0f} | {ours[2] / many:.2f} |")
    spread = max(value for _, _, values in results for value in values)
    print(f"\nLargest spread over {forward.ROUNDS} rounds, max / min: {spread:.2f}")
    print("\nAccuracy with int8 products, percent, on the demo's own and general test texts\n")
    print("| recipe | texts | float32 | int8 | same label |")
    print("|---|---|---|---|---|")
    for recipe, texts, exact, near, same in int8.accuracies(bank):
        print(f"| {recipe} | {texts} | {exact:.1f} | {near:.1f} | {same:.1f} |")


def print_requests(file: Path) -> None:
    print("\nRequests per second, one text each, recipe finance@0.4\n")
    print(
        "| concurrency | over HTTP | in process | HTTP / in process | FastAPI + transformers pipeline | HTTP / this |"
    )
    print("|---|---|---|---|---|---|")
    for concurrency, (http, inside, plain) in rates(file, ["one recipe", "in process", "pipeline"], (1, 8, 32)):
        print(f"| {concurrency} | {http:.0f} | {inside:.0f} | {http / inside:.2f} | {plain:.0f} | {http / plain:.2f} |")
    print("\nRequests per second over HTTP, by recipes\n")
    print("| concurrency | one recipe | 8 recipes | 8 / one | every request its own t | own / one |")
    print("|---|---|---|---|---|---|")
    for concurrency, (one, eight, own) in rates(file, ["one recipe", "8 recipes", "every request its own t"], (1, 32)):
        print(f"| {concurrency} | {one:.0f} | {eight:.0f} | {eight / one:.2f} | {own:.0f} | {own / one:.2f} |")


def main() -> None:
    file = demo_bank()
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(
        f"versions: python {platform.python_version()}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"transformers {transformers.__version__}, fastapi {fastapi.__version__}"
    )
    bank = load_bank(BankSpec.from_toml(file), torch.device("cpu"))
    print_blends(bank)
    print_forward(file, bank)
    print_requests(file)


if __name__ == "__main__":
    main()
