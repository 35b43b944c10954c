"""The Redis tier: blends that every pod can use, and that outlive a restart.

A blend is a manifest and chunks of at most 4 MiB, sent one by one (pipelining big values was measured to be
slower and to hold up other clients). The manifest is written last and holds a checksum of every chunk: a
blend that is half written, cut short, changed or foreign fails its check, is deleted and counted, and is a
miss like any other. An outage of Redis is a slower answer and never an error; after a failure the tier is
left alone for a moment, so that a hanging server costs one caller its time-out and not each of them.

Keys, for the bank whose fingerprint starts with FP:

    NAMESPACE:blend:1:FP:{KEY}:manifest     JSON
    NAMESPACE:blend:1:FP:{KEY}:0 ...        bytes

The braces are a hash tag: on a cluster, all keys of a blend live on one node.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any, cast

import torch
import xxhash
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from torch import Tensor

from app.cache.tiers import Stored

log = logging.getLogger(__name__)

CHUNK = 4 * 1024 * 1024
"""Bytes in a value: while one of a few MiB is sent, other clients wait for milliseconds and not for a whole blend."""
TIMEOUT = 1.0
"""Seconds for one call, which moves at most one chunk."""
CONNECT_TIMEOUT = 0.25
REST = 1.0
"""Seconds for which the tier is left alone after a failure."""
FORMAT = 1


class Wrong(Exception):
    """What lies in Redis is not the blend that it claims to be."""


def connect(url: str) -> Redis:
    """A client whose calls fail fast: redis-py's own defaults wait 59 s on a server that hangs."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=16,
        timeout=0.05,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=CONNECT_TIMEOUT,
        health_check_interval=30,
        # One retry, at once: after a restart of the server the pooled connections are stale.
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)  # closing it closes the pool


class RedisTier:
    """Blends of one bank in Redis, float vectors of `bytes_each` bytes."""

    name = "redis"

    def __init__(
        self, redis: Redis, fingerprint: str, dtype: torch.dtype, bytes_each: int, namespace: str, ttl: int
    ) -> None:
        self.hits = self.misses = self.corrupt = self.errors = self.writes = 0
        self._redis = redis
        self._fingerprint = fingerprint
        self._dtype = str(dtype).removeprefix("torch.")
        self._bytes = bytes_each
        self._prefix = f"{namespace}:blend:{FORMAT}:{fingerprint[:16]}"
        self._ttl = ttl
        self._resting_until = 0.0

    @property
    def available(self) -> bool:
        """False for a moment after a failure."""
        return time.monotonic() >= self._resting_until

    # -- the Tier protocol -----------------------------------------------------------------------------

    async def get(self, key: str, out: Tensor) -> bool:
        if not self.available:
            return False
        try:
            manifest = await self._manifest(key)
            if manifest is None:
                self.misses += 1
                return False
            await self._read_chunks(key, manifest, out)
        except Wrong as error:
            self.corrupt += 1
            log.warning("blend %s in redis is wrong and is deleted: %s", key, error)
            await self.delete(key)
            return False
        except (RedisError, OSError) as error:
            self._failed("read", error)
            return False
        self.hits += 1
        return True

    async def put(self, key: str, recipe: str, vector: Tensor) -> None:
        if not self.available:
            return
        data: memoryview = vector.detach().cpu().view(torch.uint8).numpy().data
        chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        checksums: list[str] = []
        manifest = {
            "key": key,
            "recipe": recipe,
            "fingerprint": self._fingerprint,
            "dtype": self._dtype,
            "bytes": len(data),
            "created": time.time(),
            "checksums": checksums,
        }
        try:
            for index, chunk in enumerate(chunks):
                # Hashing is memory-bound work without the global lock; a thread keeps the loop free.
                checksums.append(await asyncio.to_thread(xxhash.xxh3_128_hexdigest, chunk))
                await self._redis.set(self._name(key, index), bytes(chunk), ex=self._ttl)
            await self._redis.set(self._name(key, "manifest"), json.dumps(manifest), ex=self._ttl)
        except (RedisError, OSError) as error:
            self._failed("write", error)
            return
        self.writes += 1

    async def delete(self, key: str) -> bool:
        if not self.available:
            return False
        names = [self._name(key, "manifest")]
        names += [self._name(key, index) for index in range(-(-self._bytes // CHUNK))]
        try:
            return int(await self._redis.unlink(*names)) > 0
        except (RedisError, OSError) as error:
            self._failed("delete", error)
            return False

    async def find(self, key: str) -> Stored | None:
        if not self.available:
            return None
        try:
            manifest = await self._manifest(key)
            left = await self._redis.pttl(self._name(key, "manifest"))
        except Wrong:
            return None
        except (RedisError, OSError) as error:
            self._failed("look-up", error)
            return None
        if manifest is None:
            return None
        return Stored(
            key, manifest["recipe"], manifest["bytes"], manifest["created"], left / 1e3 if left >= 0 else None
        )

    async def stored(self) -> list[Stored]:
        if not self.available:
            return []
        pattern = f"{self._prefix}:*:manifest"
        try:
            names = [name.decode() async for name in self._redis.scan_iter(match=pattern, count=1000)]
        except (RedisError, OSError) as error:
            self._failed("listing", error)
            return []
        found = [await self.find(name.rsplit("{", 1)[1].split("}", 1)[0]) for name in names]
        return [blend for blend in found if blend is not None]

    async def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            await self._redis.ping()
        except (RedisError, OSError):
            return False
        return True

    def counters(self) -> dict[str, int]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "writes": self.writes,
            "corrupt": self.corrupt,
            "errors": self.errors,
        }

    # -- bytes -----------------------------------------------------------------------------------------

    async def _manifest(self, key: str) -> dict[str, Any] | None:
        raw = await self._redis.get(self._name(key, "manifest"))
        if raw is None:
            return None
        try:
            manifest: dict[str, Any] = json.loads(raw)
            checksums = manifest["checksums"]
            expected = {
                "key": key,
                "fingerprint": self._fingerprint,
                "dtype": self._dtype,
                "bytes": self._bytes,
            }
            if any(manifest[name] != value for name, value in expected.items()):
                raise Wrong("the manifest belongs to another blend")
            if len(checksums) != -(-self._bytes // CHUNK) or not isinstance(manifest["recipe"], str):
                raise Wrong("the manifest is not complete")
            float(manifest["created"])
        except (ValueError, KeyError, TypeError) as error:
            raise Wrong("the manifest cannot be read") from error
        return manifest

    async def _read_chunks(self, key: str, manifest: dict[str, Any], out: Tensor) -> None:
        target = out.view(torch.uint8)
        for index, checksum in enumerate(manifest["checksums"]):
            chunk = cast(bytes | None, await self._redis.get(self._name(key, index)))
            start = index * CHUNK
            length = min(CHUNK, self._bytes - start)
            if chunk is None or len(chunk) != length:
                raise Wrong(f"chunk {index} has {len(chunk or b'')} bytes of {length}")
            if await asyncio.to_thread(xxhash.xxh3_128_hexdigest, chunk) != checksum:
                raise Wrong(f"the checksum of chunk {index} differs")
            target[start : start + length].copy_(torch.frombuffer(bytearray(chunk), dtype=torch.uint8))

    def _name(self, key: str, part: str | int) -> str:
        return f"{self._prefix}:{{{key}}}:{part}"

    def _failed(self, doing: str, error: Exception) -> None:
        self.errors += 1
        self._resting_until = time.monotonic() + REST
        log.warning("redis: %s failed (%s); going on without it", doing, type(error).__name__)
