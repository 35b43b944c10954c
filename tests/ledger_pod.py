"""A pod that accepts outcomes until it is killed, and prints the numbers of those that it has accepted.

python tests/ledger_pod.py REDIS_URL SPOOL SERIES
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from itertools import count
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from ledgers import NAME, START, TONE, ledger  # noqa: E402

from app.experiments.events.event import Outcome  # noqa: E402


async def accept(url: str, folder: Path, series: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with ledger(url, folder) as pod:
        for start in count(series * 1_000_000, 3):
            numbers = list(range(start, start + 3))
            await pod.record(NAME, TONE, [Outcome(f"o{n}", NAME, f"unit-{n}", "bought", 1.0, START) for n in numbers])
            print(json.dumps(numbers), flush=True)
            if ended.is_set():
                return


if __name__ == "__main__":
    asyncio.run(accept(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
