"""Cards of banks in Redis: from them, pods without the members learn which bank they serve.

A card is a few hundred kilobytes (`models/bank_manifest.py`). Every pod puts its bank's card there when it starts, and
looks now and then whether it is there still, because Redis may have lost it.

    NAMESPACE:bank:1:FINGERPRINT     the card
    NAMESPACE:bank:1:current         the fingerprint of the bank whose members a pod has loaded last
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from app.cluster.redis_client import CircuitOpen, RedisCallFailed, RedisClient

log = logging.getLogger(__name__)

FORMAT = 1
LOOK_SECONDS = 30.0
"""Between two looks whether the card is still there."""


class BankManifestStore:
    """The cards in one namespace. Each stays for `ttl` seconds after the last pod that knows it has gone."""

    def __init__(self, client: RedisClient, namespace: str, ttl: int) -> None:
        self._client = client
        self._prefix = f"{namespace}:bank:{FORMAT}"
        self._ttl = ttl

    async def current(self) -> str | None:
        """The fingerprint of the bank that is served now; raises `RedisCallFailed`."""
        raw = await self._get("current")
        return raw.decode(errors="replace") if raw else None

    async def get(self, fingerprint: str) -> bytes | None:
        """The card of that bank, as it lies there; raises `RedisCallFailed`."""
        return await self._get(fingerprint)

    async def put(self, fingerprint: str, card: bytes, newest: bool) -> None:
        """Store a card that is not there. `newest`: from now on its bank is the current one, and not only where there
        is none. Raises `RedisCallFailed`."""
        name, current = f"{self._prefix}:{fingerprint}", f"{self._prefix}:current"
        if newest or not await self._client.call(lambda redis: redis.expire(name, self._ttl)):
            await self._client.call(lambda redis: redis.set(name, card, ex=self._ttl))
        await self._client.call(lambda redis: redis.set(current, fingerprint, ex=self._ttl, nx=not newest))
        if await self.current() == fingerprint:
            await self._client.call(lambda redis: redis.expire(current, self._ttl))

    async def _get(self, name: str) -> bytes | None:
        raw = await self._client.call(lambda redis: redis.get(f"{self._prefix}:{name}"))
        return cast(bytes | None, raw)

    async def keep(self, fingerprint: str, card: bytes, newest: bool) -> None:
        """Put the card there, and again whenever Redis has lost it, until this is cancelled."""
        while True:
            try:
                await self.put(fingerprint, card, newest)
                newest = False
            except CircuitOpen:
                pass
            except RedisCallFailed as reason:
                log.warning("redis: the bank's card could not be stored (%s); trying again", reason)
            await asyncio.sleep(LOOK_SECONDS)
