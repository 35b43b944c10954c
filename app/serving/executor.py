"""Where torch's work is done, and who may have it done.

A unit computes one thing at a time. On a GPU there is one, a thread of this process. On a CPU there is a process for
each core, with one thread of torch in it (`serving/worker_process.py`): a forward pass that is spread over all cores
waits at every operation for whichever core was needed elsewhere (by this process, say, which speaks HTTP), and the
interpreter's lock lets only one thread speak Python. Members and slots lie in memory that all of them see.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent import futures
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from app.errors import DeviceLost, OutOfMemory
from app.models.classifier import Classifier, Mix
from app.models.operands import FixedOperands
from app.models.tokenizer import Row
from app.serving.hedging import KILL_FLOOR_SECONDS, Usual, first_answer, is_late
from app.serving.memory_limits import did_not_fit, is_lost
from app.weights.arena import Share, Vectors
from app.weights.methods import METHODS

log = logging.getLogger(__name__)

T = TypeVar("T")

NONE: Mapping[str, float] = {}
"""No parameters."""
INT8_ROOM = 16
"""Vectors of which a machine keeps a copy in int8; each takes a quarter of the bytes of its linear layers."""


@dataclass(frozen=True)
class Vector:
    """Weights that lie somewhere: a member's row of the arena or a slot, (P,), and a name of what lies there."""

    values: Tensor
    contents: str


class VectorRef(NamedTuple):
    """The same as it crosses to another process: the number of the vector, and the name of what lies there."""

    number: int
    contents: str


class ModelRunner:
    """A classifier, and the vectors that it can run, by number: the members of its arena, then the slots."""

    def __init__(self, classifier: Classifier, slots: Vectors, int8: bool = False) -> None:
        self.classifier = classifier
        self.device = classifier.arena.rows.device
        self._int8 = classifier.int8_copies(INT8_ROOM) if int8 else None
        self.vectors = [classifier.fixed(vector) for vector in (*classifier.arena.rows, *slots.rows)]

    def forward(self, rows: Sequence[Row], operands: Sequence[VectorRef | Mix]) -> tuple[list[bytes], float]:
        """Logits of each row, (C,) as the bytes of float32, or nothing where they are not finite, and the seconds that
        they took. Raises `OutOfMemory` and `DeviceLost`."""
        return self._within_memory(partial(self._forward, rows, operands))

    def build(
        self, method: str, weights: Mapping[str, Share], number: int, parameters: Mapping[str, float] = NONE
    ) -> float:
        """Write a blend into the slot of that number; gives the seconds that it took. Raises `OutOfMemory`."""
        return self._within_memory(partial(self._build, method, weights, number, parameters))

    def _forward(self, rows: Sequence[Row], operands: Sequence[VectorRef | Mix]) -> tuple[list[bytes], float]:
        started = time.perf_counter()
        tokens: Counter[VectorRef | Mix] = Counter()
        for row, one in zip(rows, operands, strict=True):
            tokens[one] += len(row)
        weights = {one: self._ready(one, count) for one, count in tokens.items()}
        logits = self.classifier.batch(rows, [weights[one] for one in operands])
        values, finite = logits.float().cpu(), logits.isfinite().all(dim=-1).tolist()
        found = [row.tobytes() if fit else b"" for row, fit in zip(values.numpy(), finite, strict=True)]
        return found, time.perf_counter() - started

    def _ready(self, operand: VectorRef | Mix, tokens: int) -> FixedOperands | Mix:
        """The weights to run so many tokens on."""
        if isinstance(operand, Mix):
            return operand
        fixed = self.vectors[operand.number]
        with torch.inference_mode():
            return self._int8.of(fixed, operand.contents, tokens) if self._int8 else fixed

    def _build(self, method: str, weights: Mapping[str, Share], number: int, parameters: Mapping[str, float]) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            slot = self.vectors[number].vector
            METHODS[method](self.classifier.arena, weights, slot, **parameters)
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


class WorkerTransport(Protocol):
    """The way to one machine."""

    async def call(self, name: str, *arguments: object) -> Any:
        """What the machine's method of that name gives."""

    def replace(self) -> None:
        """End what holds the machine; what was asked of it is asked of the next one."""

    async def close(self) -> None:
        """Let the machine go."""

    @property
    def restarts(self) -> int:
        """How often the machine had to be replaced."""


class ThreadTransport:
    """To a machine in this process, run by a thread that is its own."""

    def __init__(self, machine: ModelRunner, thread: futures.Executor) -> None:
        self._machine = machine
        self._thread = thread

    async def call(self, name: str, *arguments: object) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, getattr(self._machine, name), *arguments)

    def replace(self) -> None:
        """A thread cannot be ended."""

    async def close(self) -> None:
        """The thread belongs to who made it."""

    @property
    def restarts(self) -> int:
        return 0


class Executor:
    """One machine, held by one caller."""

    def __init__(self, lane: WorkerTransport, numbers: Mapping[int, int], compute: ExecutorPool) -> None:
        self.lane = lane
        self._numbers = numbers
        self._compute = compute

    async def forward(self, rows: Sequence[Row], weights: Sequence[Vector | Mix]) -> tuple[list[bytes], float]:
        """Logits, each (C,) as the bytes of float32 or nothing where they are not finite, of rows that each have
        weights of their own, and the seconds of the pass."""
        operands = [
            one if isinstance(one, Mix) else VectorRef(self._number(one.values), one.contents) for one in weights
        ]
        return await self._noted(self._compute.forward(self, rows, operands))

    async def build(
        self, method: str, weights: Mapping[str, Share], slot: Tensor, parameters: Mapping[str, float] = NONE
    ) -> float:
        """Write a blend into a slot (P,); gives the seconds that it took."""
        return await self._noted(self._compute.build(self, method, weights, self._number(slot), parameters))

    async def _noted(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except DeviceLost as error:
            self._compute.note_loss(error)
            raise

    def _number(self, vector: Tensor) -> int:
        return self._numbers[vector.data_ptr()]


class ExecutorPool:
    """All units. Who asks gets the one that was used last: its caches are warm. Where there are several, no caller
    waits for one that stands still (`hedging.py`)."""

    def __init__(self, machine: ModelRunner, lanes: Sequence[WorkerTransport]) -> None:
        """`machine` has the vectors by number as the machines at the ends of the lanes have them."""
        numbers = {fixed.section: number for number, fixed in enumerate(machine.vectors)}
        self.mixes = machine.classifier.mixes
        self._classifier = machine.classifier
        self.units = len(lanes)
        self._lanes = lanes
        self._idle: asyncio.LifoQueue[Executor] = asyncio.LifoQueue()
        for lane in lanes:
            self._idle.put_nowait(Executor(lane, numbers, self))
        self.lost: DeviceLost | None = None
        self.on_loss: Callable[[DeviceLost], None] = lambda error: None
        self._passes = Usual()
        self._builds: defaultdict[str, Usual] = defaultdict(Usual)
        self._late: set[asyncio.Task[Any]] = set()
        self.hedged = 0
        """Passes that a second unit was asked for."""

    def note_loss(self, error: DeviceLost) -> None:
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

    async def take(self) -> Executor:
        """A unit that is the caller's until it is given back."""
        return await self._idle.get()

    def give_back(self, unit: Executor) -> None:
        self._idle.put_nowait(unit)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Executor]:
        """A unit for as long as the context is open."""
        unit = await self.take()
        try:
            yield unit
        finally:
            self.give_back(unit)

    async def forward(
        self, unit: Executor, rows: Sequence[Row], operands: Sequence[VectorRef | Mix]
    ) -> tuple[list[bytes], float]:
        """A pass on a unit that the caller holds; if it is late, on another one too. See `Executor.forward`."""
        tokens = sum(len(row) for row in rows)
        patience = self._passes.patience(tokens) if self.units > 1 else None
        answer: tuple[list[bytes], float]
        if patience is None:
            answer = await unit.lane.call("forward", rows, operands)
        else:
            call = asyncio.create_task(unit.lane.call("forward", rows, operands))
            late = await is_late(call, patience)
            answer = await self._hedged(unit, call, rows, operands) if late else call.result()
        if self.units > 1:
            self._passes.note(answer[1], tokens)
        return answer

    async def build(
        self,
        unit: Executor,
        method: str,
        weights: Mapping[str, Share],
        number: int,
        parameters: Mapping[str, float],
    ) -> float:
        """A build on a unit that the caller holds; if it is late, the unit's machine is replaced. See
        `Executor.build`."""
        usual = self._builds[method]
        patience = usual.patience(len(weights)) if self.units > 1 else None
        call = asyncio.create_task(unit.lane.call("build", method, weights, number, parameters))
        if patience is not None and await is_late(call, max(patience, KILL_FLOOR_SECONDS)):
            log.warning("a worker has not built a blend for %.1f s and is replaced", max(patience, KILL_FLOOR_SECONDS))
            unit.lane.replace()
        seconds: float = await call
        usual.note(seconds, len(weights))
        return seconds

    async def _hedged(self, unit: Executor, first: asyncio.Task[Any], *arguments: object) -> Any:
        """The answer to a late call, or that of the next idle unit, if it comes first. The unit then has the lane that
        answered, and the other lane is idle again when its late call has ended, or its machine was replaced."""
        spare = await self._spare(first)
        if spare is None:
            return first.result()
        self.hedged += 1
        log.warning("a worker is ten times slower than usual; another one is asked too")
        second = asyncio.create_task(spare.lane.call("forward", *arguments))
        try:
            won = await first_answer([first, second])
        except asyncio.CancelledError:
            first.cancel()
            second.cancel()
            self._give_back_after(second, spare)
            raise
        if won is second:
            unit.lane, spare.lane = spare.lane, unit.lane
        self._give_back_after(first if won is second else second, spare)
        return won.result()

    async def _spare(self, first: asyncio.Task[Any]) -> Executor | None:
        """The next idle unit; None if the call ends before there is one."""
        taking = asyncio.create_task(self.take())
        try:
            await asyncio.wait([first, taking], return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                return taking.result()
        except asyncio.CancelledError:
            first.cancel()
            self._stop(taking)
            raise
        self._stop(taking)
        return None

    def _stop(self, taking: asyncio.Task[Executor]) -> None:
        if not taking.cancel():
            self.give_back(taking.result())

    def _give_back_after(self, call: asyncio.Task[Any], unit: Executor) -> None:
        def ended(call: asyncio.Task[Any]) -> None:
            self._late.discard(call)
            if not call.cancelled():
                call.exception()  # seen, though it is nobody's any more
            self.give_back(unit)

        self._late.add(call)
        call.add_done_callback(ended)

    async def close(self) -> None:
        for call in self._late:
            call.cancel()
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
