"""Sweeps in the service: a line of them, one at a time in each pod, and what is known of each on every pod.

A sweep runs in a process of its own (`sweep_process.py`) that asks this one for logits; a `JobRunner` has them made,
and Redis remembers them chunk by chunk. What is asked, how far it is and what came of it lie in Redis too, under a
lease that the pod renews (`sweep/jobs/sweep_store.py`). So any pod answers for any sweep, and when a pod dies another
one, or the same one after its restart, asks for the same logits again, finds them, and goes on where none is left.

While Redis does not answer, a sweep goes on in this pod, which says so (`shared`), and Redis is told when it is back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from app.errors import NotDone, Overloaded, RedisUnavailable, TweenError, UnknownSweep
from app.sweep.jobs.job_runner import JobRunner
from app.sweep.jobs.sweep_process import Done, Foreseen, Logits, Progress, SweepRefused, Wants, start
from app.sweep.jobs.sweep_state import SweepState
from app.sweep.jobs.sweep_store import LEASE_SECONDS, PublishResult, SweepStore
from app.sweep.logits.logit_cache import pass_name
from app.sweep.sweep_spec import BankFacts, SweepOrder, spec_from
from app.weights.recipe import Cookbook, Recipe

log = logging.getLogger(__name__)

BEAT_SECONDS = LEASE_SECONDS / 5
LOOK_SECONDS = 1.0
"""How often an idle pod looks for a sweep that nobody works on."""
FOLLOW_SECONDS = 0.25
"""How often a sweep is looked at for those who follow it."""
QUIET_SECONDS = 15.0
"""After which followers are told that there is no news, or proxies would hang up."""
REMEMBERED = 32
"""Sweeps that have ended and are still known here without Redis."""
MOST_STARTS = 3
"""A sweep that so many pods have died of is given up."""
LISTED = 100
"""Sweeps that are listed, the newest."""
RESULT = "result.json"
"""The file that holds what the state leaves out."""
BROKEN = "something went wrong here; the log tells what"
LATER = 30
"""Seconds after which it makes sense to ask again when the line is full."""


@dataclass(eq=False)
class _Job:
    """A sweep that was ordered here or that this pod works on.

    `here`: what this pod knows of it is the newest there is. `told`: Redis knows of it.
    """

    order: SweepOrder
    state: SweepState
    here: bool = True
    told: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class SweepManager:
    """Orders in, states out."""

    def __init__(
        self,
        bank: BankFacts,
        fingerprint: str,
        name_of: Callable[[Recipe], str],
        runner: JobRunner | None,
        store: SweepStore | None,
        most_texts: int,
        most_waiting: int,
    ) -> None:
        """`name_of` names all that decides the logits of a recipe besides the texts. Without a runner, sweeps wait for
        other pods of the same bank."""
        self._bank = bank
        self._fingerprint = fingerprint
        self._name_of = name_of
        self._cookbook = Cookbook(bank.variants)
        self._runner = runner
        self._store = store
        self._most_texts = most_texts
        self._most_waiting = most_waiting
        self._pod = uuid.uuid4().hex
        self._jobs: dict[str, _Job] = {}
        self._ordered = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work on sweeps."""
        if self._runner is not None:
            self._running = asyncio.create_task(self._run(self._runner))

    async def close(self) -> None:
        """Leave what is not done to others."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    # -- what is asked of them ---------------------------------------------------------------------------------

    async def submit(self, order: SweepOrder) -> SweepState:
        """Put a sweep in line. Raises what `spec_from` raises, and `Overloaded` when the line is full."""
        await asyncio.to_thread(spec_from, order, self._bank, self._most_texts)
        waiting = await self._waiting()
        if waiting >= self._most_waiting:
            raise Overloaded(f"{waiting} sweeps are waiting, and no more may; try again later", retry_after=LATER)
        job = _Job(order, SweepState(secrets.token_hex(8), self._fingerprint, time.time()))
        self._jobs[job.state.id] = job
        await self._tell_of(job)
        self._ordered.set()
        return job.state

    async def _waiting(self) -> int:
        """How many sweeps nobody works on yet."""
        if self._store is not None:
            with suppress(RedisUnavailable):
                documents = await self._store.states(await self._store.waiting())
                return sum(SweepState.load(document).status == "queued" for document in documents if document)
        return sum(job.state.status == "queued" for job in self._jobs.values())

    async def get(self, sweep: str) -> SweepState:
        """What is known of a sweep; raises `UnknownSweep`, or `RedisUnavailable` where only Redis would know."""
        job = self._jobs.get(sweep)
        if job is not None and (job.here or self._store is None):
            return job.state
        if self._store is not None:
            try:
                (document,) = await self._store.states([sweep])
                if document is not None:
                    state = SweepState.load(document)
                    result = await self._store.file(sweep, RESULT) if state.status == "done" else None
                    return replace(state, result=json.loads(result)) if result else state
            except RedisUnavailable:
                if job is None:
                    raise
        if job is None:
            raise UnknownSweep(f"there is no sweep {sweep[:64]!r}; GET /v1/sweeps lists those that there are")
        return job.state

    async def all(self) -> list[SweepState]:
        """The newest sweeps, without their results."""
        known = {sweep: job.state for sweep, job in self._jobs.items()}
        if self._store is not None:
            with suppress(RedisUnavailable):
                for document in await self._store.states((await self._store.all())[:LISTED]):
                    state = SweepState.load(document) if document else None
                    if state and not (state.id in self._jobs and self._jobs[state.id].here):
                        known[state.id] = state
        return sorted(known.values(), key=lambda state: state.created, reverse=True)[:LISTED]

    async def follow(self, sweep: str, version: int = 0) -> AsyncIterator[SweepState | None]:
        """What is known of a sweep, now and after every change, if it is newer than `version`; None for no news. Ends
        with the sweep."""
        state = await self.get(sweep)
        told = time.monotonic()
        while True:
            if state.version > version:
                yield state
                version, told = state.version, time.monotonic()
            elif time.monotonic() - told > QUIET_SECONDS:
                yield None
                told = time.monotonic()
            if state.has_ended:
                return
            await asyncio.sleep(FOLLOW_SECONDS)
            with suppress(RedisUnavailable):
                state = await self.get(sweep)

    async def cancel(self, sweep: str) -> SweepState:
        """End a sweep; one that has ended stays as it is. Raises as `get` does."""
        state = await self.get(sweep)
        if state.has_ended:
            return state
        job = self._jobs.get(sweep)
        if job is not None:
            job.cancelled.set()
        if self._store is not None:
            with suppress(RedisUnavailable):
                await self._store.cancel(sweep)
                if await self._store.claim(sweep, self._pod):  # nobody works on it, and nobody needs to
                    job = await self._adopted(self._store, sweep, state)
        if job is not None and job.here and job.state.status == "queued":
            await self._end(job, status="cancelled")
        # Whoever works on it hears of it with the next beat.
        deadline = time.monotonic() + 2 * BEAT_SECONDS
        while not (state := await self.get(sweep)).has_ended and time.monotonic() < deadline:
            await asyncio.sleep(FOLLOW_SECONDS)
        return state

    async def file(self, sweep: str, name: str) -> bytes:
        """A file of the report; raises `NotDone` if there is none (yet), and as `get` does."""
        state = await self.get(sweep)
        if state.status != "done":
            raise NotDone(f"sweep {sweep} is {state.status}; there is a report once it is done")
        job = self._jobs.get(sweep)
        content = job.files.get(name) if job else None
        if content is None and self._store is not None:
            content = await self._store.file(sweep, name)
        if content is None:
            why = "; ".join((state.result or {}).get("warnings", []))
            raise NotDone(f"sweep {sweep} has no {name}: {why or 'it is no longer remembered'}")
        return content

    # -- the work ----------------------------------------------------------------------------------------------

    async def _run(self, runner: JobRunner) -> None:
        """Work on sweeps that nobody works on, oldest first."""
        while True:
            self._ordered.clear()
            job = await self._next()
            if job is not None:
                await self._work(job, runner)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ordered.wait(), LOOK_SECONDS)

    async def _next(self) -> _Job | None:
        """A sweep whose lease this pod has now; while Redis is away, one that was ordered here."""
        for job in list(self._jobs.values()):
            if job.here and not job.told:
                await self._tell_of(job)
        if self._store is not None:
            with suppress(RedisUnavailable):
                await self._catch_up(self._store)
                return await self._claimed(self._store)
        return next((job for job in self._jobs.values() if job.state.status == "queued"), None)

    async def _catch_up(self, store: SweepStore) -> None:
        """Learn how far other pods are with what was ordered here."""
        elsewhere = [sweep for sweep, job in self._jobs.items() if not job.here and not job.state.has_ended]
        for sweep, document in zip(elsewhere, await store.states(elsewhere), strict=True):
            if document:
                self._jobs[sweep].state = SweepState.load(document)

    async def _claimed(self, store: SweepStore) -> _Job | None:
        waiting = await store.waiting()
        for sweep, document in zip(waiting, await store.states(waiting), strict=True):
            state = SweepState.load(document) if document else None
            if state is None:
                await store.drop(sweep)
            elif state.bank == self._fingerprint and await store.claim(sweep, self._pod):
                job = await self._adopted(store, sweep, state)
                if job is not None:
                    return job
        return None

    async def _adopted(self, store: SweepStore, sweep: str, state: SweepState) -> _Job | None:
        """The sweep as this pod's own, unless there is nothing left to do."""
        (document,) = await store.states([sweep])  # again: it may have ended before it was claimed
        state = SweepState.load(document) if document else state
        known = self._jobs.get(sweep)
        asked = None if known else await store.order(sweep)
        if state.has_ended or (known is None and asked is None):
            await store.end(sweep, self._pod)
            return None
        job = known or _Job(SweepOrder.of(json.loads(asked or b"")), state)
        job.state, job.here, job.told = state, True, True
        self._jobs[sweep] = job
        if await store.is_cancelled(sweep):
            job.cancelled.set()
        return job

    async def _work(self, job: _Job, runner: JobRunner) -> None:
        """One sweep, from whatever is known of it to its end."""
        if job.cancelled.is_set():
            await self._end(job, status="cancelled")
            return
        if job.state.starts >= MOST_STARTS:
            await self._end(job, status="failed", error=f"{MOST_STARTS} pods have ended while they worked on it")
            return
        if job.state.starts:
            log.warning("going on with sweep %s, whose pod is gone", job.state.id)
        started, starts = job.state.started or time.time(), job.state.starts + 1
        job.here = True
        job.state = job.state.but(status="running", started=started, starts=starts, texts_done=0)
        conversation = asyncio.create_task(self._converse(job, runner))
        beat = asyncio.create_task(self._beat(job))
        try:
            await asyncio.wait({conversation, beat}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            outcome = conversation.result() if conversation.done() else None
            for task in (conversation, beat):
                task.cancel()
            heard = (await asyncio.gather(conversation, beat, return_exceptions=True))[1]
            if outcome is not None:
                await self._end(job, **outcome)
            elif heard is PublishResult.CANCEL:
                await self._end(job, status="cancelled")
            elif heard is PublishResult.LOST:
                log.warning("sweep %s: another pod works on it now", job.state.id)
            elif isinstance(heard, Exception):
                log.error("sweep %s cannot go on", job.state.id, exc_info=heard)
                await self._end(job, status="failed", error=BROKEN)
            else:
                await self._leave(job)

    async def _converse(self, job: _Job, runner: JobRunner) -> dict[str, object]:
        """Do what the sweep's process wants, until it knows the answer: how the sweep ended."""
        process, pipe = start()
        talking = ThreadPoolExecutor(1, "tween-sweep")  # a pipe that is full or empty stops whoever waits for it
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(talking, pipe.send, (job.order.values, asdict(self._bank)))
            while True:
                want: Wants = await loop.run_in_executor(talking, pipe.recv)
                if isinstance(want, Progress):
                    job.state = job.state.but(texts_done=want.done, texts_expected=want.expected)
                elif isinstance(want, Foreseen):
                    await runner.begin([(texts, self._cookbook.read(recipe)) for texts, recipe in want.chunks])
                elif isinstance(want, Logits):
                    await loop.run_in_executor(talking, pipe.send, await self._logits(want, runner))
                elif isinstance(want, Done):
                    job.files = {**want.files, RESULT: json.dumps(want.result).encode()}
                    return {"status": "done", "result": want.result}
                elif isinstance(want, SweepRefused):
                    return {"status": "failed", "error": want.sentence}
        except TweenError as error:
            return {"status": "failed", "error": str(error)}
        except (EOFError, OSError):
            log.error("sweep %s: its process has died", job.state.id)
            return {"status": "failed", "error": "the process that worked on it died; is there enough memory?"}
        except Exception:
            # Whoever follows the sweep is told that it ended, and the next one in line gets its turn.
            log.exception("sweep %s cannot go on", job.state.id)
            return {"status": "failed", "error": BROKEN}
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
            await asyncio.to_thread(talking.shutdown)
            pipe.close()

    async def _logits(self, want: Logits, runner: JobRunner) -> tuple[bytes, bool]:
        """Logits, and whether they were remembered."""
        recipe = self._cookbook.read(want.recipe)
        name = pass_name(self._name_of(recipe), want.texts)
        size = len(want.texts) * len(self._bank.labels) * 4
        if self._store is not None and not runner.has_begun(want.texts, recipe):
            with suppress(RedisUnavailable):
                found = await self._store.logits(name)
                if found is not None and len(found) == size:
                    return found, True
        logits = await runner.logits(want.texts, recipe)
        if self._store is not None:
            with suppress(RedisUnavailable):
                await self._store.keep_logits(name, logits)
        return logits, False

    async def _beat(self, job: _Job) -> PublishResult:
        """Tell Redis of a sweep again and again; ends when somebody wants it to end, or when another pod has it."""
        while not job.cancelled.is_set():
            heard = await self._tell_of(job)
            if heard in (PublishResult.CANCEL, PublishResult.LOST):
                return heard
            with suppress(TimeoutError):
                await asyncio.wait_for(job.cancelled.wait(), BEAT_SECONDS)
        return PublishResult.CANCEL

    async def _end(self, job: _Job, **how: object) -> None:
        job.state = job.state.but(ended=time.time(), **how)
        log.info("sweep %s is %s", job.state.id, job.state.status)
        await self._tell_of(job)
        ended = [sweep for sweep, other in self._jobs.items() if other.state.has_ended]
        for sweep in ended[:-REMEMBERED]:
            del self._jobs[sweep]

    async def _leave(self, job: _Job) -> None:
        """This pod stops: whoever looks next may go on at once."""
        job.state = job.state.but(status="queued", starts=job.state.starts - 1)
        if self._store is not None:
            with suppress(RedisUnavailable):
                await self._store.publish(job.state.id, self._pod, job.state.dump())
                await self._store.release(job.state.id, self._pod)

    async def _tell_of(self, job: _Job) -> PublishResult | None:
        """Bring Redis up to date; None if there is none that answers, or nothing to hear."""
        try:
            heard = await self._written(job, self._store) if self._store is not None else None
            shared = self._store is not None
        except RedisUnavailable as reason:
            if job.state.shared:
                log.warning("sweep %s is known to this pod alone: %s", job.state.id, reason)
            heard, shared, job.told = None, False, False
        if job.state.shared != shared:
            job.state = job.state.but(shared=shared)
        return heard

    async def _written(self, job: _Job, store: SweepStore) -> PublishResult | None:
        state = replace(job.state, shared=True)
        if not job.told:
            await store.add(state.id, state.created, json.dumps(job.order.values).encode(), state.dump())
            job.told = True
        if state.status == "queued":
            job.here = False  # whichever pod claims it knows more from now on
            return None
        if state.has_ended:
            await store.keep_files(state.id, job.files)
        heard = await store.publish(state.id, self._pod, state.dump())
        if heard is PublishResult.LOST:
            job.here = False
        elif state.has_ended:
            await store.end(state.id, self._pod)
        elif heard is PublishResult.FORGOTTEN:
            await store.add(state.id, state.created, json.dumps(job.order.values).encode(), state.dump())
        return heard
