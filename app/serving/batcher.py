"""Many callers, one forward pass.

Whenever a unit of compute is free, the batcher takes what waits in line (`request_queue.py`), up to a budget of tokens
and leaving their share to other free units, and has it run: under low load a text never waits for company, under high
load the next batch forms while others run. A batch may hold rows of many recipes, and all of them run in one pass: each
row on its own finished blend, or mixed from the members.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from app.errors import DeviceLost, OutOfMemory, Overloaded, TweenError, WorkerLost
from app.models.tokenizer import Row
from app.serving.bisection import blamed, others_run
from app.serving.blend_provider import Weights
from app.serving.coalescing import Coalescing
from app.serving.executor import Executor, ExecutorPool, Vector
from app.serving.histogram import ROWS, SECONDS, TOKENS, Histogram
from app.serving.memory_limits import TokenBudget
from app.serving.request_queue import Batch, Job, RequestQueue, RowLogits

log = logging.getLogger(__name__)

WORTH_TOKENS = 64
"""What makes a pass worth its cost: fewer tokens are not split among free units and wait for those who usually come
back, and a batch of so many takes no rows on other weights, which had better wait for more of their kind."""

TURNS = 2
"""Turns of the loop from a request's bytes to its rows in line: its handler starts in the turn after they came."""

ENOUGH_TOKENS = 1024
"""A batch of so many costs as little for each as any: in a storm, none waits for more, and none has more while others
wait for other weights."""
FEW = 5
"""Passes before which nothing is known of how long one takes."""


@dataclass
class _Part:
    """Rows of a batch that ran together: their logits and the seconds of the pass, or why there are none."""

    batch: Batch
    logits: list[bytes] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None


class Batcher:
    """Queues rows for the units of `compute`."""

    def __init__(self, compute: ExecutorPool, batch_tokens: int, max_rows: int, max_wait: float) -> None:
        """At most `max_rows` wait, and nobody comes in who would wait for longer than about `max_wait` seconds."""
        self._compute = compute
        self.budget = TokenBudget(batch_tokens, least=WORTH_TOKENS)
        self._max_rows = max_rows
        self._max_wait = max_wait
        self._line = RequestQueue()
        self._arrival = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._recent: deque[float] = deque(maxlen=3 * FEW)
        self._seconds_per_row = 0.0
        self._returning = Coalescing(compute.units)
        self.sizes, self.lengths, self.passes = Histogram(ROWS), Histogram(TOKENS), Histogram(SECONDS)
        self.batches = self.tokens = self.rows_on_vectors = self.rows_mixed = self.refused = 0
        self.out_of_memory = 0

    @property
    def waiting_rows(self) -> int:
        return self._line.rows

    async def submit(self, rows: Sequence[Row], weights: Weights, follows: bool = False) -> RowLogits:
        """Logits of these rows under these weights. Raises `Overloaded` when the line has no room, or is too long; that
        is no reason for rows that follow others of the same request, which were taken."""
        done: asyncio.Future[RowLogits] = asyncio.get_running_loop().create_future()
        job = Job(rows, weights, done, [b""] * len(rows), left=len(rows))
        self._check(len(rows), None if follows else self._line.rows_before(job.section, ENOUGH_TOKENS))
        self._returning.note_arrival(len(rows), job.arrived)
        self._line.add(job)
        self._arrival.set()
        try:
            return await done
        except asyncio.CancelledError:
            self._line.withdraw(job)
            raise

    def admit(self, rows: int) -> None:
        """Raises `Overloaded` if so many more rows would not be taken now, whatever weights they need: to be asked
        before work is put into them."""
        self._check(rows, len(self._line))

    def _check(self, rows: int, before: int | None) -> None:
        """Raises `Overloaded` if the line has no room for so many rows, or if it takes too long until so many rows
        have run."""
        if not self._line.rows:
            return
        # What the first has waited is certain; what the next will wait is a guess, and sees a storm as it begins.
        waited = time.perf_counter() - self._line.since()
        wait = 0.0 if before is None else max(waited, before * self._seconds_per_row)
        if self.waiting_rows + rows > self._max_rows:
            why = f"{rows} more do not fit in the queue of {self._max_rows}"
        elif wait > self._max_wait:
            why = f"the next would wait for {wait * 1e3:.0f} ms, where {self._max_wait * 1e3:.0f} ms are the limit"
        else:
            return
        self.refused += 1
        raise Overloaded(
            f"{self.waiting_rows} texts are waiting and {why}; try again shortly",
            retry_after=max(1, round(self.waiting_rows * self._seconds_per_row)),
        )

    async def run(self) -> None:
        """Form batches and have them run, until cancelled."""
        try:
            while True:
                await self._arrival.wait()
                unit = await self._compute.take()
                await self._settle()
                batch = self._take()
                if not batch:
                    self._compute.give_back(unit)
                    self._arrival.clear()
                    continue
                task = asyncio.create_task(self._run(unit, batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        finally:
            for task in self._running:
                task.cancel()

    async def _settle(self) -> None:
        """Let requests in that are on their way, as long as more would make a better batch: turns of the loop, while
        each brings some, and then those who usually come back. Otherwise the first of many callers who were answered
        together would run alone."""
        waiting = -1
        while waiting < self.waiting_rows and self._line.tokens < ENOUGH_TOKENS:
            waiting = self.waiting_rows
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if waiting == self.waiting_rows and 0 < self._line.tokens < WORTH_TOKENS:
                await self._next_arrival(self._returning.patience(time.perf_counter()))

    async def _next_arrival(self, seconds: float) -> None:
        """The next rows in line, if they come within so many seconds."""
        if not seconds:
            return
        self._arrival.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._arrival.wait()
        self._arrival.set()  # as it was: somebody waits

    def _take(self) -> Batch:
        """The next rows in line: this unit's share of what waits, up to the budget."""
        share = max(-(-self._line.tokens // (1 + self._compute.idle)), WORTH_TOKENS)
        most = self.budget.tokens if self._line.sections == 1 else min(self.budget.tokens, ENOUGH_TOKENS)
        return self._line.take(min(share, most), WORTH_TOKENS)

    async def _run(self, unit: Executor, batch: Batch) -> None:
        """One batch on one unit, results into their jobs."""
        started = time.perf_counter()
        for job, _ in batch:
            job.started = job.started or started
        try:
            parts = await self._forward(unit, batch)
        finally:
            self._compute.give_back(unit)
        for part in parts:
            if part.error is None:
                self._answer(part)
            else:
                self._fail(part.batch, part.error)

    async def _forward(self, unit: Executor, batch: Batch) -> list[_Part]:
        """What the rows gave: at once, or, where that fails, in halves, down to the row that fails alone. A shortage
        counts for all that waits: what is larger than the budget by then is halved without a try. Where the weights
        are to blame and not a row, the others on these are not tried (`bisection.py`)."""
        parts: list[_Part] = []
        waiting = [batch]
        failed: set[Job] = set()
        while waiting:
            some = [(job, index) for job, index in waiting.pop() if not job.done.done() and job not in failed]
            if not some:
                continue
            middle = len(some) // 2
            part = None if middle and _tokens(some) > self.budget.tokens else await self._pass(unit, some)
            if part is None or (middle and part.error is not None and not isinstance(part.error, DeviceLost)):
                if part is not None and isinstance(part.error, WorkerLost) and some == batch:
                    self._note_shortage(_tokens(some))  # what most often ends two workers in a row
                waiting += [some[middle:], some[:middle]]
                continue
            parts.append(part)
            if part.error is not None and not isinstance(part.error, OutOfMemory):
                others = await self._same_fate(unit, part, waiting)
                parts.append(_Part(others, error=part.error))
                failed.update(job for job, _ in others)
        return parts

    async def _same_fate(self, unit: Executor, part: _Part, waiting: Sequence[Batch]) -> Batch:
        """Rows that wait and fail for the reason that made a row fail alone: none if the row itself is to blame."""
        job, index = part.batch[0]
        others = [one for rest in waiting for one in rest]
        if isinstance(part.error, DeviceLost):
            return others
        if not await others_run(unit, job.weights.operand):
            return [one for one in others if one[0].section == job.section]
        if part.error is not None and not isinstance(part.error, TweenError):
            log.warning("a text of %d tokens fails alone: %s", len(job.rows[index]), part.error)
            part.error = blamed(job.rows[index], part.error, index)
        return []

    async def _pass(self, unit: Executor, batch: Batch) -> _Part:
        """One forward pass, or why there was none."""
        rows = [job.rows[index] for job, index in batch]
        try:
            return _Part(batch, *await unit.forward(rows, [job.weights.operand for job, _ in batch]))
        except OutOfMemory:
            tokens = _tokens(batch)
            self._note_shortage(tokens)
            why = f"a text of {tokens} tokens does not fit into the memory that is free here now"
            return _Part(batch, error=OutOfMemory(why))  # told to a caller only where it was one text
        except Exception as error:
            return _Part(batch, error=error)

    def _note_shortage(self, tokens: int) -> None:
        self.out_of_memory += 1
        if self.budget.did_not_fit(tokens):
            log.warning(
                "memory was too short for a batch of %d tokens; for now batches have at most %d",
                *(tokens, self.budget.tokens),
            )

    def _answer(self, part: _Part) -> None:
        """Results into their jobs."""
        for (job, index), row in zip(part.batch, part.logits, strict=True):
            job.logits[index] = row
        self._count(part.batch)
        self.passes.note(part.seconds)
        self._learn(part.seconds / self._compute.units / len(part.batch))
        answered = self._finish(part.batch)
        self._returning.note_answer(answered, part.seconds, time.perf_counter())

    def _count(self, batch: Batch) -> None:
        tokens = _tokens(batch)
        self.batches += 1
        self.tokens += tokens
        self.sizes.note(len(batch))
        self.lengths.note(tokens)
        on_vectors = sum(isinstance(job.weights.operand, Vector) for job, _ in batch)
        self.rows_on_vectors += on_vectors
        self.rows_mixed += len(batch) - on_vectors

    def _finish(self, batch: Batch) -> int:
        """Answer who has all that was asked for; gives the number of those rows."""
        now, answered = time.perf_counter(), 0
        for job, _ in batch:
            job.left -= 1
            if job.left == 0 and not job.done.done():
                assert job.started is not None
                queue, forward = job.started - job.arrived, now - job.started
                job.done.set_result(RowLogits(job.logits, queue * 1e3, forward * 1e3))
                answered += len(job.rows)
        return answered

    def _fail(self, batch: Batch, error: Exception) -> None:
        for job, _ in batch:
            if not job.done.done():
                job.done.set_exception(error)
                self._line.withdraw(job)

    def _learn(self, seconds_per_row: float) -> None:
        """The median of the last passes: one that stood still tells nothing, and neither do the first of a process."""
        self._recent.append(seconds_per_row)
        if len(self._recent) >= FEW:
            self._seconds_per_row = statistics.median(self._recent)


def _tokens(batch: Batch) -> int:
    return sum(len(job.rows[index]) for job, index in batch)
