"""Many callers, one forward pass at a time.

Rows wait in one line. Whenever the processor is free, the batcher takes what waits, up to a budget of
tokens, and runs it: under low load a text never waits for company, under high load the next batch forms
while one runs. A batch may hold rows of many recipes, and all of them run in one pass: each row on its own finished
blend, or mixed from the members.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.errors import Overloaded
from app.models.classifier import Classifier
from app.models.tokens import Row
from app.serving.blends import Weights


@dataclass(frozen=True)
class Scored:
    """Logits (B, C) of a caller's rows, and how long they waited and ran, in milliseconds."""

    logits: Tensor
    queue_ms: float
    forward_ms: float


@dataclass(eq=False)
class _Job:
    """A caller's rows, all with the same weights."""

    rows: Sequence[Row]
    weights: Weights
    done: asyncio.Future[Scored]
    logits: Tensor
    left: int
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None


class Batcher:
    """Queues rows for the classifier; `compute` is the one thread that owns the processor."""

    def __init__(
        self, classifier: Classifier, classes: int, compute: Executor, batch_tokens: int, max_rows: int
    ) -> None:
        self._classifier = classifier
        self._classes = classes
        self._compute = compute
        self._batch_tokens = batch_tokens
        self._max_rows = max_rows
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._arrival = asyncio.Event()
        self._seconds_per_row = 0.0
        self.batches = self.tokens = self.rows_on_vectors = self.rows_mixed = self.refused = 0

    @property
    def waiting_rows(self) -> int:
        return len(self._waiting)

    async def submit(self, rows: Sequence[Row], weights: Weights) -> Scored:
        """Logits of these rows under these weights. Raises `Overloaded` when the line is full."""
        if self._waiting and len(self._waiting) + len(rows) > self._max_rows:
            self.refused += 1
            raise Overloaded(
                f"{len(self._waiting)} texts are waiting and {len(rows)} more do not fit in the queue of "
                f"{self._max_rows}; try again shortly",
                retry_after=max(1, round(len(self._waiting) * self._seconds_per_row)),
            )
        done: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        job = _Job(rows, weights, done, torch.empty(len(rows), self._classes), left=len(rows))
        self._waiting.extend((job, index) for index in range(len(rows)))
        self._arrival.set()
        return await done

    async def run(self) -> None:
        """Form and run batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            batch = self._take()
            if not batch:
                self._arrival.clear()
                continue
            started = time.perf_counter()
            for job, _ in batch:
                job.started = job.started or started
            try:
                await loop.run_in_executor(self._compute, self._forward, batch)
            except Exception as error:
                for job, _ in batch:
                    if not job.done.done():
                        job.done.set_exception(error)
                continue
            self.batches += 1
            self.tokens += sum(len(job.rows[index]) for job, index in batch)
            self._learn((time.perf_counter() - started) / len(batch))
            self._finish(batch)

    def _take(self) -> list[tuple[_Job, int]]:
        """The next rows in line, up to the token budget and at least one; rows of callers gone are dropped."""
        batch: list[tuple[_Job, int]] = []
        tokens = 0
        while self._waiting:
            job, index = self._waiting[0]
            if job.done.done():
                self._waiting.popleft()
                continue
            tokens += len(job.rows[index])
            if batch and tokens > self._batch_tokens:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _forward(self, batch: list[tuple[_Job, int]]) -> None:
        """On the compute thread: the whole batch in one pass, results into their jobs.

        Where the architecture cannot mix, a pass for each vector.
        """
        vectors = {_place(job.weights.vector): job.weights.vector for job, _ in batch}
        if len(vectors) > 1 and not self._classifier.mixes:
            for place in vectors:
                self._forward([(job, index) for job, index in batch if _place(job.weights.vector) == place])
            return
        rows = [job.rows[index] for job, index in batch]
        (vector, *others) = vectors.values()
        if vector is not None and not others:
            logits = self._classifier.logits(vector, rows)
        else:
            slots = [vector for vector in vectors.values() if vector is not None]
            logits = self._classifier.mixed(
                _mixes([job.weights for job, _ in batch], slots, self._classifier.members), rows, slots
            )
        for (job, index), row in zip(batch, logits, strict=True):
            job.logits[index] = row
        mixed = sum(job.weights.mix is not None for job, _ in batch)
        self.rows_mixed += mixed
        self.rows_on_vectors += len(batch) - mixed

    def _finish(self, batch: list[tuple[_Job, int]]) -> None:
        now = time.perf_counter()
        for job, _ in batch:
            job.left -= 1
            if job.left == 0 and not job.done.done():
                assert job.started is not None
                queue, forward = job.started - job.arrived, now - job.started
                job.done.set_result(Scored(job.logits, queue * 1e3, forward * 1e3))

    def _learn(self, seconds_per_row: float) -> None:
        """A moving average, for the Retry-After of whoever is refused."""
        if self._seconds_per_row == 0.0:
            self._seconds_per_row = seconds_per_row
        self._seconds_per_row += 0.1 * (seconds_per_row - self._seconds_per_row)


def _place(vector: Tensor | None) -> int:
    """What tells vectors apart: where they lie; 0 for rows that are mixed from the arena's members."""
    return 0 if vector is None else vector.data_ptr()


def _mixes(weights: Sequence[Weights], slots: Sequence[Tensor], members: int) -> Tensor:
    """How each row is mixed from the arena's members and from the slots, (B, M + S)."""
    mixes = torch.zeros(len(weights), members + len(slots))
    column = {_place(slot): members + i for i, slot in enumerate(slots)}
    for row, one in zip(mixes, weights, strict=True):
        if one.mix is not None:
            row[:members] = one.mix
        else:
            row[column[_place(one.vector)]] = 1.0
    return mixes
