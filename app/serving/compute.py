"""Where torch's work is done, and who may have it done.

A unit computes one thing at a time. On a GPU there is one, a thread of this process. On a CPU there is a process for
each core, with one thread of torch in it (`serving/workers.py`): a forward pass that is spread over all cores waits at
every operation for whichever core was needed elsewhere (by this process, say, which speaks HTTP), and the interpreter's
lock lets only one thread speak Python. Members and slots lie in memory that all of them see.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from app.errors import DeviceLost, OutOfMemory
from app.models.classifier import Classifier, Mix
from app.models.products import Fixed
from app.models.tokens import Row
from app.serving.room import did_not_fit, is_lost
from app.weights.arena import Share, Vectors
from app.weights.methods import METHODS

T = TypeVar("T")

INT8_ROOM = 16
"""Vectors of which a machine keeps a copy in int8; each takes a quarter of the bytes of its linear layers."""


@dataclass(frozen=True)
class Vector:
    """Weights that lie somewhere: a member's row of the arena or a slot, (P,), and a name of what lies there."""

    values: Tensor
    contents: str


class Place(NamedTuple):
    """The same as it crosses to another process: the number of the vector, and the name of what lies there."""

    number: int
    contents: str


class Machine:
    """A classifier, and the vectors that it can run, by number: the members of its arena, then the slots."""

    def __init__(self, classifier: Classifier, slots: Vectors, int8: bool = False) -> None:
        self.classifier = classifier
        self.device = classifier.arena.rows.device
        self._int8 = classifier.int8_copies(INT8_ROOM) if int8 else None
        self.vectors = [classifier.fixed(vector) for vector in (*classifier.arena.rows, *slots.rows)]

    def forward(self, rows: Sequence[Row], operands: Sequence[Place | Mix]) -> tuple[list[bytes], float]:
        """Logits of each row, (C,) as the bytes of float32, or nothing where they are not finite, and the seconds that
        they took. Raises `OutOfMemory` and `DeviceLost`."""
        return self._within_memory(partial(self._forward, rows, operands))

    def build(self, method: str, weights: Mapping[str, Share], number: int) -> float:
        """Write a blend into the slot of that number; gives the seconds that it took. Raises `OutOfMemory`."""
        return self._within_memory(partial(self._build, method, weights, number))

    def _forward(self, rows: Sequence[Row], operands: Sequence[Place | Mix]) -> tuple[list[bytes], float]:
        started = time.perf_counter()
        tokens: Counter[Place | Mix] = Counter()
        for row, one in zip(rows, operands, strict=True):
            tokens[one] += len(row)
        weights = {one: self._ready(one, count) for one, count in tokens.items()}
        logits = self.classifier.batch(rows, [weights[one] for one in operands])
        values, finite = logits.float().cpu(), logits.isfinite().all(dim=-1).tolist()
        found = [row.tobytes() if fit else b"" for row, fit in zip(values.numpy(), finite, strict=True)]
        return found, time.perf_counter() - started

    def _ready(self, operand: Place | Mix, tokens: int) -> Fixed | Mix:
        """The weights to run so many tokens on."""
        if isinstance(operand, Mix):
            return operand
        fixed = self.vectors[operand.number]
        with torch.inference_mode():
            return self._int8.of(fixed, operand.contents, tokens) if self._int8 else fixed

    def _build(self, method: str, weights: Mapping[str, Share], number: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            slot = self.vectors[number].vector
            METHODS[method](self.classifier.arena, weights, slot)
            if slot.is_cuda:
                torch.cuda.synchronize(slot.device)
        return time.perf_counter() - started

    def _within_memory(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            if not did_not_fit(error):
                if is_lost(error, self.device):
                    raise DeviceLost(
                        f"the device {self.device} is lost to this process, which ends: {error}"
                    ) from error
                raise
        # Here and not in the handler: as long as that runs, its traceback holds the tensors of what failed.
        if self._int8:
            self._int8.clear()
        self.classifier.forget_recordings()
        if self.classifier.arena.rows.is_cuda:
            torch.cuda.empty_cache()
        raise OutOfMemory("memory is too short for this here; try again later, or ask for less at once")


class Lane(Protocol):
    """The way to one machine."""

    async def call(self, name: str, *arguments: object) -> Any:
        """What the machine's method of that name gives."""

    async def close(self) -> None:
        """Let the machine go."""

    @property
    def restarts(self) -> int:
        """How often the machine had to be replaced."""


class ThreadLane:
    """To a machine in this process, run by a thread that is its own."""

    def __init__(self, machine: Machine, thread: Executor) -> None:
        self._machine = machine
        self._thread = thread

    async def call(self, name: str, *arguments: object) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, getattr(self._machine, name), *arguments)

    async def close(self) -> None:
        """The thread belongs to who made it."""

    @property
    def restarts(self) -> int:
        return 0


class Unit:
    """One machine, held by one caller."""

    def __init__(self, lane: Lane, numbers: Mapping[int, int], on_loss: Callable[[DeviceLost], None]) -> None:
        self._lane = lane
        self._numbers = numbers
        self._on_loss = on_loss

    async def forward(self, rows: Sequence[Row], weights: Sequence[Vector | Mix]) -> tuple[list[bytes], float]:
        """Logits, each (C,) as the bytes of float32 or nothing where they are not finite, of rows that each have
        weights of their own, and the seconds of the pass."""
        operands = [one if isinstance(one, Mix) else Place(self._number(one.values), one.contents) for one in weights]
        answer: tuple[list[bytes], float] = await self._call("forward", rows, operands)
        return answer

    async def build(self, method: str, weights: Mapping[str, Share], slot: Tensor) -> float:
        """Write a blend into a slot (P,); gives the seconds that it took."""
        seconds: float = await self._call("build", method, weights, self._number(slot))
        return seconds

    async def _call(self, name: str, *arguments: object) -> Any:
        try:
            return await self._lane.call(name, *arguments)
        except DeviceLost as error:
            self._on_loss(error)
            raise

    def _number(self, vector: Tensor) -> int:
        return self._numbers[vector.data_ptr()]


class Compute:
    """All units. Who asks gets the one that was used last: its caches are warm."""

    def __init__(self, machine: Machine, lanes: Sequence[Lane]) -> None:
        """`machine` has the vectors by number as the machines at the ends of the lanes have them."""
        numbers = {fixed.section: number for number, fixed in enumerate(machine.vectors)}
        self.mixes = machine.classifier.mixes
        self._classifier = machine.classifier
        self.units = len(lanes)
        self._lanes = lanes
        self._idle: asyncio.LifoQueue[Unit] = asyncio.LifoQueue()
        for lane in lanes:
            self._idle.put_nowait(Unit(lane, numbers, self._note_loss))
        self.lost: DeviceLost | None = None
        self.on_loss: Callable[[DeviceLost], None] = lambda error: None

    def _note_loss(self, error: DeviceLost) -> None:
        """Nothing can be computed here any more; whoever runs the process is told, once."""
        if self.lost is None:
            self.lost = error
            self.on_loss(error)

    @property
    def idle(self) -> int:
        """Units that nobody holds."""
        return self._idle.qsize()

    @property
    def restarts(self) -> int:
        """Machines that died and were replaced."""
        return sum(lane.restarts for lane in self._lanes)

    @property
    def replayed(self) -> int:
        """Passes on a GPU that were replays of a recording; a batch has one for each section."""
        return self._classifier.replayed

    async def take(self) -> Unit:
        """A unit that is the caller's until it is given back."""
        return await self._idle.get()

    def give_back(self, unit: Unit) -> None:
        self._idle.put_nowait(unit)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """A unit for as long as the context is open."""
        unit = await self.take()
        try:
            yield unit
        finally:
            self.give_back(unit)

    async def close(self) -> None:
        await asyncio.gather(*(lane.close() for lane in self._lanes))


def gpu_memory(device: torch.device) -> dict[str, int]:
    """Bytes by what they are; nothing where weights do not lie on a GPU."""
    if device.type != "cuda":
        return {}
    free, whole = torch.cuda.mem_get_info(device)
    return {"free": free, "all": whole, "ours": torch.cuda.memory_reserved(device)}


def logits_of(rows: Sequence[bytes]) -> Tensor:
    """(B, C) from rows that are each (C,) as the bytes of float32: what crosses between processes and into caches."""
    return torch.frombuffer(bytearray().join(rows), dtype=torch.float32).view(len(rows), -1)


def usable_cores() -> int:
    """Cores that this process may use: those that it may run on, within the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, round(_container_limit() or cores)))


def _container_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cores of a container's limit, by version 2 and 1 of Linux's control groups; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None
