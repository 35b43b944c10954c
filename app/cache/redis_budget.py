"""How many blends of a bank may lie in Redis, and which one goes when there are more.

Blends of one bank are all of one size, so a budget in bytes is a number of blends. A sorted set remembers when each
was last written or read, by the server's own clock. It may be lost or evicted like anything else in Redis: what is
read again is entered again, and when a blend finds the set empty, the blends are counted anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from app.cluster.redis_client import FAULTS, RedisCallFailed, RedisClient

SHARE = 0.5
"""Of the server's memory (maxmemory) for the blends of one bank, whatever the budget says. A blend larger than that
is never sent: a server that makes room by evicting would lose everything else, and then refuse it all the same."""

USE = """
local now = redis.call('TIME')
local added = redis.call('ZADD', KEYS[1], now[1] + now[2] / 1000000, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local count, most = redis.call('ZCARD', KEYS[1]), tonumber(ARGV[2])
local was_empty = (count == 1) and added or 0
if count <= most then return {was_empty, {}} end
return {was_empty, redis.call('ZRANGE', KEYS[1], 0, count - most - 1)}
"""


class RedisBudget:
    """The blends below `prefix`, each of `each` bytes, `limit` bytes for all of them. Methods raise
    `RedisCallFailed`."""

    def __init__(self, client: RedisClient, prefix: str, each: int, limit: int, ttl: int) -> None:
        self.evictions = 0
        self._client = client
        self._prefix = prefix
        self._name = f"{prefix}:used"
        self._each = each
        self._limit = limit
        self._ttl = ttl
        self._room = limit // each

    async def room(self) -> int:
        """Ask how many blends may lie there now; 0 if not even one fits."""
        try:
            memory = await self._client.call(lambda redis: redis.info("memory"))
            most = int(memory.get("maxmemory") or 0)
        except RedisCallFailed as reason:
            if str(reason) != "NoPermissionError":
                raise
            most = 0  # a login that may not ask; the budget alone counts
        self._room = (min(self._limit, int(most * SHARE)) if most else self._limit) // self._each
        return self._room

    async def use(self, key: str, remove: Callable[[str], Awaitable[object]]) -> None:
        """Note that a blend is written or read now, and `remove` those that have been idle longest beyond the room."""
        was_empty, beyond = cast(
            tuple[int, list[bytes]],
            await self._client.call(lambda redis: redis.eval(USE, 1, self._name, key, self._room, self._ttl)),
        )
        if was_empty:
            await self._count_anew()
        for idle in (name.decode() for name in beyond):
            # In this order: who dies in between leaves an entry that the next one finds, and not a blend nobody counts.
            await remove(idle)
            await self.forget(idle)
            self.evictions += 1

    async def forget(self, key: str) -> None:
        await self._client.call(lambda redis: redis.zrem(self._name, key))

    async def keys(self) -> list[str]:
        """The blends that are known to lie there, those used last first."""
        names = await self._client.call(lambda redis: redis.zrange(self._name, 0, -1, desc=True))
        return [name.decode() for name in cast(list[bytes], names)]

    async def _count_anew(self) -> None:
        """Enter the blends that lie there and are not known, as ones that nobody has used for long."""
        try:
            pattern = f"{self._prefix}:*:manifest"
            async for name in self._client.redis.scan_iter(match=pattern, count=1000):
                await self._enter(name.decode().rsplit("{", 1)[1].split("}", 1)[0])
        except FAULTS as error:
            raise RedisCallFailed.because(error) from error

    async def _enter(self, key: str) -> None:
        await self._client.call(lambda redis: redis.zadd(self._name, {key: 0}, nx=True))
