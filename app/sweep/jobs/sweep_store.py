"""Sweeps in Redis, so that every pod can tell of them and any pod can go on with one whose pod is gone.

    NAMESPACE:{sweeps}:all               {id: when it came}, sorted by that
    NAMESPACE:{sweeps}:waiting           the same for those that have not ended
    NAMESPACE:{sweeps}:order:ID          what is asked, data included
    NAMESPACE:{sweeps}:state:ID          what is known: a document with a version that grows with every change
    NAMESPACE:{sweeps}:files:ID          {name: content} of the report
    NAMESPACE:{sweeps}:cancel:ID         there if somebody wants it to end
    NAMESPACE:{sweeps}:lease:ID          the pod that works on it, for LEASE_SECONDS after it was last heard of
    NAMESPACE:sweep-logits:NAME          logits of a chunk of texts on a blend
    NAMESPACE:sweep-texts:DIGEST         texts of a chunk, for workers

A pod writes the state only while nobody else has the lease, in one step with renewing it; so of two pods that both
believe to work on a sweep (one was cut off, say) one stops at its next write. What the documents say is nothing to
this file.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Mapping, Sequence
from enum import Enum
from typing import Any, cast

from app.cluster.redis_client import RedisCallFailed, RedisClient
from app.errors import RedisUnavailable

LEASE_SECONDS = 5.0
"""After which a pod that was not heard of is taken for dead."""
PUBLISH = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 'lost' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
if redis.call('EXISTS', KEYS[3]) == 1 then return 'cancel' end
if not holder then return 'forgotten' end
return 'kept'
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class PublishResult(Enum):
    """What Redis says to a pod that tells of its sweep: go on, end it, another has it, or that Redis had forgotten who
    works on it, and perhaps everything else."""

    KEPT = "kept"
    CANCEL = "cancel"
    LOST = "lost"
    FORGOTTEN = "forgotten"


class SweepStore:
    """The sweeps of one namespace. Every method raises `RedisUnavailable` when Redis does not answer or refuses."""

    def __init__(self, client: RedisClient, namespace: str, ttl: int) -> None:
        """Everything is forgotten `ttl` seconds after it was written."""
        self._client = client
        self._prefix = f"{namespace}:{{sweeps}}"
        self._logits = f"{namespace}:sweep-logits"
        self._texts = f"{namespace}:sweep-texts"
        self._ttl = ttl

    async def add(self, sweep: str, created: float, order: bytes, state: bytes) -> None:
        """Put a sweep in line, or back in line where it was forgotten."""
        await self._call("set", self._key("order", sweep), zlib.compress(order), ex=self._ttl)
        await self._call("set", self._key("state", sweep), state, ex=self._ttl, nx=True)
        await self._call("zadd", f"{self._prefix}:all", {sweep: created})
        await self._call("zadd", f"{self._prefix}:waiting", {sweep: created})

    async def waiting(self) -> list[str]:
        """Sweeps that have not ended, oldest first."""
        return await self._ids("waiting")

    async def all(self) -> list[str]:
        """Every sweep that is remembered, newest first."""
        await self._call("zremrangebyscore", f"{self._prefix}:all", "-inf", time.time() - self._ttl)
        return (await self._ids("all"))[::-1]

    async def order(self, sweep: str) -> bytes | None:
        """What is asked."""
        found = await self._call("get", self._key("order", sweep))
        return zlib.decompress(found) if found else None

    async def states(self, sweeps: Sequence[str]) -> list[bytes | None]:
        """What is known of each."""
        if not sweeps:
            return []
        found = await self._call("mget", [self._key("state", sweep) for sweep in sweeps])
        return cast(list[bytes | None], found)

    async def claim(self, sweep: str, pod: str) -> bool:
        """Take the lease; False if another pod has it."""
        taken = await self._call("set", self._key("lease", sweep), pod, nx=True, px=int(LEASE_SECONDS * 1000))
        return bool(taken)

    async def publish(self, sweep: str, pod: str, state: bytes) -> PublishResult:
        """Tell of a sweep that this pod works on, and renew the lease."""
        keys = [self._key(part, sweep) for part in ("lease", "state", "cancel")]
        said = await self._call("eval", PUBLISH, 3, *keys, pod, int(LEASE_SECONDS * 1000), state, self._ttl)
        return PublishResult(said.decode())

    async def keep_files(self, sweep: str, files: Mapping[str, bytes]) -> None:
        """Keep files of a report, before the state says that it is done."""
        if files:
            packed = {name: zlib.compress(content) for name, content in files.items()}
            await self._call("hset", self._key("files", sweep), mapping=packed)
            await self._call("expire", self._key("files", sweep), self._ttl)

    async def end(self, sweep: str, pod: str) -> None:
        """Let go of a sweep whose last state is published. The texts that it was asked about are forgotten."""
        await self._call("zrem", f"{self._prefix}:waiting", sweep)
        await self._call("delete", self._key("order", sweep))
        await self.release(sweep, pod)

    async def release(self, sweep: str, pod: str) -> None:
        """Give the lease back, if it is still this pod's, so that others need not wait for it to run out."""
        await self._call("eval", RELEASE, 1, self._key("lease", sweep), pod)

    async def drop(self, sweep: str) -> None:
        """Take a sweep out of line that nobody can work on: Redis has lost what is asked."""
        await self._call("zrem", f"{self._prefix}:waiting", sweep)
        await self._call("zrem", f"{self._prefix}:all", sweep)

    async def cancel(self, sweep: str) -> None:
        """Tell whichever pod works on it that it is to end."""
        await self._call("set", self._key("cancel", sweep), "1", ex=self._ttl)

    async def is_cancelled(self, sweep: str) -> bool:
        return bool(await self._call("exists", self._key("cancel", sweep)))

    async def file(self, sweep: str, name: str) -> bytes | None:
        """A file of the report."""
        found = await self._call("hget", self._key("files", sweep), name)
        return zlib.decompress(found) if found else None

    async def logits(self, name: str) -> bytes | None:
        """The logits that go by that name."""
        return cast(bytes | None, await self._call("get", f"{self._logits}:{name}"))

    async def keep_logits(self, name: str, logits: bytes) -> None:
        await self._call("set", f"{self._logits}:{name}", logits, ex=self._ttl)

    async def texts(self, digest: str) -> bytes | None:
        """The texts that go by that digest."""
        found = await self._call("get", f"{self._texts}:{digest}")
        return zlib.decompress(found) if found else None

    async def keep_texts(self, digest: str, texts: bytes) -> None:
        await self._call("set", f"{self._texts}:{digest}", zlib.compress(texts), ex=self._ttl)

    def _key(self, part: str, sweep: str) -> str:
        return f"{self._prefix}:{part}:{sweep}"

    async def _ids(self, part: str) -> list[str]:
        found = await self._call("zrange", f"{self._prefix}:{part}", 0, -1)
        return [member.decode(errors="replace") for member in found]

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        try:
            return await self._client.call(
                lambda redis: cast(Awaitable[Any], getattr(redis, name)(*arguments, **options))
            )
        except RedisCallFailed as error:
            raise RedisUnavailable(
                f"redis does not answer or refuses ({error}), and only it knows of other pods"
            ) from error
