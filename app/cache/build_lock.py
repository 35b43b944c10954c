"""Who builds a blend that many pods want: a lock with an expiry and an owner's token.

It saves work and guards nothing: blends are named by their content, so two pods that build the same one do no harm.
An owner that dies holds the others up until the lock expires, and none of them waits longer than that.
"""

from __future__ import annotations

import secrets

from app.cluster.redis_client import RedisClient

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
"""In a script, because between a GET and a DEL the lock may expire and be somebody else's."""


class Claims:
    """Locks that this pod holds, by name."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._tokens: dict[str, str] = {}

    async def claim(self, name: str, seconds: float) -> bool:
        """Take the lock for so long; False if another has it. Raises `Unavailable`."""
        token = secrets.token_hex(16)
        taken = await self._client.call(lambda redis: redis.set(name, token, nx=True, px=int(seconds * 1000)))
        if taken:
            self._tokens[name] = token
        return bool(taken)

    async def release(self, name: str) -> None:
        """Give the lock back, if it is held here and has not passed to another. Raises `Unavailable`."""
        token = self._tokens.pop(name, None)
        if token is not None:
            await self._client.call(lambda redis: redis.eval(RELEASE, 1, name, token))
