"""Exposures and outcomes, written down at once and counted once, whatever Redis and pods do meanwhile.

An event goes a straight way: to this pod's disk (`spool.py`, one fsync for all that come together), from there in
order into a stream in Redis, and from the stream into units and sums, by whichever pod takes it (`ledger_store.py`).
It may go each step several times; its mark has it counted once.

It leaves the disk last: a segment is deleted when Redis has had all of it for `SETTLED_SECONDS` and still has every
mark. What Redis lost in a crash (an append-only file that is fsynced once a second may lack the last second) is thus
found missing and sent again. A pod that is killed finds its segments when it comes back, and sends them again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar, get_args

from app.cluster.cancel import cancel_all
from app.cluster.redis_client import FAULTS
from app.cluster.redis_headroom import FOLDED, SENT, Headroom
from app.errors import ExperimentConflict, RedisUnavailable, SpoolFull, UnknownMetric
from app.experiments.events.aggregates import PhaseSums, read_sums, read_uncounted
from app.experiments.events.aggregation import UNCOUNTED, UnitRecord, Why, contribution, fold
from app.experiments.events.event import Event, Exposure, Outcome
from app.experiments.events.ledger_store import PERIOD, LedgerStore, LedgerTransaction, period_of
from app.experiments.events.spool import Segment, Spool
from app.experiments.events.unmet_units import Admitted, Unmet, waits
from app.experiments.experiment import Experiment

log = logging.getLogger(__name__)
T = TypeVar("T")

TICK = 0.05
"""Seconds for which exposures wait for company before they are written; outcomes, for which somebody waits, do not."""
MOST_PENDING = 50_000
"""Events that may wait in memory for the disk."""
SEND_BYTES = 64 * 1024
SEND_EVENTS = 500
FOLD_EVENTS = 100
"""Events folded at a time: about 10 ms of the event loop."""
MOST_IN_STREAM = 100_000
"""Events in an experiment's stream beyond which this pod sends no more until others have been folded."""
IDLE = 0.25
"""Seconds between two looks at what may have changed, and between two tries of a Redis that is away."""
LONGEST_REST = 2.0
"""An experiment without events is looked at less and less often, down to once in so many seconds."""
SETTLED_SECONDS = 5.0
"""For so long Redis must have had an event before its absence from the disk is safe: several times what an append-only
file with `appendfsync everysec` or a replica may lag behind."""
PATIENCE = 12
"""Times that a segment's check is put off because its events may still wait in the stream."""
RECLAIM_SECONDS = 5.0
"""After so long, events that a pod took and did not fold are given to another: it has died, or lost its connection."""
HOUSEKEEPING_SECONDS = 5.0
FORGET_PODS_SECONDS = 3_600.0
END_SECONDS = 3.0
"""How long a service that stops goes on sending; what is left is on disk."""
TRIES = 5


class ExperimentDefinitions(Protocol):
    """What this pod knows of experiments."""

    def names(self) -> Iterable[str]:
        """Those whose events are folded here."""

    def definition(self, name: str) -> Experiment | None: ...

    def shares(self, name: str) -> Mapping[int, Mapping[str, float]]:
        """By phase and arm, as configured."""

    def deleted_at(self, name: str) -> float:
        """When one of this name was deleted last, seconds since 1970; 0: never. Events from before belong to it."""

    def deleted(self) -> Iterable[tuple[str, int]]:
        """Name and last phase of those that were deleted lately."""

    def expired(self) -> Iterable[tuple[str, int]]:
        """Name and last phase of those whose units are to be forgotten."""

    def phase(self, name: str) -> int:
        """The number of the present one."""


class EventLedger:
    """Takes note of events and folds them. Lives on one event loop; the disk has a thread of its own."""

    def __init__(
        self, store: LedgerStore, spool: Spool, definitions: ExperimentDefinitions, headroom: Headroom | None = None
    ) -> None:
        """Without `headroom`, events are sent however full Redis is."""
        self.counts: Counter[str] = Counter()
        """exposures, outcomes: written down here; folded, duplicates, foreign: found in streams here; sent, resent:
        put into streams; refused_*, dropped_*: exposures and outcomes that were not taken, or too old to be told
        from their repetitions; untaken_*: outcomes of units that were not met (`unmet_units.py`)."""
        self.spool = spool
        self._store = store
        self._definitions = definitions
        self._headroom = headroom
        self._unmet = Unmet(store)
        self._pod = uuid.uuid4().hex
        self._disk = ThreadPoolExecutor(1, "tween-spool")
        self._exposures: list[bytes] = []
        self._outcomes: list[tuple[list[bytes], asyncio.Future[None]]] = []
        self._pending = 0
        self._hurry = asyncio.Event()
        self._something = asyncio.Event()
        self._written = asyncio.Event()
        self._settling: dict[str, tuple[float, int]] = {}
        """By segment: when it was sent as a whole, and how often its check was put off since."""
        self._looks: dict[str, tuple[float, float]] = {}
        """By experiment: when its stream is looked at next, and how long it rests after that."""
        self._tasks: list[asyncio.Task[None]] = []
        self._forgotten: set[tuple[str, int, str]] = set()
        """Experiments that are over: name, last phase, and whether all of it or its units."""
        self._closing = False
        self._complained = False

    async def start(self) -> None:
        """Adopt what is left from before, and go on with it."""
        try:
            await self._on_disk(self.spool.open)
        except OSError as error:
            self._complain(error)
        steps = (self._write_down, self._send_on, self._fold_all, self._settle, self._keep_house)
        self._tasks = [asyncio.create_task(self._forever(step)) for step in steps]

    async def close(self) -> None:
        """Write down what waits and send it, if Redis takes it soon; the rest stays on disk."""
        self._closing = True
        self._hurry.set()
        self._something.set()
        deadline = time.monotonic() + END_SECONDS
        while (self._pending or self.spool.unread) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await cancel_all(self._tasks)
        await self._on_disk(self.spool.close)
        self._disk.shutdown()

    def expose(self, exposure: Exposure) -> None:
        """Take note of it; never waits and never fails."""
        if self._pending >= MOST_PENDING or self._closing:
            self.counts["dropped_exposures"] += 1
            return
        try:
            self._exposures.append(Event(exposure, time.time()).encoded())
        except (ValueError, TypeError):  # not a number
            self.counts["dropped_exposures"] += 1
            return
        self._pending += 1
        self._unmet.met(exposure.experiment, exposure.unit)
        self._something.set()

    async def record(
        self, name: str, experiment: Experiment, outcomes: Sequence[Outcome], who: str | None = None
    ) -> Admitted:
        """Take outcomes of an experiment, of which `who` tells; when this returns, those that are taken are on disk,
        and will be counted. Others are of units that were not met.

        Raises `UnknownMetric` and `SpoolFull`; then none was taken.
        """
        known = [metric.name for metric in experiment.metrics]
        for outcome in outcomes:
            if outcome.metric not in known:
                raise UnknownMetric(
                    f"experiment {name!r} has no metric {outcome.metric!r}; metrics: {', '.join(known) or 'none'}"
                )
        if self._pending >= MOST_PENDING or self._closing:
            self.counts["refused_outcomes"] += len(outcomes)
            raise SpoolFull("more events come than the disk takes; send this again a little later")
        admitted = await self._unmet.admit(name, experiment, outcomes, who)
        for why, count in admitted.dropped.items():
            self.counts[f"untaken_{why}"] += count
        if admitted.outcomes:
            await self._write_soon(admitted.outcomes)
        return admitted

    async def _write_soon(self, outcomes: Sequence[Outcome]) -> None:
        now = time.time()
        written = asyncio.get_running_loop().create_future()
        self._outcomes.append(([Event(outcome, now).encoded() for outcome in outcomes], written))
        self._pending += len(outcomes)
        self._something.set()
        self._hurry.set()
        await written

    async def sums(self, name: str) -> list[PhaseSums]:
        """What has been folded so far, by phase. Raises `RedisUnavailable`."""
        definition = self._definitions.definition(name)
        if definition is None:
            return []
        try:
            fields = await self._store.sums(name)
        except FAULTS as error:
            raise _away(error) from error
        return read_sums(fields, definition, self._definitions.shares(name), time.time())

    async def uncounted(self, name: str) -> dict[str, int]:
        """Outcomes so far that count nowhere, by why. Raises `RedisUnavailable`."""
        try:
            return read_uncounted(await self._store.some_sums(name, [f"{UNCOUNTED}/{why}" for why in get_args(Why)]))
        except FAULTS as error:
            raise _away(error) from error

    async def latches(self, name: str) -> dict[str, str]:
        """What reports have said and go on saying, by question. Raises `RedisUnavailable`."""
        try:
            return await self._store.latches(name)
        except FAULTS as error:
            raise _away(error) from error

    async def latch(self, name: str, said: Mapping[str, str]) -> None:
        """Keep what a report said, unless another one has answered the question before. Raises `RedisUnavailable`."""
        try:
            await self._store.latch(name, said)
        except FAULTS as error:
            raise _away(error) from error

    async def unmet(self, name: str) -> dict[str, int]:
        """Outcomes that are `waiting` for their unit to be met, and by reason those that were not taken. Raises
        `RedisUnavailable`."""
        try:
            return await self._store.unmet(name)
        except FAULTS as error:
            raise _away(error) from error

    async def records(self, name: str) -> AsyncIterator[tuple[str, UnitRecord]]:
        """Every unit that was met, in no order. Raises `RedisUnavailable`."""
        seen: set[str] = set()
        cursor, failures = 0, 0
        while True:
            try:
                cursor, found = await self._store.records(name, cursor)
            except FAULTS as error:
                failures += 1
                if failures == TRIES:
                    raise _away(error) from error
                await asyncio.sleep(IDLE)
                continue
            failures = 0
            for unit, raw in found.items():
                record = UnitRecord.decoded(raw)
                if record.meetings and unit not in seen:
                    seen.add(unit)
                    yield unit, record
            if not cursor:
                return

    async def forget(self, name: str, phases: int) -> None:
        """Delete all that is kept of a deleted experiment, whose last phase this was. Raises `RedisUnavailable`."""
        try:
            await self._store.forget(name, phases, period_of(time.time()))
        except FAULTS as error:
            raise _away(error) from error

    async def erase(self, name: str, unit: str) -> bool:
        """Forget a unit, and take what it did off the sums; False if it was not known. Raises `RedisUnavailable`."""
        definition = self._definitions.definition(name)
        if definition is None:
            return False
        try:
            known = await self._store.erase_unfolded(name, unit, self._definitions.phase(name))
            for _ in range(TRIES):
                [raw], _ = await self._store.look(name, [unit], [])
                if raw is None:
                    return known
                sums = {path: -amount for path, amount in contribution(UnitRecord.decoded(raw), definition).items()}
                if await self._store.commit(name, LedgerTransaction(units=[(unit, raw.decode(), "", "")], sums=sums)):
                    return True
        except FAULTS as error:
            raise _away(error) from error
        raise ExperimentConflict(f"events of this unit are being counted in experiment {name!r}; try again")

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step; while Redis is away it is tried again now and then."""
        while True:
            try:
                await step()
            except FAULTS as error:
                log.debug("%s: %s", step.__name__, type(error).__name__)
                await asyncio.sleep(IDLE * (1 + random.random()))
            except Exception:
                # A bug in one step must not end it for good: what was accepted waits on disk, and is tried again.
                log.exception("what was not expected, in %s", step.__name__)
                await asyncio.sleep(IDLE)

    async def _write_down(self) -> None:
        """Everything that has come, in one write."""
        await self._something.wait()
        if not self._outcomes and not self._closing:
            try:
                async with asyncio.timeout(TICK):
                    await self._hurry.wait()
            except TimeoutError:
                pass
        self._something.clear()
        self._hurry.clear()
        exposures, self._exposures = self._exposures, []
        outcomes, self._outcomes = self._outcomes, []
        events = exposures + [payload for some, _ in outcomes for payload in some]
        if not events:
            return
        refusal: SpoolFull | None = None
        try:
            await self._on_disk(lambda: self.spool.append(events))
        except SpoolFull as error:
            refusal = error
        except OSError as error:
            self._complain(error)
            refusal = SpoolFull("the disk that events are written to refuses them; nothing is accepted until it does")
        self._pending -= len(events)
        self._note(len(exposures), len(events) - len(exposures), refusal)
        for _, written in outcomes:
            if not written.done():
                if refusal is None:
                    written.set_result(None)
                else:
                    written.set_exception(refusal)
        self._written.set()

    def _note(self, exposures: int, outcomes: int, refusal: SpoolFull | None) -> None:
        if refusal is None:
            self.counts["exposures"] += exposures
            self.counts["outcomes"] += outcomes
        else:
            self.counts["dropped_exposures"] += exposures
            self.counts["refused_outcomes"] += outcomes

    async def _send_on(self) -> None:
        """The next events from disk, into their streams."""
        segment = next((one for one in self.spool.segments if one.read < one.size), None)
        if segment is None:
            self._written.clear()
            await self._written.wait()
            return
        if self._is_full(SENT):
            await asyncio.sleep(IDLE)
            return
        before = segment.read
        payloads = await self._on_disk(lambda: self.spool.read(SEND_BYTES))
        try:
            await self._send(payloads)
        except FAULTS:
            segment.read = before
            raise
        if segment.read == segment.size:
            self._settling[segment.path.name] = (time.monotonic(), 0)

    async def _send(self, payloads: Iterable[bytes]) -> None:
        by_experiment: dict[str, list[bytes]] = {}
        for payload in payloads:
            event = Event.decoded(payload)
            if event is None or _is_too_old(event) or self._is_of_deleted(event):
                self.counts["dropped_expired"] += 1
            else:
                by_experiment.setdefault(event.what.experiment, []).append(payload)
        for experiment, some in by_experiment.items():
            length = 0
            for start in range(0, len(some), SEND_EVENTS):
                length = await self._store.append(experiment, some[start : start + SEND_EVENTS])
            self.counts["sent"] += len(some)
            self._looks.pop(experiment, None)
            while length > MOST_IN_STREAM and self._definitions.definition(experiment) is not None:
                await asyncio.sleep(IDLE)
                length = await self._store.length(experiment)

    async def _settle(self) -> None:
        """Delete the segments that Redis has for good; send again what it has lost."""
        await asyncio.sleep(IDLE)
        now = time.monotonic()
        for segment in list(self.spool.segments):
            sent, put_off = self._settling.get(segment.path.name, (-math.inf, 0))  # an empty one was never sent
            if now - sent < SETTLED_SECONDS or segment.read < segment.size:
                continue
            size = segment.size
            missing, patient = await self._missing(segment)
            if missing and patient and put_off < PATIENCE:
                self._settling[segment.path.name] = (now, put_off + 1)
            elif missing:
                await self._send(missing)
                self.counts["resent"] += len(missing)
                self._settling[segment.path.name] = (time.monotonic(), 0)
            elif await self._on_disk(partial(self.spool.delete, segment, size)):
                self._settling.pop(segment.path.name, None)

    async def _missing(self, segment: Segment) -> tuple[list[bytes], bool]:
        """Events of a segment that have not been folded, and whether they may still wait in a stream."""
        missing: dict[str, list[bytes]] = {}
        for payloads in await self._on_disk(lambda: list(self.spool.everything(segment))):
            events: dict[str, list[tuple[bytes, Event]]] = {}
            for payload in payloads:
                event = Event.decoded(payload)
                if event is not None and not _is_too_old(event) and not self._is_of_deleted(event):
                    events.setdefault(event.what.experiment, []).append((payload, event))
            for experiment, some in events.items():
                for start in range(0, len(some), FOLD_EVENTS):
                    part = some[start : start + FOLD_EVENTS]
                    marks = [(period_of(event.received), event.mark) for _, event in part]
                    folded = await self._store.folded(experiment, marks)
                    lost = [payload for (payload, _), known in zip(part, folded, strict=True) if not known]
                    if lost:
                        missing.setdefault(experiment, []).extend(lost)
        lengths = [await self._store.length(experiment) for experiment in missing]
        return [payload for some in missing.values() for payload in some], any(lengths)

    async def _fold_all(self) -> None:
        """A few events of every experiment; where there are none, nobody looks for a while."""
        if self._is_full(FOLDED):
            await asyncio.sleep(IDLE)
            return
        busy = False
        for name in list(self._definitions.names()):
            now = time.monotonic()
            due, rest = self._looks.get(name, (now, IDLE))
            if now < due:
                continue
            entries = await self._store.take(name, self._pod, FOLD_EVENTS)
            self._looks[name] = (now, IDLE) if entries else (now + rest, min(2 * rest, LONGEST_REST))
            if entries:
                await self._fold(name, entries)
                busy = True
        await asyncio.sleep(0 if busy else IDLE)

    async def _fold(self, name: str, entries: list[tuple[str, bytes]]) -> None:
        """Fold entries of a stream; where others are always there first, they are folded when they are given anew."""
        definition = self._definitions.definition(name)
        if definition is None:
            return
        for _ in range(TRIES):
            change, counts = await self._work_out(name, definition, entries)
            if await self._store.commit(name, change):
                self.counts += counts
                return

    async def _work_out(
        self, name: str, definition: Experiment, entries: list[tuple[str, bytes]]
    ) -> tuple[LedgerTransaction, Counter[str]]:
        """What folding these entries changes."""
        counts: Counter[str] = Counter()
        change = LedgerTransaction(entries=[entry for entry, _ in entries])
        read = [Event.decoded(raw) for _, raw in entries]
        events = [event for event in read if event is not None and event.what.experiment == name]
        events = [event for event in events if not self._is_of_deleted(event)]
        counts["foreign"] += len(entries) - len(events)
        if not events:
            return change, counts
        units = sorted({event.what.unit for event in events})
        marks = [(period_of(event.received), event.mark) for event in events]
        records, folded = await self._store.look(name, units, marks)
        fresh: dict[str, list[Event]] = {}
        seen: set[str] = set()
        for event, (period, mark), known in zip(events, marks, folded, strict=True):
            if known or mark in seen:
                counts["duplicates"] += 1
                continue
            seen.add(mark)
            change.marks.append((period, mark))
            fresh.setdefault(event.what.unit, []).append(event)
            counts["folded"] += 1
        for unit, raw in zip(units, records, strict=True):
            if unit in fresh:
                record = UnitRecord.decoded(raw) if raw else UnitRecord()
                for path, amount in fold(record, fresh[unit], definition).items():
                    change.sums[path] = change.sums.get(path, 0.0) + amount
                until = max(event.received for event in fresh[unit]) + waits(definition)
                change.units.append(
                    (unit, (raw or b"").decode(), record.encoded(), "" if record.meetings else str(until))
                )
        return change, counts

    def _is_of_deleted(self, event: Event) -> bool:
        """Whether it is of an experiment that was deleted since, be there another of its name or not."""
        return event.received <= self._definitions.deleted_at(event.what.experiment)

    async def _keep_house(self) -> None:
        """Fold what dead pods have left, and forget what is in nobody's interest any more."""
        await asyncio.sleep(HOUSEKEEPING_SECONDS * (0.5 + random.random()))
        for name in list(self._definitions.names()):
            while not self._is_full(FOLDED) and (
                entries := await self._store.reclaim(name, self._pod, RECLAIM_SECONDS, FOLD_EVENTS)
            ):
                await self._fold(name, entries)
            while await self._store.give_up(name, time.time(), FOLD_EVENTS) == FOLD_EVENTS:
                pass
            await self._store.forget_pods(name, FORGET_PODS_SECONDS)
        await self._forget_what_is_over()

    async def _forget_what_is_over(self) -> None:
        """Once by each pod: of deleted experiments everything, of those that stopped long ago their units."""
        for name, phases in self._definitions.deleted():
            if (name, phases, "all") not in self._forgotten:
                await self._store.forget(name, phases, period_of(time.time()))
                self._forgotten.add((name, phases, "all"))
        for name, phases in self._definitions.expired():
            if (name, phases, "units") not in self._forgotten:
                await self._store.forget_units(name, phases)
                self._forgotten.add((name, phases, "units"))

    @property
    def redis_used(self) -> float:
        """The share of the memory of Redis that is taken (`cluster/redis_headroom.py`)."""
        return 0.0 if self._headroom is None else self._headroom.used

    def _is_full(self, share: float) -> bool:
        return self.redis_used >= share

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _complain(self, error: OSError) -> None:
        """Once; afterwards the counters tell."""
        if not self._complained:
            self._complained = True
            log.warning("the spool cannot be written: %s; exposures are dropped, outcomes refused", error.strerror)


def _is_too_old(event: Event) -> bool:
    """Whether it may have been counted so long ago that its mark is gone."""
    return event.received < time.time() - PERIOD


def _away(error: BaseException) -> RedisUnavailable:
    return RedisUnavailable(f"redis does not answer ({type(error).__name__}), and only it knows what has been counted")
