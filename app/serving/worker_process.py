"""Processes that compute, each with its own interpreter and its own threads of torch.

They are forked from a server that has imported everything and run nothing, so that a worker starts in milliseconds
and shares the libraries' memory. A worker sees the members and the slots of the service (`weights/shared_memory.py`),
so what crosses to it is tokens, numbers of vectors and logits. A worker that dies, or that has stood still for so long
that it must hang, is replaced, and what it was asked for is asked again: nothing that a worker does is wrong when it is
done twice.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import pickle
import signal
import time
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

from app.blocked_signals import sigterm_blocked
from app.errors import TweenError, WorkerLost
from app.models.classifier import Classifier
from app.serving.cpu_affinity import current_core, move_to
from app.serving.executor import ModelRunner
from app.weights.arena import Vectors

log = logging.getLogger(__name__)

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])

HANG_SECONDS, HANG_TIMES = 30.0, 20
"""A worker hangs that has not answered for so many seconds, and so many times what its longest answer took; one
that takes another's place begins anew."""
AT_ONCE = 64 * 1024
"""Bytes that a pipe takes though nobody reads it yet; more are sent by a thread, as they may wait for the reader."""


def prepare() -> None:
    """Start the server that workers are forked from: it imports what they need, and the caller need not wait. Neither
    it nor a worker hears a SIGTERM: they end when their pipe does."""
    resource_tracker.ensure_running()  # by itself: in starting it, Python lets signals through that were blocked
    with sigterm_blocked():
        forkserver.ensure_running()


def _start(process: ForkServerProcess) -> None:
    prepare()  # anew, if the server was killed
    process.start()


def work(connection: Connection, classifier: Classifier, slots: Vectors, threads: int, int8: bool) -> None:
    """A worker's life: answer until the other end of the pipe closes, for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service ends its workers
    torch.set_num_threads(threads)
    machine = ModelRunner(classifier, slots, int8)
    gc.freeze()  # what the libraries made stays, and need not be walked again and again
    while True:
        try:
            serial, name, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = serial, True, getattr(machine, name)(*arguments)
        except TweenError as error:
            answer = serial, False, error
        except Exception as error:
            answer = serial, False, f"{type(error).__name__}: {error}"
        try:
            connection.send_bytes(pickle.dumps((*answer, current_core())))
        except OSError:
            return


class ProcessTransport:
    """To the machine of a process of its own."""

    def __init__(self, classifier: Classifier, slots: Vectors, threads: int, int8: bool = False) -> None:
        """`threads` of torch in the worker."""
        self._life = (classifier, slots, threads, int8)
        self._process: ForkServerProcess | None = None
        self._connection: Connection | None = None
        self._serial = self._restarts = 0
        self._longest = 0.0
        self._answered: asyncio.Future[tuple[bool, Any]] = asyncio.get_running_loop().create_future()

    @property
    def restarts(self) -> int:
        return self._restarts

    async def start(self) -> None:
        self._longest = 0.0
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=work, args=(theirs, *self._life), name="tween-worker", daemon=True)
        await asyncio.to_thread(_start, process)
        theirs.close()
        atexit.register(process.kill)  # where nobody closes us: multiprocessing waits at exit, after a SIGTERM
        self._process, self._connection = process, ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)
        os.set_blocking(ours.fileno(), True)  # uvloop has made it another, and then a long question does not go through

    async def call(self, name: str, *arguments: object) -> Any:
        """What the worker's machine answers, or raises. `WorkerLost` if two workers in a row die of the question."""
        for _ in range(2):
            try:
                if self._connection is None:
                    self._restarts += 1
                    log.warning("a worker process has died; another takes its place")
                    await self.start()
                begun, patience = time.monotonic(), max(HANG_SECONDS, HANG_TIMES * self._longest)
                async with asyncio.timeout(patience):
                    done, reply = await self._ask(name, arguments)
                self._longest = max(self._longest, time.monotonic() - begun)
            except (EOFError, OSError) as error:
                if isinstance(error, TimeoutError):
                    log.warning("a worker process has not answered for %.0f s and is ended", patience)
                self._end()
                continue
            if done:
                return reply
            raise reply if isinstance(reply, TweenError) else RuntimeError(f"a worker failed: {reply}")
        raise WorkerLost("two worker processes died or hung while they computed this; is there enough memory?")

    def replace(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        process = self._process
        self._discard()
        if process is not None:
            await asyncio.to_thread(process.join, 5)
            if process.is_alive():
                process.kill()

    async def _ask(self, name: str, arguments: tuple[object, ...]) -> tuple[bool, Any]:
        assert self._connection is not None
        self._serial += 1
        self._answered = asyncio.get_running_loop().create_future()
        question = pickle.dumps((self._serial, name, arguments))
        if len(question) <= AT_ONCE:
            self._connection.send_bytes(question)
        else:
            try:
                await asyncio.to_thread(self._connection.send_bytes, question)
            except asyncio.CancelledError:
                self._end()  # half a question lies in the pipe
                raise
        return await self._answered

    def _read(self) -> None:
        """Called by the loop when the worker has answered, or is gone."""
        assert self._connection is not None
        try:
            serial, done, reply, core = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._discard()
            if not self._answered.done():
                self._answered.set_exception(EOFError())
                self._answered.exception()  # seen, though perhaps nobody waits
            return
        move_to(core)
        # An answer to a caller who was cancelled meanwhile comes before the one that is waited for.
        if serial == self._serial and not self._answered.done():
            self._answered.set_result((done, reply))

    def _end(self) -> None:
        """Whatever is left of the worker."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()
        self._discard()

    def _discard(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
        if self._process is not None:
            atexit.unregister(self._process.kill)
        self._connection = self._process = None
