"""Passes of a fixed shape, recorded once and replayed: CUDA graphs.

A small pass on a GPU is spent on launching kernels, some hundred of them, microseconds each, for work that takes less.
A graph launches them all at once, and does again exactly what was recorded, on the same memory. So rows are written
into buffers of one of a few shapes, a padded grid of texts by tokens; weights lie where they lie (members and slots
have fixed addresses, and what is in them may change); and the shares of a mix are a buffer like the tokens. Nothing
that is recorded may depend on a value, wait for the device, or copy from the host.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

TEXTS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LARGEST = 2_048
"""Cells of a grid: beyond, kernels take longer than their launch, and padding costs more than it saves."""
ROOM, STALE = 256, 10_000
"""Recordings that are kept. A new one takes the place of one that none of so many passes used: where more are hot than
there is room for, making them again and again would cost more than they save."""
OFTEN, MANY = 2, 4_096
"""A recording is made when a pass is asked for so many times, while at most so many kinds of passes are counted."""
TOLERANCE, UNITS = 1e-3, 4
"""How far a first replay's logits may be from those of the pass that was recorded, relative to the largest; or so many
units in the last place, where weights have fewer digits than that."""
FAILURES = 3
"""Recordings that fail or give something else before no more are made."""

Replay = Callable[[], Tensor]


class Recorder(Protocol):
    """Makes recordings on some kind of device."""

    def record(self, run: Callable[[], Tensor]) -> Replay:
        """What does again what `run` does, whatever then is in the memory that it reads."""


class CudaGraphs:
    """Records on a GPU. Graphs share a pool of memory: they run one after the other, and what a pass gives is fetched
    before the next one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Replay:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()  # what libraries set up when they are first used cannot be recorded
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                out = run()
        except RuntimeError:
            torch.cuda.set_stream(current)  # a capture that cannot be ended leaves its own behind, and keeps its pool
            self._pool = torch.cuda.graph_pool_handle()
            raise

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class GridShape(NamedTuple):
    """A grid of so many texts by so many tokens."""

    texts: int
    length: int


def shape_for(lengths: Sequence[int]) -> GridShape | None:
    """The smallest shape for texts of so many tokens; None where they are too many."""
    texts = next((texts for texts in TEXTS if texts >= len(lengths)), None)
    length = next((length for length in LENGTHS if length >= max(lengths)), None)
    if texts is None or length is None or texts * length > LARGEST:
        return None
    return GridShape(texts, length)


@dataclass(frozen=True)
class Buffers:
    """What a recorded pass of B texts by L tokens reads: ids, positions, types and which cells are real, (4, B * L),
    and each text's share of each member, (B, M) in float32."""

    cells: Tensor
    shares: Tensor


@dataclass
class _Recording:
    """What was recorded, and the number of the pass that last used it."""

    replay: Replay
    used: int


class Recordings:
    """What was recorded, by what it runs on and its shape."""

    def __init__(self, recorder: Recorder, members: int, device: torch.device, dtype: torch.dtype) -> None:
        self._recorder: Recorder | None = recorder
        self._members, self._device, self._dtype = members, device, dtype
        self._buffers: dict[GridShape, Buffers] = {}
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._asked: Counter[Hashable] = Counter()
        self._passes = self._failures = 0
        self.replayed = 0

    def buffers(self, shape: GridShape) -> Buffers:
        """The buffers that all recordings of this shape read."""
        if shape not in self._buffers:
            cells = torch.zeros(4, shape.texts * shape.length, dtype=torch.long, device=self._device)
            shares = torch.zeros(shape.texts, self._members, device=self._device)
            self._buffers[shape] = Buffers(cells, shares)
        return self._buffers[shape]

    def want(self, key: Hashable) -> bool:
        """Whether a pass is to go through `run`: it was recorded under this key, or is asked for often enough now."""
        self._passes += 1
        if key in self._kept or self._recorder is None:
            return key in self._kept
        if len(self._asked) > MANY:
            self._asked.clear()
        self._asked[key] += 1
        return self._asked[key] >= OFTEN and self._has_room()

    def run(self, key: Hashable, run: Callable[[], Tensor]) -> Tensor:
        """What `run` gives, replayed if it was recorded under this key, else recorded now. It is valid until the next
        call. Raises what `run` raises."""
        kept = self._kept.get(key)
        if kept is not None:
            kept.used = self._passes
            self._kept.move_to_end(key)
            self.replayed += 1
            return kept.replay()
        out = run()
        if self._recorder is not None:
            self._record(self._recorder, key, run, out)
        return out

    def forget(self) -> None:
        """Give back the memory of all recordings."""
        self._kept.clear()
        self._buffers.clear()

    def _has_room(self) -> bool:
        """Whether there is room for one more; makes some if a recording was not used for long."""
        if len(self._kept) < ROOM:
            return True
        if self._passes - next(iter(self._kept.values())).used <= STALE:
            return False
        self._kept.popitem(last=False)
        return True

    def _record(self, recorder: Recorder, key: Hashable, run: Callable[[], Tensor], expected: Tensor) -> None:
        """Keep a recording if it gives what the pass gave."""
        del self._asked[key]
        try:
            replay = recorder.record(run)
            difference = (replay() - expected).abs().max() / expected.abs().max().clamp(min=1.0)
        except torch.OutOfMemoryError:
            raise  # as of any pass: recordings are forgotten, and the batch is run in halves
        except RuntimeError as error:
            self._note_failure(f"a pass could not be recorded: {error}")
            return
        if difference <= max(TOLERANCE, UNITS * torch.finfo(self._dtype).eps):
            self._kept[key] = _Recording(replay, self._passes)
        else:
            self._note_failure(f"a recorded pass gave other logits (by {difference:.1e} of the largest)")

    def _note_failure(self, why: str) -> None:
        self._failures += 1
        if self._failures < FAILURES:
            log.warning("%s; this one is not used", why)
        else:
            log.warning("%s; none will be used any more", why)
            self._recorder = None
            self.forget()
