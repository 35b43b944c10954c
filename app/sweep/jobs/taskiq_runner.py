"""Passes by any number of worker processes, on any machines: taskiq on Redis Streams.

A task is a chunk of texts and a recipe; the texts lie in Redis under their digest, and so do logits once they are made,
under the name that every runner gives them. A worker acknowledges a task when its logits are stored. What a killed
worker had taken is given to another one after a while, and a chunk that is done twice gives the same twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from taskiq import AsyncBroker
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq.exceptions import SendTaskError
from taskiq_redis import RedisStreamBroker

from app.cluster.redis_client import connect
from app.cluster.redis_url import RedisUrl
from app.errors import BadSettings, RedisUnavailable, WorkerLost
from app.sweep.jobs.sweep_store import SweepStore
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import Asked, digest_of, pass_name
from app.weights.recipe import Recipe

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""After which what a worker has taken and not acknowledged is given to another."""
PATIENCE_SECONDS = 180.0
"""For which a chunk is waited for before it is asked for again."""
LOOK_SECONDS = 0.05
NUDGE_SECONDS = 2.0
"""How often a pod that waits sends an empty task: taskiq's broker looks for what dead workers have left only after it
was sent something (`RedisStreamBroker.listen` in taskiq-redis 1.2.4)."""
NUDGE = ("", "", "")
TASK = "tween:pass"


def broker_of(url: str, namespace: str, idle_seconds: float = IDLE_SECONDS) -> AsyncBroker:
    """The stream that pods and workers share. Raises `BadSettings` for a Redis of several servers."""
    if RedisUrl.parse(url).kind != "server":
        raise BadSettings("REDIS_URL: workers of sweeps need one server, redis://, rediss:// or unix://")
    return RedisStreamBroker(
        url,
        queue_name=f"{namespace}:sweep-tasks",
        consumer_group_name=f"{namespace}:sweep-workers",
        consumer_name=f"{socket.gethostname()}-{os.getpid()}",  # so that XPENDING tells who holds what
        consumer_id="0",
        xread_count=1,  # or the first worker would take all there is
        xread_block=500,
        idle_timeout=int(idle_seconds * 1000),
        unacknowledged_batch_size=1,
        unacknowledged_lock_timeout=idle_seconds,
        maxlen=100_000,
    )


class TaskiqRunner:
    """Has workers run the passes, and waits for what they store."""

    def __init__(
        self,
        broker: AsyncBroker,
        store: SweepStore,
        name_of: Callable[[Recipe], str],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._name_of = name_of
        self._patience = patience
        self._asked: set[str] = set()
        self._task = broker.register_task(_left_to_workers, task_name=TASK)

    async def begin(self, chunks: Sequence[Asked]) -> None:
        with suppress(RedisUnavailable):
            for texts, recipe in chunks:
                name = self._name(texts, recipe)
                if name not in self._asked and await self._store.logits(name) is None:
                    await self._ask(name, texts, recipe)

    def has_begun(self, texts: Sequence[str], recipe: Recipe) -> bool:
        return self._name(texts, recipe) in self._asked

    async def logits(self, texts: Sequence[str], recipe: Recipe) -> bytes:
        """Raises `WorkerLost` if no worker gives them though they were asked for twice, and `RedisUnavailable`."""
        name = self._name(texts, recipe)
        for _ in range(2):
            if name not in self._asked:
                await self._ask(name, texts, recipe)
            found = await self._awaited(name)
            self._asked.discard(name)
            if found is not None:
                return found
        raise WorkerLost(f"no worker ran a pass for {2 * self._patience:.0f} s; is a `tween sweep-worker` running?")

    async def _ask(self, name: str, texts: Sequence[str], recipe: Recipe) -> None:
        digest = digest_of(texts)
        await self._store.keep_texts(digest, json.dumps(list(texts)).encode())
        await self._send(name, digest, recipe.text)
        self._asked.add(name)

    async def _send(self, name: str, digest: str, recipe: str) -> None:
        try:
            await self._task.kiq(name, digest, recipe)
        except SendTaskError as error:
            raise RedisUnavailable("redis does not answer or refuses, so no worker can be asked for a pass") from error

    async def _awaited(self, name: str) -> bytes | None:
        """The logits when they are there; None when patience is at its end."""
        started = nudged = time.monotonic()
        while time.monotonic() - started < self._patience:
            with suppress(RedisUnavailable):
                found = await self._store.logits(name)
                if found is not None:
                    return found
                if time.monotonic() - nudged > NUDGE_SECONDS:
                    nudged = time.monotonic()
                    await self._send(*NUDGE)
            await asyncio.sleep(LOOK_SECONDS)
        return None

    def _name(self, texts: Sequence[str], recipe: Recipe) -> str:
        return pass_name(self._name_of(recipe), texts)


async def _left_to_workers(name: str, digest: str, recipe: str) -> None:
    """A pod only asks; what a worker does under this name is in `work`."""


async def work(provider: LocalProvider, url: str, namespace: str, ttl: int, idle_seconds: float) -> None:
    """Run what is asked for, one chunk after another, until cancelled."""
    broker, client = broker_of(url, namespace, idle_seconds), connect(RedisUrl.parse(url))
    store = SweepStore(client, namespace, ttl)

    async def run(name: str, digest: str, recipe: str) -> None:
        if (name, digest, recipe) == NUDGE:
            return
        asked = provider.cookbook.read(recipe)
        texts = await store.texts(digest)
        if texts is None or not name.startswith(provider.key(asked)):
            log.warning("left out a pass: its texts are forgotten, or it is another bank's")
        elif await store.logits(name) is None:
            logits = await asyncio.to_thread(provider.logits, json.loads(texts), asked)
            await store.keep_logits(name, logits.tobytes())
            log.info("%s on texts %s", recipe, digest)

    broker.register_task(run, task_name=TASK)
    await broker.startup()
    log.info("waiting for passes of sweeps")
    try:
        await run_receiver_task(broker, max_async_tasks=1, ack_time=AcknowledgeType.WHEN_EXECUTED)
    finally:
        await broker.shutdown()
        await client.aclose()
