"""How this service talks to Redis: calls that fail fast, for one server, for Sentinels and for a cluster.

redis-py's own defaults wait 59 seconds on a server that hangs. Here a small call has a quarter of a second, one
retry where a connection broke (after a restart of the server all pooled ones are stale) and none after a time-out,
and a breaker that leaves a silent server alone. Chunks of weights go another way (`bulk_transfer.py`), with time-outs
of their own, so that a slow link for large values says nothing about small ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.cluster.circuit_breaker import CircuitBreaker
from app.cluster.redis_url import RedisUrl
from app.spans import spent

TIMEOUT = 0.25
"""Seconds for connecting, and for one small call."""
WHOLE = 0.75
"""Seconds for a small call with all that belongs to it: waiting for a connection, connecting, one retry."""
CONNECTIONS = 16
POOL_TIMEOUT = 0.05
"""Seconds to wait for a free connection: if so many calls hang, one more will not help."""
HEALTH_CHECK_SECONDS = 30
FAULTS = (RedisError, RedisClusterException, OSError, TimeoutError)
"""All that a call may raise when something is wrong with Redis; a cluster's errors are not `RedisError`s."""

T = TypeVar("T")
AnyRedis = Redis | RedisCluster
Place = tuple[str, int] | None
"""Host and port of the server that holds a key; None where there is only one server."""


class RedisCallFailed(Exception):
    """A call failed; the message is a word for the log and never holds an address."""

    def __init__(self, word: str, timed_out: bool = False) -> None:
        super().__init__(word)
        self.timed_out = timed_out

    @classmethod
    def because(cls, error: BaseException) -> RedisCallFailed:
        return cls(type(error).__name__, isinstance(error, TimeoutError | RedisTimeoutError))


class CircuitOpen(RedisCallFailed):
    """A call was not made, because the breaker is open."""

    def __init__(self) -> None:
        super().__init__("left alone")


class RedisClient:
    """One Redis, whatever its shape. Lives on one event loop."""

    def __init__(
        self,
        redis: AnyRedis,
        locate: Callable[[str], Awaitable[Place]],
        close: Callable[[], Awaitable[object]],
    ) -> None:
        self.redis = redis
        self.breaker = CircuitBreaker()
        self._locate = locate
        self._close = close

    async def call(self, ask: Callable[[AnyRedis], Awaitable[T]]) -> T:
        """The answer to a small call; raises `RedisCallFailed`, at once while the breaker is open."""
        if not self.breaker.allows():
            raise CircuitOpen
        started = time.perf_counter()
        try:
            async with asyncio.timeout(WHOLE):
                answer = await ask(self.redis)
        except ResponseError as error:
            # The server is there and says no (full, read-only, not allowed): nothing to protect callers from.
            self.breaker.succeeded()
            raise RedisCallFailed.because(error) from error
        except FAULTS as error:
            reason = RedisCallFailed.because(error)
            self.breaker.failed(reason.timed_out)
            raise reason from error
        finally:
            spent("redis", started)
        self.breaker.succeeded()
        return answer

    async def place(self, name: str) -> Place:
        """Which server holds a key now; raises `RedisCallFailed`."""
        try:
            async with asyncio.timeout(WHOLE):
                return await self._locate(name)
        except FAULTS as error:
            raise RedisCallFailed.because(error) from error

    async def ping(self) -> float:
        """Milliseconds that a small call takes; raises `RedisCallFailed`."""
        started = time.perf_counter()
        await self.call(lambda redis: redis.ping())
        return (time.perf_counter() - started) * 1e3

    async def aclose(self) -> None:
        await self._close()


def connect(url: RedisUrl) -> RedisClient:
    """A client; connects when it is first used. Raises `TypeError` or `ValueError` for options nobody knows."""
    return {"server": _server, "sentinel": _sentinel, "cluster": _cluster}[url.kind](url)


def _server(url: RedisUrl) -> RedisClient:
    async def only_one(name: str) -> Place:
        return None

    pool = BlockingConnectionPool.from_url(url.plain, timeout=POOL_TIMEOUT, **_manners())
    redis: Redis = Redis.from_pool(pool)  # closing it closes the pool
    return RedisClient(redis, only_one, redis.aclose)


def _sentinel(url: RedisUrl) -> RedisClient:
    options = _options(url)
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    sentinel = Sentinel(url.nodes, sentinel_kwargs={**_manners(), **tls, **url.sentinel_login})
    redis: Redis = sentinel.master_for(url.service, **{**_manners(), **options})

    async def master(name: str) -> Place:
        host, port = await sentinel.discover_master(url.service)
        return str(host), int(port)

    async def close() -> None:
        await redis.aclose()
        await sentinel.aclose()

    return RedisClient(redis, master, close)


def _cluster(url: RedisUrl) -> RedisClient:
    nodes = [ClusterNode(host, port) for host, port in url.nodes]
    cluster = RedisCluster(startup_nodes=nodes, **{**_manners(), **_options(url)})

    async def owner(name: str) -> Place:
        await cluster.initialize()
        node = cluster.get_node_from_key(name)
        if node is None:
            raise ConnectionError("no node holds this slot")
        return str(node.host), int(node.port)

    return RedisClient(cluster, owner, cluster.aclose)


def _options(url: RedisUrl) -> dict[str, Any]:
    """What the address says beyond host and port, as redis-py's constructors take it."""
    options: dict[str, Any] = dict(parse_url(url.plain))
    options.pop("host")
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    return options


def _manners() -> dict[str, Any]:
    return {
        "max_connections": CONNECTIONS,
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "health_check_interval": HEALTH_CHECK_SECONDS,
        # At once, and only where the connection broke: who waited for a time-out does not wait for another.
        "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
    }
