"""Hedged requests: what takes ten times as long as usual is asked of a second worker, and the first answer counts.

A worker that is stopped (SIGSTOP, a debugger, swapping) is not dead, and is known to hang only after half a minute
(`worker_process.py`), for which its callers would wait. A forward pass changes nothing, so it may run twice, and the
late answer is dropped. A build writes into a slot that may hold another blend by the time a worker goes on, so it is
never asked twice at once: the worker is ended, and its successor is asked.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

TIMES, FLOOR_SECONDS = 10, 0.5
"""Patience is so many times what is usual, and at least so many seconds: a machine that is busy elsewhere stands still
for tenths of a second, and a second worker would not help it."""
KILL_FLOOR_SECONDS = 5.0
"""The same where a worker is ended for it, which costs a start of another one."""
FEW, MANY = 3, 15
"""Answers before which nothing is known, and how many of the last ones count."""


class Usual:
    """What something usually takes for each unit of its size."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=MANY)

    def note(self, seconds: float, size: int = 1) -> None:
        self._recent.append(seconds / size)

    def patience(self, size: int = 1) -> float | None:
        """Seconds after which it is late; None while nothing is known."""
        if len(self._recent) < FEW:
            return None
        return max(FLOOR_SECONDS, TIMES * statistics.median(self._recent) * size)


async def is_late(call: asyncio.Task[Any], seconds: float) -> bool:
    """Whether it has not ended within so many seconds; who stops waiting for it stops it."""
    try:
        await asyncio.wait([call], timeout=seconds)
    except asyncio.CancelledError:
        call.cancel()
        raise
    return not call.done()


async def first_answer(calls: Sequence[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """The call that answered first; one that failed is no answer unless all of them fail."""
    for until in (asyncio.FIRST_COMPLETED, asyncio.ALL_COMPLETED):
        await asyncio.wait(calls, return_when=until)
        for call in calls:
            if call.done() and not call.cancelled() and call.exception() is None:
                return call
    return calls[0]
