"""On which core the event loop goes on when a worker has answered.

A worker wakes the loop while it still runs itself, a moment before it has nothing to do. So Linux finds no idle core,
and may put the loop where another worker is in the middle of a pass; that one waits, and the core of the one that has
answered stays idle until the kernel balances the load, up to ten milliseconds later. Seen with `perf sched` on two
cores at 32 callers: both were idle for 8 % of the time while somebody could have run. So the loop moves to the core
that the answer comes from. It may still run wherever it might: it moves once, and the kernel may move it again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

UNKNOWN = -1


def _asking() -> Callable[[], int]:
    """glibc's and musl's `sched_getcpu`, where there is one."""
    try:
        ask: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return lambda: UNKNOWN
    return ask


current_core = _asking()
"""The number of the core that runs the calling thread, or `UNKNOWN`."""

ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""Where this process may run, as it was started: asked later, a set of cores that was once smaller would stay so."""


def move_to(core: int) -> None:
    """Have the calling thread go on on this core, if it may run there and the system lets it."""
    if core not in ALLOWED or len(ALLOWED) == 1:
        return
    with suppress(OSError):
        try:
            os.sched_setaffinity(0, {core})
        finally:
            os.sched_setaffinity(0, ALLOWED)
