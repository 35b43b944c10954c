"""Documents that all pods agree on, followed by each of them: aliases, experiments, and tables of segments.

Pods learn of a change by a message, or at the latest by comparing the mark twice a second. Each remembers every
document it has read. If Redis has lost one (evicted, flushed, restarted empty) or has an older one, the pod writes its
own back: documents live as long as a pod or Redis does, and versions never go back. Without Redis they live in this
process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.cluster.cancel import cancel_all
from app.cluster.document_store import DocumentStore, Snapshot
from app.cluster.precondition import Expected, Precondition
from app.errors import PreconditionFailed, RedisUnavailable, TweenError
from app.names import MAX_NAME

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
"""How often the mark is compared: every pod sees a change within a second even if its message is lost."""
ATTEMPTS = 10
"""How often a change without a version is tried while others change the same document."""
FORGET_SECONDS = 7 * 24 * 3600
"""After which a deleted document is forgotten, its version numbers too."""


class Document(Protocol):
    """Something that has a name and a number, which rises with every change."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def gone_since(self) -> float | None:
        """When it was deleted, seconds since 1970; 0: it has never existed; None: it exists."""

    def encoded(self) -> bytes: ...


D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Change(Generic[D]):
    """A document after a change, whether that created it, how many pods were asked to have its blends in memory first,
    and how many had them."""

    document: D
    created: bool
    asked: int
    warm: int


class Replicated(Generic[D]):
    """The documents of one kind, as this pod knows them: `known`, by name."""

    def __init__(
        self,
        kind: str,
        store: DocumentStore | None,
        decode: Callable[[str, bytes], D | None],
        on_change: Callable[[D], Awaitable[None]],
        conflict: type[TweenError],
        noun: str,
        on_question: Callable[[str, str], Coroutine[None, None, None]] | None = None,
    ) -> None:
        """`decode` gives None for what is none of ours. `on_change` is awaited with each document that is new here,
        the newest of a name last if at all; `on_question` with ticket and recipe when pods are to have a blend.
        `conflict` is raised where a change starts from another version; `noun` is what its sentence calls a document.
        """
        self.known: dict[str, D] = {}
        self._kind = kind
        self._store = store
        self._decode = decode
        self._on_change = on_change
        self._conflict = conflict
        self._noun = noun
        self._on_question = on_question
        self._read: Snapshot | None = None
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def shared(self) -> bool:
        """Whether other pods see them."""
        return self._store is not None

    async def start(self) -> None:
        """Learn what there is and act on it; from then on, follow it."""
        if self._store is None:
            return
        await self._check(self._store)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.spawn(self._watch(self._store))
        self.spawn(self._listen(self._store))

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def change(
        self,
        empty: D,
        expected: Expected,
        change: Callable[[D], D],
        prepare: Callable[[D], AbstractAsyncContextManager[tuple[int, int]]] | None = None,
    ) -> Change[D]:
        """Compare and set: read the newest document of a name (`empty` where there is none), change it, and put it in
        that one's place on every pod; once more where another change came between.

        `prepare` is entered before, around the write, and gives how many pods were asked for the blends and have them.
        Raises the `conflict` (`PreconditionFailed` where a header says so) if the change may not start from what is
        there, `RedisUnavailable`, and what `change` and `prepare` raise.
        """
        for _ in range(ATTEMPTS):
            read, before = await self.newest(empty.name, empty)
            self.check(before, expected)
            after = change(before)
            if after is before:
                return Change(before, False, 0, 0)
            async with prepare(after) if prepare else nullcontext((0, 0)) as (asked, warm):
                if await self.replace(read, before, after):
                    await self.adopt(after)
                    return Change(after, before.gone_since is not None, asked, warm)
        raise self._conflict(f"{self._called(empty)} is changed by others again and again; try later")

    def check(self, document: D, expected: Expected) -> None:
        """Raises the `conflict` or `PreconditionFailed` where a change may not start from a document."""
        condition = expected if isinstance(expected, Precondition) else Precondition(expected)
        refusal = condition.refusal(document.version, document.gone_since is None)
        if refusal is not None:
            raise (PreconditionFailed if condition.by_header else self._conflict)(f"{self._called(document)} {refusal}")

    def _called(self, document: D) -> str:
        return f"{self._noun} {document.name[:MAX_NAME]!r}"

    async def newest(self, name: str, otherwise: D) -> tuple[bytes | None, D]:
        """The document in Redis, and the newest that is known of it there or here."""
        mine = self.known.get(name, otherwise)
        if self._store is None:
            return None, mine
        document = (await self._store.read()).documents.get(name)
        theirs = self._decode(name, document) if document else None
        return document, theirs if theirs and theirs.version >= mine.version else mine

    async def replace(self, document: bytes | None, before: D, after: D) -> bool:
        """Make a change, from what `newest` gave; False if somebody was faster."""
        if self._store is None:
            return self.known.get(after.name, before) == before
        return await self._store.swap(after.name, document, after.encoded())

    async def adopt(self, document: D) -> None:
        """Take a document for the newest of its name, and act on it; not if a newer one has become known since it was
        read or written, because whoever waits for Redis or for a blend may be late."""
        known = self.known.get(document.name)
        if known is not None and known.version > document.version:
            return
        self.known[document.name] = document
        await self._on_change(document)

    def is_overtaken(self, document: D) -> bool:
        """Whether another version has become known while this one was acted on."""
        return self.known[document.name] is not document

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Have something go on in the background until `close`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, store: DocumentStore) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._news.wait()
            self._news.clear()
            await self._check(store)

    async def _check(self, store: DocumentStore) -> None:
        """Compare the mark, and where it differs, what stands behind it."""
        try:
            if self._read is None or await store.mark() != self._read.mark:
                self._read = await self._compare(store, await store.read())
        except RedisUnavailable:
            log.debug("%s: redis is away", self._kind)
        except Exception:
            log.exception("%s: the check failed", self._kind)  # and is tried again: a pod must not go deaf

    async def _compare(self, store: DocumentStore, shelf: Snapshot) -> Snapshot:
        """Adopt what is newer in Redis, and write back what it has lost; gives what was read."""
        theirs = {name: self._decode(name, document) for name, document in shelf.documents.items()}
        for name in {*theirs, *self.known}:
            other, mine = theirs.get(name), self.known.get(name)
            newest = other if other and (mine is None or other.version >= mine.version) else mine
            if newest is None:
                log.warning("%s: the document of %r in redis is not one of ours", self._kind, name)
            elif newest.gone_since is not None and time.time() - newest.gone_since > FORGET_SECONDS:
                await store.swap(name, shelf.documents.get(name), None)
                self.known.pop(name, None)
            elif newest is mine:
                log.warning("%s: redis has lost version %d of %r; writing it back", self._kind, mine.version, name)
                await store.swap(name, shelf.documents.get(name), mine.encoded())
            elif newest != mine:
                self.spawn(self.adopt(newest))
        return shelf

    async def _listen(self, store: DocumentStore) -> None:
        def asked(ticket: str, text: str) -> None:
            if self._on_question is not None:
                self.spawn(self._on_question(ticket, text))

        while True:
            try:
                await store.listen(self._news.set, asked)
            except RedisUnavailable:
                log.debug("%s: redis is away", self._kind)
            except Exception:
                log.exception("%s: listening failed", self._kind)  # and goes on: messages are hints, but quick ones
            await asyncio.sleep(CHECK_SECONDS)
