"""Where pods keep aliases, experiments, or tables of segments, together: one hash in Redis, a document for each name.

    NAMESPACE:KIND                       {name: document, ":mark": a word that is another one after every change}
    NAMESPACE:KIND:warm:TICKET           {pod: "1" or "0"}, for a minute
    NAMESPACE:KIND:lease:NAME            the pod that does what one pod is to do for a name, until it expires

A script compares a document and replaces it in one step; as all of them lie in one key, this works on a cluster too.
The channel NAMESPACE:KIND tells pods at once that something changed, and what they are to have in memory soon. A
message may be lost: what counts is the mark, which every pod compares twice a second.

What the documents say is nothing to this file. Nothing here expires; a Redis that evicts or was flushed is repaired
by the pods, who know what they have read.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

from redis.asyncio import Redis, RedisCluster

from app.cluster.redis_client import FAULTS
from app.errors import RedisUnavailable

MARK = b":mark"
SWAP = """
local now = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if now == ARGV[3] then return 1 end
if now ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('HSET', KEYS[1], ':mark', ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
"""
LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
ANSWERS_LAST = 60
"""Seconds for which Redis keeps the pods' answers."""
LISTEN = 1.0
"""Seconds of silence after which the connection is looked after."""


@dataclass(frozen=True)
class Snapshot:
    """The documents by name, as they were when the mark was this one."""

    mark: bytes | None
    documents: dict[str, bytes]


class DocumentStore:
    """Documents of one kind in Redis. Every method raises `RedisUnavailable` when Redis does not answer or refuses."""

    def __init__(self, redis: Redis | RedisCluster, namespace: str, kind: str) -> None:
        self._redis = redis
        self._key = self._channel = f"{namespace}:{kind}"
        self._outage = partial(_outage, kind)

    async def mark(self) -> bytes | None:
        """What differs after every change; None where there is nothing."""
        with self._outage():
            return cast(bytes | None, await self._redis.hget(self._key, MARK.decode()))

    async def read(self) -> Snapshot:
        with self._outage():
            found = cast(dict[bytes, bytes], await self._redis.hgetall(self._key))
        return Snapshot(
            found.pop(MARK, None), {name.decode(errors="replace"): document for name, document in found.items()}
        )

    async def swap(self, name: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace a document by another (None: none) and tell everybody; False if it is no longer the old one."""
        message = json.dumps({"changed": name})
        arguments: list[str | bytes] = [name, old or b"", new or b"", uuid.uuid4().hex, self._channel, message]
        with self._outage():
            return bool(await cast(Awaitable[int], self._redis.eval(SWAP, 1, self._key, *arguments)))

    async def ask(self, ticket: str, recipe: str) -> int:
        """Ask all pods to have a recipe's blend in memory; gives how many heard it."""
        with self._outage():
            return int(await self._redis.publish(self._channel, json.dumps({"warm": recipe, "ticket": ticket})))

    async def answer(self, ticket: str, pod: str, warm: bool) -> None:
        """Say that this pod has it, or that it cannot."""
        key = f"{self._key}:warm:{ticket}"
        with self._outage():
            await self._redis.hset(key, pod, str(int(warm)))
            await self._redis.expire(key, ANSWERS_LAST)

    async def answers(self, ticket: str) -> list[bool]:
        """What pods have answered so far."""
        with self._outage():
            values = await cast(Awaitable[list[bytes]], self._redis.hvals(f"{self._key}:warm:{ticket}"))
        return [value == b"1" for value in values]

    async def lease(self, name: str, pod: str, seconds: float) -> bool:
        """Whether this pod is, for so long, the one that does what only one is to do; asking again prolongs it."""
        with self._outage():
            keys_and_arguments = (f"{self._key}:lease:{name}", pod, str(round(seconds * 1e3)))
            return bool(await cast(Awaitable[int], self._redis.eval(LEASE, 1, *keys_and_arguments)))

    async def listen(self, changed: Callable[[], None], asked: Callable[[str, str], None]) -> None:
        """Call `changed` after changes, and `asked` with ticket and recipe when a blend is wanted; never returns."""
        with self._outage():
            async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(self._channel)
                while True:
                    message = await channel.get_message(timeout=LISTEN)
                    if message is not None:
                        _pass_on(message["data"], changed, asked)


def _pass_on(data: object, changed: Callable[[], None], asked: Callable[[str, str], None]) -> None:
    """What is not one of our messages may be a change all the same: looking costs little."""
    try:
        message = json.loads(cast(bytes, data))
        ticket, recipe = message["ticket"], message["warm"]
    except (ValueError, TypeError, KeyError):
        changed()
    else:
        asked(str(ticket), str(recipe))


@contextmanager
def _outage(kind: str) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        raise RedisUnavailable(
            f"redis does not answer or refuses ({type(error).__name__}), and without it the pods cannot agree; "
            f"{kind} stay as they are"
        ) from error
