"""Memory that several processes see: members and slots lie in it once, however many workers run them.

On Linux it is an anonymous file (memfd), so that the small /dev/shm of a container does not bound it, and on huge
pages where the system offers them: a blend walks the whole row, through far fewer pages.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor


class Pages:
    """Zeroed memory. It can be pickled for a process that is being started, which then sees the same bytes."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        """`size` in bytes; `descriptor` is the file of pages that exist already."""
        self.size = size
        mapped = max(size, mmap.PAGESIZE)  # nothing at all cannot be mapped
        self._descriptor = _anonymous_file(mapped) if descriptor is None else descriptor
        self._map = mmap.mmap(self._descriptor, mapped)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages serves small ones

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The pages as a tensor; they live as long as it does."""
        return torch.frombuffer(self._map, dtype=dtype)[: prod(shape)].view(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self.size, reduction.DupFd(self._descriptor))


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tween")
    else:
        descriptor, path = tempfile.mkstemp(prefix="tween-")
        os.unlink(path)
    os.ftruncate(descriptor, size)
    return descriptor


def _attach(size: int, duplicate: Any) -> Pages:
    return Pages(size, duplicate.detach())
