"""How full Redis is, so that what grows with traffic stops in time and managers can always write.

Where Redis evicts nothing (`maxmemory-policy noeviction`), its memory is what counts. Where it evicts what expires,
blends and predictions make room by themselves, and what counts are the bytes of what does not: events of experiments.
Three thresholds, as shares of `maxmemory`: predictions are not written beyond the first, events are not sent beyond the
second (they wait on disk) and not folded beyond the third. What lies above is for aliases, experiments and tables.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from redis.asyncio import RedisCluster

from app.cluster.redis_client import FAULTS, AnyRedis

log = logging.getLogger(__name__)

PREDICTIONS, SENT, FOLDED = 0.7, 0.75, 0.85
LOOK_SECONDS = 0.5


class Headroom:
    """`used`: the share of the memory of Redis that is taken, as far as that matters; 0 while nobody has looked, and
    where there is no bound or nobody may ask."""

    def __init__(self, redis: AnyRedis, kept: Callable[[], Awaitable[int]]) -> None:
        """`kept` gives the bytes of events that nothing evicts; it is asked only where others are evicted."""
        self.used = 0.0
        self._redis = redis
        self._kept = kept
        self._told = False

    async def run(self) -> None:
        """Look again and again, until cancelled. What Redis said last holds while it is away."""
        while True:
            try:
                self.used = await self._share()
            except FAULTS as error:
                log.debug("redis does not say how full it is (%s)", type(error).__name__)
            self._tell()
            await asyncio.sleep(LOOK_SECONDS)

    async def _share(self) -> float:
        if isinstance(self._redis, RedisCluster):
            answer = await self._redis.info("memory", target_nodes=RedisCluster.PRIMARIES)
            # of one node alone, redis-py gives its answer as it is
            nodes = [answer] if "maxmemory" in answer else list(answer.values())
        else:
            nodes = [await self._redis.info("memory")]
        bounded = [node for node in nodes if int(node.get("maxmemory") or 0)]
        if not bounded:
            return 0.0
        if any(node.get("maxmemory_policy") != "noeviction" for node in bounded):
            return await self._kept() / sum(int(node["maxmemory"]) for node in bounded)
        return max(map(_full, bounded))

    def _tell(self) -> None:
        """Once each time that it becomes short."""
        short = self.used >= SENT
        if short and not self._told:
            log.warning("redis is %.0f %% full: events of experiments wait on disk, to leave room", 100 * self.used)
        self._told = short


def _full(node: Mapping[str, Any]) -> float:
    return int(node["used_memory"]) / int(node["maxmemory"])
