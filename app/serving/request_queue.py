"""Who waits for a forward pass, by the weights that they wait for.

Rows that run on the same vector, or are mixed from the same members, go through a pass side by side; others in the same
batch come before or after them. Each time its weights come from memory, and that costs as much as two texts. So a batch
takes all rows that wait for the weights that were wanted first, then for the next, until it is worth a pass, and what
is left gathers company until its turn. Nobody is passed by for ever: weights are served in the order in which they
were asked for, and those of which a batch could not take all go to the end.

Within the same weights each caller gives a row in turn, so that who brings one text does not wait for somebody's five
hundred.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from app.models.classifier import Mix
from app.models.tokenizer import Row
from app.serving.blend_provider import Weights


@dataclass(frozen=True)
class RowLogits:
    """What a caller's rows gave: logits of each, (C,) as the bytes of float32. Waiting and running in milliseconds."""

    logits: list[bytes]
    queue_ms: float
    forward_ms: float


@dataclass(eq=False)
class Job:
    """A caller's rows, all with the same weights; `next` is the first that waits, since when (`waiting_since`), and
    `left` how many have not run."""

    rows: Sequence[Row]
    weights: Weights
    done: asyncio.Future[RowLogits]
    logits: list[bytes]
    left: int
    next: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    waiting_since: float = field(default_factory=time.perf_counter)
    started: float | None = None

    @property
    def section(self) -> object:
        """What rows have in common that run side by side."""
        operand = self.weights.operand
        return operand.section if isinstance(operand, Mix) else operand.contents

    @property
    def waiting(self) -> Sequence[Row]:
        return self.rows[self.next :]


Batch = list[tuple[Job, int]]
"""Rows, each as the job that it belongs to and its number there."""


class RequestQueue:
    """The waiting rows."""

    def __init__(self) -> None:
        self._jobs: dict[object, deque[Job]] = {}
        self._rows: Counter[object] = Counter()
        self.rows = self.tokens = 0

    def __len__(self) -> int:
        """How many callers wait."""
        return sum(map(len, self._jobs.values()))

    @property
    def sections(self) -> int:
        """On how many weights they wait."""
        return len(self._jobs)

    def rows_before(self, section: object, at_once: int) -> int:
        """Rows that may run before one more of this section: one of each caller on the same weights, and of each
        other section as many as a batch has where it has so many tokens at once."""
        if not self.rows:
            return 0
        most = max(1, at_once * self.rows // self.tokens)
        others = sum(min(rows, most) for other, rows in self._rows.items() if other != section)
        return len(self._jobs.get(section, ())) + others

    def since(self) -> float:
        """When the first of those who wait began to."""
        return min(jobs[0].waiting_since for jobs in self._jobs.values())

    def add(self, job: Job) -> None:
        self._jobs.setdefault(job.section, deque()).append(job)
        self._count(job.section, job.rows, 1)

    def withdraw(self, job: Job) -> None:
        """Give back the places of somebody who waits no more."""
        jobs = self._jobs.get(job.section)
        if jobs and job in jobs:
            self._count(job.section, job.waiting, -1)
            jobs.remove(job)
            if not jobs:
                del self._jobs[job.section]

    def take(self, budget: int, enough: int) -> Batch:
        """The next rows: up to a budget of tokens and at least one row, and no further weights once there are enough
        tokens. Rows of callers who are gone are dropped."""
        batch: Batch = []
        tokens = 0
        for section in list(self._jobs):
            if tokens >= enough:
                break
            taken = list(self._take_from(section, budget - tokens, at_least_one=not batch))
            batch += taken
            tokens += sum(len(job.rows[index]) for job, index in taken)
            if section in self._jobs:
                if taken:
                    self._jobs[section] = self._jobs.pop(section)
                break
        return batch

    def _take_from(self, section: object, budget: int, at_least_one: bool) -> Iterator[tuple[Job, int]]:
        """Rows of one section; it stays in line if the budget is not enough for all."""
        jobs, now = self._jobs[section], time.perf_counter()
        while jobs:
            job = jobs[0]
            gone = job.done.done()
            rows = job.waiting if gone else job.rows[job.next : job.next + 1]
            if not gone:
                budget -= len(rows[0])
                if budget < 0 and not at_least_one:
                    return
                at_least_one = False
                yield job, job.next
            jobs.popleft()
            self._count(section, rows, -1)
            job.next += len(rows)
            if job.next < len(job.rows):
                job.waiting_since = now
                jobs.append(job)
        del self._jobs[section]

    def _count(self, section: object, rows: Sequence[Row], sign: int) -> None:
        self._rows[section] += sign * len(rows)
        if not self._rows[section]:
            del self._rows[section]
        self.rows += sign * len(rows)
        self.tokens += sign * sum(map(len, rows))
