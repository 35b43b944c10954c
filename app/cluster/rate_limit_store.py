"""How often a name may still call, counted in Redis for all pods.

A bucket that refills steadily (the generic cell rate algorithm, https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm)
is one number, the time at which it would be full again; a day's quota is a counter that ends at midnight UTC. Both are
looked at and moved in one script, by the clock of Redis. Permits are taken by the handful, so that a busy caller does
not cost a round trip for each request; libraries for this ask once per request, over connections of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from app.cluster.redis_client import RedisCallFailed, RedisClient

TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local granted, apart, burst, quota = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local wait, free, left = 0, -1, -1
local full = now
if burst > 0 then
  full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
  free = math.floor(burst - (full - now) / apart + 1e-6)
  granted = math.min(granted, free)
  if free < 1 then wait = full - now - (burst - 1) * apart end
end
if quota > 0 then
  left = quota - tonumber(redis.call('GET', KEYS[2]) or 0)
  granted = math.min(granted, left)
  if left < 1 then wait = math.max(wait, 86400 - now % 86400) end
end
granted = math.max(granted, 0)
if granted > 0 and burst > 0 then
  full = full + granted * apart
  redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', math.ceil((full - now) * 1000) + 1000)
  free = free - granted
end
if granted > 0 and quota > 0 then
  redis.call('INCRBY', KEYS[2], granted)
  redis.call('EXPIRE', KEYS[2], math.ceil(86400 - now % 86400))
  left = left - granted
end
return {granted, string.format('%.6f', wait), free, left}
"""


@dataclass(frozen=True)
class LeasedTokens:
    """How many permits were given, and if none, the seconds until there may be one; what is left for others, of the
    bucket and of the day, -1 where there is no such limit."""

    permits: int
    wait: float
    free: int
    left: int


class RateLimitStore:
    """Takes permits out of buckets in Redis."""

    def __init__(self, client: RedisClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def take(self, name: str, want: int, per_second: float | None, per_day: int | None) -> LeasedTokens | None:
        """Up to `want` permits; None if Redis does not answer. A bucket holds what a second brings, one permit at
        least."""
        # The braces keep both on one node of a cluster.
        bucket, day = (f"{self._namespace}:limit:{{{name}}}:{part}" for part in ("bucket", "day"))
        apart = 1 / per_second if per_second else 0
        size = max(1.0, per_second) if per_second else 0
        arguments = (want, apart, size, per_day or 0)
        try:
            answer = await self._client.call(
                lambda redis: cast(Awaitable[list[Any]], redis.eval(TAKE, 2, bucket, day, *arguments))
            )
        except RedisCallFailed:
            return None
        granted, wait, free, left = answer
        return LeasedTokens(int(granted), float(wait), int(free), int(left))
