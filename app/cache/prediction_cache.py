"""Predictions made before: in this process by the text, in Redis by its tokens.

What is kept are logits, so that one entry serves every function that makes scores of them. Two places, and two
names, both below the blend's key, which stands for the bank (weights, labels, tokenizer) and the recipe:

- Near, in this process, by the text exactly as it came: looking here has to cost less than tokenizing it.
- Far, in Redis and so for every pod, by the tokens and their types, which is all that the model reads. Nothing but
  the bank's own tokenizer normalises the input, because only it knows what its model ignores (one drops capitals
  and blanks, for another they are half of the meaning). Texts that it makes the same share an entry; pods that cut
  texts at different lengths do not; and a pair meets a text only where the model could not tell them apart, either.

    NAMESPACE:prediction:1:PRODUCTS:{BLEND}:DIGEST      format, logits as float32, checksum over name and logits

PRODUCTS is `float` or `int8`: pods that compute differently share nothing. The braces are a hash tag: on a cluster, one
MGET asks for all texts of a blend. Look-ups of requests that come in one turn of the loop, or while others are on
their way, leave together; so do writes, after the answers. A prediction never waits for Redis longer than
`PATIENCE`, and after a failure Redis is left alone for a moment. What is wrong, short or foreign is a miss, and the
prediction that follows overwrites it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import struct
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Generic, NamedTuple, Protocol, TypeVar

import xxhash
from redis.asyncio import Redis, RedisCluster

from app.cluster.redis_headroom import PREDICTIONS, Headroom
from app.spans import spent

log = logging.getLogger(__name__)

FORMAT = 1
PATIENCE = 0.025
"""Seconds that a prediction waits for Redis: far more than a healthy one takes (0.1 ms beside us, 1 ms in a data
centre, 8 ms behind somebody's chunk of weights), and little beside the forward pass that comes then."""
REST = 1.0
"""Seconds for which Redis is not asked, or not written to, after that failed."""
NEAR_BYTES = 8 * 1024 * 1024
ENTRY_BYTES = 400
"""What an entry in this process takes beside its logits, roughly."""
NAMES_AT_ONCE = 1024
"""Names in one MGET and values in one pipeline: Redis serves nobody else meanwhile, for less than a millisecond."""
MAX_ASKED = 64
"""Requests whose look-ups may wait for the one under way; whoever comes then is a miss."""
MAX_UNWRITTEN = 4096
AFTER = 0.05
"""Seconds after which predictions are written: their answers have left, and others have joined them, which makes a
write several times cheaper."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a text gave: logits (C,) as the bytes of float32, and how much of it was read."""

    logits: bytes
    tokens: int
    truncated: bool


class Name(NamedTuple):
    """A prediction in Redis: its blend's key, and the digest of its tokens."""

    blend: str
    digest: str

    @classmethod
    def of(cls, blend: str, ids: Sequence[int], types: Sequence[int]) -> Name:
        read = array("I", ids).tobytes() + array("I", types).tobytes()  # both as long as the other: cannot be confused
        return cls(blend, hashlib.blake2b(read, digest_size=16).hexdigest())


@dataclass(frozen=True, slots=True)
class _Asked:
    """The look-ups of one request."""

    names: Sequence[Name]
    found: asyncio.Future[list[bytes | None]]


class Tokens(Protocol):
    """A tokenized text."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def types(self) -> Sequence[int]: ...
    @property
    def truncated(self) -> bool: ...


Row = TypeVar("Row", bound=Tokens)


@dataclass(frozen=True)
class Lookup(Generic[Row]):
    """What is known of a request's texts, by their index in it: predictions that were found, and where (`memory` or
    `redis`); for the others the tokens, and their names in Redis."""

    hits: dict[int, Known]
    sources: dict[int, str]
    misses: Mapping[int, Row]
    names: Mapping[int, Name]


class PredictionCache:
    """Logits by blend and input. Lives on the event loop's thread; none of its methods raises."""

    def __init__(
        self, redis: Redis | RedisCluster | None, namespace: str, products: str, classes: int, ttl: int
    ) -> None:
        """`products` is `float` or `int8`, `classes` is C, `ttl` is in seconds. Without Redis, this process remembers
        alone."""
        self.memory_hits = self.redis_hits = self.misses = 0
        self.wrong = self.errors = self.writes = self.dropped = 0
        self.headroom: Headroom | None = None
        """Where Redis is too full, nothing more is written there."""
        self._redis = redis
        self._prefix = f"{namespace}:prediction:{FORMAT}:{products}"
        self._value = struct.Struct(f"<B{4 * classes}sQ")
        self._ttl = ttl
        self._capacity = max(1, NEAR_BYTES // (4 * classes + ENTRY_BYTES))
        self._near: OrderedDict[bytes, Known] = OrderedDict()
        self._asked: deque[_Asked] = deque()
        self._unwritten: dict[Name, bytes] = {}
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._no_reads_until = self._no_writes_until = 0.0

    async def lookup(
        self,
        blends: Sequence[str],
        texts: Sequence[str | tuple[str, str]],
        tokenize: Callable[[Sequence[int]], Awaitable[Mapping[int, Row]]],
    ) -> Lookup[Row]:
        """Look up texts, each on the blend of that key: in this process, then in Redis. `tokenize` gives the tokens of
        those that this process does not know, by index; what it raises is raised."""
        hits: dict[int, Known] = {}
        for index, (blend, text) in enumerate(zip(blends, texts, strict=True)):
            known = self.recall(blend, text)
            if known is not None:
                hits[index] = known
        sources = dict.fromkeys(hits, "memory")
        rows = await tokenize([index for index in range(len(texts)) if index not in hits])
        started = time.perf_counter()
        names = {index: Name.of(blends[index], row.ids, row.types) for index, row in rows.items()}
        stored = await self.look_up(list(names.values())) if names else []
        for (index, row), logits in zip(rows.items(), stored, strict=True):
            if logits is not None:
                hits[index] = Known(logits, len(row.ids), row.truncated)
                sources[index] = "redis"
                self.remember(blends[index], texts[index], hits[index])
        spent("recall", started)
        return Lookup(hits, sources, {index: row for index, row in rows.items() if index not in hits}, names)

    def store(
        self,
        blends: Sequence[str],
        texts: Sequence[str | tuple[str, str]],
        lookup: Lookup[Row],
        results: Mapping[int, Known],
    ) -> None:
        """Keep what a forward pass gave for the misses of a lookup."""
        for index, known in results.items():
            self.remember(blends[index], texts[index], known, lookup.names[index])

    def recall(self, blend: str, text: str | tuple[str, str]) -> Known | None:
        """What this process remembers of a text on a blend."""
        key = _near_key(blend, text)
        known = self._near.get(key)
        if known is not None:
            self.memory_hits += 1
            self._near.move_to_end(key)
        return known

    async def look_up(self, names: Sequence[Name]) -> list[bytes | None]:
        """Logits that Redis holds, as the bytes of float32; None where it does not, or does not say so in time."""
        if self._redis is None or time.monotonic() < self._no_reads_until or len(self._asked) >= MAX_ASKED:
            self.misses += len(names)
            return [None] * len(names)
        asked = _Asked(names, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        found = await asked.found
        missed = found.count(None)
        self.misses += missed
        self.redis_hits += len(found) - missed
        return found

    def remember(self, blend: str, text: str | tuple[str, str], known: Known, name: Name | None = None) -> None:
        """Keep what a text gave; with its `name`, in Redis too, a moment later."""
        self._near[_near_key(blend, text)] = known
        if len(self._near) > self._capacity:
            self._near.popitem(last=False)
        if name is None or self._redis is None:
            return
        full = self.headroom is not None and self.headroom.used >= PREDICTIONS
        if full or len(self._unwritten) >= MAX_UNWRITTEN or time.monotonic() < self._no_writes_until:
            self.dropped += 1
            return
        self._unwritten[name] = known.logits
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    def counters(self) -> dict[str, int]:
        """Predictions answered from memory, from Redis and from neither, and what befell the entries in Redis."""
        return {
            "memory": self.memory_hits,
            "redis": self.redis_hits,
            "misses": self.misses,
            "wrong": self.wrong,
            "errors": self.errors,
            "writes": self.writes,
            "dropped": self.dropped,
        }

    async def settle(self) -> None:
        """Wait until what is to be written has been written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def close(self) -> None:
        """Let go of Redis; what was not written yet is not."""
        tasks = [task for task in (self._reader, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._asked:
            self._answer(self._asked.popleft(), {})

    # -- redis -----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """One round trip after the other, as long as somebody waits."""
        while self._asked:
            batch = self._next_asked()
            found: dict[Name, bytes] = {}
            try:
                async with asyncio.timeout(PATIENCE):
                    found = await self._get(list({name for asked in batch for name in asked.names}))
            except Exception as error:  # whatever it is, it must not fail a prediction
                self._no_reads_until = self._failed("read", error)
                batch += self._asked
                self._asked.clear()
            finally:
                for asked in batch:
                    self._answer(asked, found)

    def _answer(self, asked: _Asked, found: dict[Name, bytes]) -> None:
        if not asked.found.done():  # or whoever asked has hung up
            asked.found.set_result([found.get(name) for name in asked.names])

    def _next_asked(self) -> list[_Asked]:
        batch: list[_Asked] = []
        names = 0
        while self._asked and (not batch or names + len(self._asked[0].names) <= NAMES_AT_ONCE):
            batch.append(self._asked.popleft())
            names += len(batch[-1].names)
        return batch

    async def _get(self, names: Sequence[Name]) -> dict[Name, bytes]:
        values = await self._mget([self._key(name) for name in names])
        found = {}
        for name, value in zip(names, values, strict=True):
            logits = None if value is None else self._decoded(name, value)
            if logits is not None:
                found[name] = logits
        return found

    async def _mget(self, keys: list[str]) -> Sequence[object]:
        """Values in the order of the keys. On a cluster an MGET for every blend, since each lies in a slot."""
        assert self._redis is not None
        ask = self._redis.mget_nonatomic if isinstance(self._redis, RedisCluster) else self._redis.mget
        values: Sequence[object] = await ask(keys)
        return values

    async def _write(self) -> None:
        assert self._redis is not None
        await asyncio.sleep(AFTER)
        while self._unwritten:
            names = list(islice(self._unwritten, NAMES_AT_ONCE))
            try:
                pipeline = self._redis.pipeline(transaction=False)
                for name in names:
                    pipeline.set(self._key(name), self._encoded(name, self._unwritten.pop(name)), ex=self._ttl)
                await pipeline.execute()
            except Exception as error:
                self._no_writes_until = self._failed("write", error)
                self.dropped += len(names) + len(self._unwritten)
                self._unwritten.clear()
            else:
                self.writes += len(names)

    def _failed(self, doing: str, error: Exception) -> float:
        """Note it; gives the time until which Redis is left alone."""
        self.errors += 1
        log.warning("redis: predictions: %s failed (%s); going on without it", doing, type(error).__name__)
        return time.monotonic() + REST

    # -- bytes -----------------------------------------------------------------------------------------

    def _key(self, name: Name) -> str:
        return f"{self._prefix}:{{{name.blend}}}:{name.digest}"

    def _encoded(self, name: Name, logits: bytes) -> bytes:
        return self._value.pack(FORMAT, logits, _checksum(name, logits))

    def _decoded(self, name: Name, value: object) -> bytes | None:
        """The logits, if the value is one of ours and for this name."""
        if isinstance(value, bytes) and len(value) == self._value.size:
            form, logits, checksum = self._value.unpack(value)
            finite = all(map(isfinite, memoryview(logits).cast("f")))
            if form == FORMAT and checksum == _checksum(name, logits) and finite:
                return bytes(logits)
        self.wrong += 1
        return None


def _near_key(blend: str, text: str | tuple[str, str]) -> bytes:
    """Cryptographic, because callers choose texts: nobody shall find one that takes the place of another's."""
    if isinstance(text, str):
        told = f"{blend}:{text}"
    else:
        told = f"{blend}+{len(text[0])}:{text[0]}{text[1]}"
    return hashlib.blake2b(told.encode(), digest_size=16).digest()


def _checksum(name: Name, logits: bytes) -> int:
    return xxhash.xxh3_64_intdigest(f"{name.blend}:{name.digest}".encode() + logits)
