"""Leader-elected loop: the pod that holds a document's lease takes its step; when it dies, another pod goes on."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from app.cluster.document_store import DocumentStore
from app.errors import TweenError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between looks for due steps."""
LEASE_SECONDS = 5.0
"""After which another pod leads where one has died."""


class Leased(Protocol):
    @property
    def name(self) -> str: ...


L = TypeVar("L", bound=Leased)


async def run_as_leader(
    due: Callable[[], Iterable[L]],
    store: DocumentStore | None,
    step: Callable[[L], Awaitable[None]],
    expected: tuple[type[TweenError], ...],
) -> None:
    """Take the `step` of each document that is `due`, on one pod at a time, until cancelled. A step that fails is tried
    again at the next look; `expected` errors, such as losing a race, are logged for debugging only."""
    pod = uuid.uuid4().hex
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for document in due():
            try:
                if store is None or await store.lease(document.name, pod, LEASE_SECONDS):
                    await step(document)
            except expected as reason:
                log.debug("%s waits: %s", document.name, reason)
            except Exception:
                # Trouble with one document must not hold up the others.
                log.exception("%s cannot go on", document.name)
