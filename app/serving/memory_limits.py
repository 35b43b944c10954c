"""What fits into memory, and what to do where something does not.

Memory runs out in two ways. An allocation is refused (a GPU, a limit on the process): that is an exception, and what
was to be done can be done in smaller parts. Or the kernel ends a process (the limit of a container), which nobody can
catch: so before slots are made, it is asked how much is left.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 1024 * 1024
REFUSED = (
    *("can't allocate memory", "not enough memory", "could not create a primitive", "could not create a memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""How torch's allocator, oneDNN and CUDA's libraries, which know no exception of their own for it, say that memory is
short."""
SPARE = 1024 * MIB
"""Bytes that slots leave to forward passes, worker processes and libraries: roughly what passes of 4,096 tokens and two
workers take. Where less than twice that is left, slots leave half of it."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def did_not_fit(error: BaseException) -> bool:
    """Whether this was raised because memory ran out, here or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSED)


def is_lost(error: BaseException, device: torch.device) -> bool:
    """Whether a device is lost for this process: after an assertion in a kernel, say, every call to CUDA fails. An
    error of CUDA alone does not tell (a kernel may just refuse its arguments), so something plain is tried."""
    if not isinstance(error, torch.AcceleratorError) and "CUDA error" not in str(error):
        return False
    try:
        torch.ones(1, device=device).add_(1).cpu()
    except Exception:
        return True
    return False


class TokenBudget:
    """Tokens that a batch may have: so many as are configured, and fewer for a while after they did not fit.

    Halved at once, doubled after each minute without a shortage: who took the memory (another program on the GPU, a
    batch beside this one) may have let it go, and finding out that he has not costs one pass in halves a minute.
    """

    RECOVERY_SECONDS = 60.0

    def __init__(self, most: int, least: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Never below `least`, where a batch saves no memory worth the time. `clock` gives seconds that never jump."""
        self._most = most
        self._least = min(least, most)
        self._clock = clock
        self._lowered = most
        self._since = 0.0

    @property
    def tokens(self) -> int:
        if self._lowered == self._most:
            return self._most
        minutes = int((self._clock() - self._since) / self.RECOVERY_SECONDS)
        now = min(self._most, self._lowered << min(minutes, 32))
        if now == self._most:
            self._lowered = self._most
        return now

    def did_not_fit(self, tokens: int) -> bool:
        """Learn that memory was too short for so many tokens; whether that makes batches smaller than they were."""
        before = self.tokens
        self._lowered = min(before, max(tokens // 2, self._least))
        self._since = self._clock()
        return self._lowered < before


def room_for_slots(device: torch.device, groups: Path = CONTROL_GROUPS) -> int | None:
    """Bytes that slots may take; None where nobody tells."""
    left = memory_left(device, groups)
    return None if left is None else left - min(SPARE, left // 2)


def memory_left(device: torch.device, groups: Path = CONTROL_GROUPS) -> int | None:
    """Bytes that can still be taken: of a GPU's memory, else of this machine's within the limit of the container. None
    where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [left for left in (_of_machine(), _of_container(groups)) if left is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _of_container(groups: Path) -> int | None:
    """What versions 2 and 1 of Linux's control groups say. Pages of files that nobody has used lately count as free, as
    they are given up before anybody is ended."""
    for folder, limit, usage, cached in (
        (groups, "memory.max", "memory.current", "inactive_file"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
        except (OSError, ValueError):  # not this version, or "max"
            continue
        return most - used + int(statistics.get(cached, 0))
    return None
