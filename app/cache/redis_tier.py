"""The Redis tier: blends that every pod can use, and that outlive a restart.

A blend is a manifest and chunks of a few MiB. The manifest is written last and holds a checksum of every chunk: a
blend that is half written, cut short, changed or foreign fails its check, is deleted and counted, and is a miss like
any other. An outage of Redis is a slower answer and never an error.

Keys, where FP starts the bank's fingerprint and SHAPE is a hash of all that decides what the bytes mean (layout,
dtype, length, size of a chunk), so that pods which differ in it do not delete each other's blends as foreign:

    NAMESPACE:blend:2:FP-SHAPE:{KEY}:manifest     JSON
    NAMESPACE:blend:2:FP-SHAPE:{KEY}:0 ...        bytes
    NAMESPACE:blend:2:FP-SHAPE:{KEY}:asked        it was asked for, and did not lie here
    NAMESPACE:blend:2:FP-SHAPE:used               when each blend was last used

The braces are a hash tag: on a cluster, all keys of a blend live on one node.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.cache.bulk_transfer import BulkTransfer, CalledOff, Wrong
from app.cache.redis_budget import RedisBudget
from app.cache.sharing_rule import SharingRule
from app.cache.tier import Stored
from app.cluster.circuit_breaker import CircuitBreaker
from app.cluster.redis_client import CircuitOpen, RedisCallFailed, RedisClient

log = logging.getLogger(__name__)

FORMAT = 2
QUIET_SECONDS = 10.0
"""Between two lines in the log: a server that refuses everything would fill it."""
RENEW = """
local found = 0
for _, name in ipairs(KEYS) do found = found + redis.call('EXPIRE', name, ARGV[1]) end
return found
"""


@dataclass(frozen=True)
class BlendFormat:
    """What all blends of one bank have in common, and a foreign one has not. `bytes` is the length of a vector."""

    fingerprint: str
    layout: str
    dtype: str
    bytes: int

    def prefix(self, namespace: str, chunk: int) -> str:
        """What the keys of these blends start with, in chunks of so many bytes."""
        digest = hashlib.sha256(f"{self.layout} {self.dtype} {self.bytes} {chunk}".encode()).hexdigest()
        return f"{namespace}:blend:{FORMAT}:{self.fingerprint[:16]}-{digest[:8]}"


class RedisTier:
    """Blends of one bank in Redis."""

    name = "redis"

    def __init__(
        self,
        client: RedisClient,
        chunks: BulkTransfer,
        shape: BlendFormat,
        rule: SharingRule,
        namespace: str,
        ttl: int,
        limit: int,
    ) -> None:
        """`ttl` is in seconds, `limit` in bytes for all blends of this bank."""
        self.hits = self.misses = self.corrupt = self.errors = self.writes = 0
        self.called_off = self.too_large = 0
        self.rule = rule
        self._client = client
        self._chunks = chunks
        self._shape = shape
        self._prefix = shape.prefix(namespace, chunks.size)
        self._ttl = ttl
        self._budget = RedisBudget(client, self._prefix, shape.bytes, limit, ttl)
        self._quiet_until = 0.0

    # -- the Tier protocol -----------------------------------------------------------------------------

    async def get(self, key: str, kind: str, out: Tensor) -> bool:
        if not self.rule.reads(kind):
            return False
        try:
            if await self._read(key, kind, out):
                return True
            self.misses += 1
            return False
        except RedisCallFailed as reason:
            self._failed("read", reason)
            return False

    def built(self, kind: str, seconds: float) -> None:
        self.rule.built(kind, seconds)

    @property
    def is_writable(self) -> bool:
        return self.rule.writes and not self._chunks.breaker.is_open

    async def wants(self, key: str, requests: int) -> bool:
        if requests > 1 or self.rule.writes_at_once:
            return True
        try:
            name = self._name(key, "asked")
            return not await self._client.call(lambda redis: redis.set(name, 1, nx=True, ex=self._ttl))
        except RedisCallFailed as reason:
            self._failed("note", reason)
            return False

    async def put(self, key: str, recipe: str, vector: Tensor, called_off: Callable[[], bool]) -> float | None:
        started = time.perf_counter()
        try:
            if await self._is_there(key) and await self._renew(key):
                return 0.0
            if not await self._budget.room():
                self.too_large += 1
                self._tell(f"a blend of {self._shape.bytes} bytes is too large for redis or for its budget there")
                return None
            # Before, to make room; and after, because who lists blends meanwhile forgets one without a manifest.
            await self._budget.use(key, self._remove)
            await self._write(key, recipe, vector, called_off)
            await self._budget.use(key, self._remove)
        except CalledOff:
            self.called_off += 1
            await self.delete(key)
            return None
        except RedisCallFailed as reason:
            self._failed("write", reason)
            await self.delete(key)
            return None
        seconds = time.perf_counter() - started
        self.rule.wrote(seconds)
        self.writes += 1
        return seconds

    async def renew(self, key: str) -> None:
        try:
            await self._renew(key)
        except RedisCallFailed as reason:
            self._failed("renewal", reason)

    async def delete(self, key: str) -> bool:
        try:
            removed = await self._remove(key)
            await self._budget.forget(key)
        except RedisCallFailed as reason:
            self._failed("delete", reason)
            return False
        return removed

    async def find(self, key: str) -> Stored | None:
        try:
            return await self._find(key)
        except RedisCallFailed as reason:
            self._failed("look-up", reason)
            return None

    async def stored(self) -> list[Stored]:
        try:
            keys = await self._budget.keys()
            found = {key: await self._find(key) for key in keys}
            for key in (key for key, blend in found.items() if blend is None):
                await self._budget.forget(key)
        except RedisCallFailed as reason:
            self._failed("listing", reason)
            return []
        return [blend for blend in found.values() if blend is not None]

    async def is_well(self) -> bool:
        try:
            await self._client.ping()
        except RedisCallFailed:
            return False
        return not self._chunks.breaker.is_open

    def counters(self) -> dict[str, int]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "writes": self.writes,
            "corrupt": self.corrupt,
            "errors": self.errors,
            "evictions": self._budget.evictions,
            "called_off": self.called_off,
            "too_large": self.too_large,
        }

    def costs(self) -> list[tuple[str, str, float]]:
        return self.rule.costs()

    def breakers(self) -> dict[str, CircuitBreaker]:
        return {"small": self._client.breaker, "weights": self._chunks.breaker}

    # -- reading ---------------------------------------------------------------------------------------

    async def _read(self, key: str, kind: str, out: Tensor) -> bool:
        """Fill `out`; False if the blend is not there, or is there and wrong."""
        started = time.perf_counter()
        try:
            manifest = await self._manifest(key)
            if manifest is None:
                return False
            await self._read_chunks(key, manifest["checksums"], out, self.rule.fetch_limit(kind))
        except CalledOff:
            return False
        except Wrong as error:
            self.corrupt += 1
            self._tell(f"blend {key} in redis is wrong and is deleted: {error} ({self.corrupt} so far)")
            await self.delete(key)
            return False
        except RedisCallFailed as reason:
            if reason.timed_out:
                self.rule.fetch_timed_out(time.perf_counter() - started)
            raise
        self.rule.fetched(time.perf_counter() - started)
        self.hits += 1
        await self._note_use(key)
        return True

    async def _note_use(self, key: str) -> None:
        try:
            await self._budget.use(key, self._remove)
        except RedisCallFailed as reason:
            self._failed("bookkeeping", reason)

    async def _read_chunks(self, key: str, checksums: list[str], out: Tensor, seconds: float) -> None:
        place = await self._client.place(self._name(key, 0))
        if out.device.type == "cpu":
            await self._chunks.read(place, self._names(key), checksums, _memory(out), seconds)
        else:
            staging = torch.empty_like(out, device="cpu")
            await self._chunks.read(place, self._names(key), checksums, _memory(staging), seconds)
            await asyncio.to_thread(out.copy_, staging)

    async def _manifest(self, key: str) -> dict[str, Any] | None:
        raw = await self._client.call(lambda redis: redis.get(self._name(key, "manifest")))
        if raw is None:
            return None
        try:
            manifest: dict[str, Any] = json.loads(raw)
            expected = self._describe(key)
            if any(manifest[name] != value for name, value in expected.items()):
                raise Wrong("the manifest belongs to another blend")
            checksums = manifest["checksums"]
            if len(checksums) != len(self._names(key)) or not isinstance(manifest["recipe"], str):
                raise Wrong("the manifest is not complete")
            float(manifest["created"])
        except (ValueError, KeyError, TypeError) as error:
            raise Wrong("the manifest cannot be read") from error
        return manifest

    # -- writing ---------------------------------------------------------------------------------------

    async def _is_there(self, key: str) -> bool:
        try:
            return await self._manifest(key) is not None
        except Wrong:
            return False

    async def _write(self, key: str, recipe: str, vector: Tensor, called_off: Callable[[], bool]) -> None:
        place = await self._client.place(self._name(key, 0))
        data = vector if vector.device.type == "cpu" else await asyncio.to_thread(vector.cpu)
        checksums = await self._chunks.write(place, self._names(key), _memory(data), self._ttl, called_off)
        manifest = {**self._describe(key), "recipe": recipe, "created": time.time(), "checksums": checksums}
        text = json.dumps(manifest)
        await self._client.call(lambda redis: redis.set(self._name(key, "manifest"), text, ex=self._ttl))

    async def _renew(self, key: str) -> bool:
        """Have a blend stay as long as one that is written now; False if a part of it is missing."""
        names = [self._name(key, "manifest"), *self._names(key)]
        found = await self._client.call(lambda redis: redis.eval(RENEW, len(names), *names, self._ttl))
        return int(found) == len(names)

    async def _remove(self, key: str) -> bool:
        names = [self._name(key, "manifest"), *self._names(key)]
        return int(await self._client.call(lambda redis: redis.unlink(*names))) > 0

    def _describe(self, key: str) -> dict[str, object]:
        """What a manifest of that key must say."""
        return {
            "format": FORMAT,
            "key": key,
            "fingerprint": self._shape.fingerprint,
            "layout": self._shape.layout,
            "dtype": self._shape.dtype,
            "bytes": self._shape.bytes,
            "chunk": self._chunks.size,
        }

    # -- names -----------------------------------------------------------------------------------------

    async def _find(self, key: str) -> Stored | None:
        try:
            manifest = await self._manifest(key)
        except Wrong:
            return None
        if manifest is None:
            return None
        left = await self._client.call(lambda redis: redis.pttl(self._name(key, "manifest")))
        return Stored(
            key, manifest["recipe"], self._shape.bytes, manifest["created"], left / 1e3 if left >= 0 else None
        )

    def _names(self, key: str) -> list[str]:
        return [self._name(key, index) for index in range(self._chunks.count(self._shape.bytes))]

    def _name(self, key: str, part: str | int) -> str:
        return f"{self._prefix}:{{{key}}}:{part}"

    def _failed(self, doing: str, reason: RedisCallFailed) -> None:
        if isinstance(reason, CircuitOpen):
            return
        self.errors += 1
        self._tell(f"redis: {doing} failed ({reason}); going on without it ({self.errors} errors so far)")

    def _tell(self, what: str) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning(what)


def _memory(vector: Tensor) -> memoryview:
    """The bytes of a vector in this process's memory, to be read and written where they lie."""
    return vector.detach().view(torch.uint8).numpy().data
