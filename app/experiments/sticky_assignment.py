"""Units of a bandit stay with the arm that they were given first, while shares change under them.

A hash alone cannot do that: who came before a change would have to meet an arm that his number no longer names. So the
first draw of each unit is written down, in one hash of Redis for each era, which is the time since people last changed
who meets what:

    NAMESPACE:exp:{NAME}:sticky:ERA     {unit: its first draw}

One call for each request asks for all units that this pod has not asked for lately, and offers what it would draw, or
what it remembers: so what Redis has lost is written back, as documents are, by any pod that remembers the unit.

While Redis is away, units that this pod remembers stay; others are drawn by the hash of the present phase, the same on
every pod, as shares do not change meanwhile either. Such draws are offered to Redis when their unit comes next.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from typing import Any

from app.cluster.redis_client import AnyRedis, RedisCallFailed, RedisClient
from app.cluster.redis_headroom import SENT, Headroom

TRUSTED_SECONDS = 60.0
"""For so long after Redis has told of a unit it is not asked again."""
MOST_REMEMBERED = 100_000
"""Units that this pod remembers: about 30 MB."""

Key = tuple[str, int, str]
"""Experiment, era, unit."""


class StickyAssignment:
    """First draws, as text; what they say is nothing to this file."""

    def __init__(self, client: RedisClient | None, namespace: str) -> None:
        """Without a `client`, this process alone remembers them."""
        self.headroom: Headroom | None = None
        """Where Redis is too full, no more draws are written there."""
        self._client = client
        self._namespace = namespace
        self._known: dict[Key, tuple[str, float]] = {}
        """Draw, and until when (by the monotonic clock) it is trusted; the longest unused first."""

    async def first(self, drawn: Mapping[Key, str], keep: bool = True) -> dict[Key, str]:
        """The first draw of each unit, which is this one if there was none; `keep` it, or only look. Never fails."""
        now = time.monotonic()
        known = {key: self._known.get(key, (draw, 0.0)) for key, draw in drawn.items()}
        found = {key: draw for key, (draw, _) in known.items()}
        full = self.headroom is not None and self.headroom.used >= SENT
        told = await self._ask({key: draw for key, (draw, until) in known.items() if until <= now}, keep and not full)
        found |= told
        if keep:
            for key, draw in found.items():
                self._known.pop(key, None)
                self._known[key] = (draw, now + TRUSTED_SECONDS if key in told else known[key][1])
            while len(self._known) > MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
        return found

    async def _ask(self, drawn: Mapping[Key, str], keep: bool) -> dict[Key, str]:
        """What Redis says; nothing while it is away."""
        if self._client is None or not drawn:
            return {}

        def ask(redis: AnyRedis) -> Awaitable[list[Any]]:
            pipeline = redis.pipeline(transaction=False)
            for (experiment, era, unit), draw in drawn.items():
                name = f"{self._namespace}:exp:{{{experiment}}}:sticky:{era}"
                if keep:
                    pipeline.hsetnx(name, unit, draw)
                pipeline.hget(name, unit)
            return pipeline.execute()

        try:
            answers = await self._client.call(ask)
        except RedisCallFailed:
            return {}
        firsts = answers[1::2] if keep else answers
        return {key: first.decode() for key, first in zip(drawn, firsts, strict=True) if first is not None}
