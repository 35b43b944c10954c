"""What one pod does for all of them: the one that holds a lease of a few seconds; when it dies, another goes on."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable

from app.cluster.document_store import DocumentStore
from app.errors import AliasConflict, ExperimentConflict, RedisUnavailable, UnknownExperiment
from app.experiments.experiment_registry import ExperimentRegistry
from app.experiments.record import Record

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often it is looked what is due."""
LEASE_SECONDS = 5.0
"""After which another pod goes on where one has died."""


async def drive(
    experiments: ExperimentRegistry,
    store: DocumentStore | None,
    is_due: Callable[[Record], bool],
    step: Callable[[Record], Awaitable[None]],
) -> None:
    """Take the step of each experiment that is due, on one pod at a time, until cancelled."""
    pod = uuid.uuid4().hex
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for record in experiments.all():
            if not is_due(record):
                continue
            try:
                if store is None or await store.lease(record.name, pod, LEASE_SECONDS):
                    await step(record)
            except (RedisUnavailable, ExperimentConflict, AliasConflict, UnknownExperiment) as reason:
                log.debug("%s waits: %s", record.name, reason)
            except Exception:
                # One experiment's trouble must not hold up the others; it is tried again.
                log.exception("%s cannot go on", record.name)
