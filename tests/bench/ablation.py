"""What each scheduling trick gains: `python -m tests.bench.ablation [ROUNDS]`.

Requests per second over HTTP with everything, and without one trick at a time, at 1, 8 and 32 callers. The ways take
turns, each in a service of its own, and each round gives a ratio of a pair that ran side by side; the table shows the
median ratio and the least and the greatest. A trick that gains less than 3 % may go. Run it on a quiet machine: a
spread wider than the gain says nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import app.__main__
from app.api.http_server.http_protocol import CoalescingTransport
from app.demo.build import demo_bank
from app.serving import worker_process
from app.serving.batcher import Batcher
from app.serving.coalescing import Coalescing
from tests.bench.requests import RECIPE, REQUESTS, _http

CALLERS = (1, 8, 32)
WORTH = 1.03


def _without_affinity() -> None:
    worker_process.move_to = lambda core: None


def _without_waiting() -> None:
    Coalescing.patience = lambda self, now: 0.0  # type: ignore[method-assign]


def _without_settling() -> None:
    async def settle(self: Batcher) -> None:
        pass

    Batcher._settle = settle  # type: ignore[method-assign]


def _without_gathering() -> None:
    def write(self: CoalescingTransport, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    CoalescingTransport.write = write  # type: ignore[method-assign]


WITHOUT: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "cpu_affinity": _without_affinity,
    "coalescing": _without_waiting,
    "_settle": _without_settling,
    "CoalescingTransport": _without_gathering,
}


def measured(trick: str, file: Path, callers: int) -> float:
    """Requests per second without this trick."""
    server = ("tests.bench.ablation", "serve", trick, "{file}", "{port}")
    measure = partial(_http, server=server, recipe=lambda: RECIPE)
    return asyncio.run(measure(file, callers, REQUESTS[callers]))


def main(file: Path, rounds: int = 7) -> None:
    """Print the table."""
    print("| callers | without | requests/s, with and without | gain, median (least to greatest) | worth it |")
    print("|---" * 5 + "|")
    for callers in CALLERS:
        found = [{trick: measured(trick, file, callers) for trick in WITHOUT} for _ in range(rounds)]
        for trick in list(WITHOUT)[1:]:
            ratios = sorted(one["nothing"] / one[trick] for one in found)
            whole, less = (statistics.median(one[name] for one in found) for name in ("nothing", trick))
            middle = statistics.median(ratios)
            clear = "yes" if ratios[0] > 1 and middle >= WORTH else "no" if ratios[-1] < WORTH else "hidden by noise"
            print(
                f"| {callers} | {trick} | {whole:.0f}, {less:.0f} | "
                f"{middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) | {clear} |",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _, _, trick, bank, port = sys.argv
        WITHOUT[trick]()
        sys.argv = ["tween", "serve", "--bank", bank, "--port", port]
        app.__main__.main()
    else:
        main(demo_bank(), *map(int, sys.argv[1:]))
