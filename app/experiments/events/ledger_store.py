"""An experiment's events, units and sums in Redis. All keys of one experiment lie in one slot of a cluster:

    NAMESPACE:exp:{NAME}:events        a stream of events that nobody has folded yet, with the group `fold`
    NAMESPACE:exp:{NAME}:units         {unit: its record}
    NAMESPACE:exp:{NAME}:sums          {path: amount}
    NAMESPACE:exp:{NAME}:waiting       units that have done something and were not met yet, by when they are given up
    NAMESPACE:exp:{NAME}:unmet         {unit: {who told: outcomes}} of these, and unmet:by {who told: outcomes of all of
                                       these, "all": of everybody}, which bound them
    NAMESPACE:exp:{NAME}:untaken       {why: outcomes that were not taken}
    NAMESPACE:exp:{NAME}:latches       {question: what a report said}, kept as it was first said (`latches.py`)
    NAMESPACE:exp:{NAME}:marks:N       marks of the events of one period, which say that they have been folded
    NAMESPACE:exp:{NAME}:sticky:ERA    {unit: its first draw}, of bandits (`sticky_assignment.py`)

Folding is optimistic: a pod reads events, marks and records, works out what changes, and a script makes all changes in
one step if nobody was there first: records, sums, marks, and the events leave the stream. So whatever Redis has after
a crash, an event is either still in the stream or counted with its mark, never both and never neither.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from app.experiments.events.event import Event
from app.experiments.experiment import DAY

GROUP = "fold"
PERIOD = 7 * DAY
"""Events are told apart from their repetitions for one to two periods after a pod took note of them."""
SCAN = 500
MOST_ERAS = 10_000
PARTS_BY_UNIT = ("units", "waiting", "unmet", "unmet:by", "events")
PARTS = (*PARTS_BY_UNIT, "sums", "untaken", "latches")
RELEASE = """
local function release(unmet, by, unit)
    local held = redis.call('HGET', unmet, unit)
    if not held then return end
    for who, count in pairs(cjson.decode(held)) do
        redis.call('HINCRBY', by, who, -count)
        redis.call('HINCRBY', by, 'all', -count)
    end
    redis.call('HDEL', unmet, unit)
    if redis.call('EXISTS', unmet) == 0 then redis.call('DEL', by) end
end
"""
"""What a unit's outcomes held of the room for units that were not met is free again."""
COMMIT = (
    RELEASE
    + """
local units, sums, waiting, events = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local change = cjson.decode(ARGV[1])
for _, unit in ipairs(change.units) do
    if (redis.call('HGET', units, unit[1]) or '') ~= unit[2] then return 0 end
end
for _, mark in ipairs(change.marks) do
    for i = 7, #KEYS do
        if redis.call('SISMEMBER', KEYS[i], mark[2]) == 1 then return 0 end
    end
end
for _, unit in ipairs(change.units) do
    if unit[3] == '' then redis.call('HDEL', units, unit[1]) else redis.call('HSET', units, unit[1], unit[3]) end
    if unit[4] == '' then
        redis.call('ZREM', waiting, unit[1])
        release(KEYS[5], KEYS[6], unit[1])
    else
        redis.call('ZADD', waiting, unit[4], unit[1])
    end
end
for _, sum in ipairs(change.sums) do redis.call('HINCRBYFLOAT', sums, sum[1], sum[2]) end
for _, mark in ipairs(change.marks) do
    redis.call('SADD', KEYS[mark[1]], mark[2])
    redis.call('EXPIREAT', KEYS[mark[1]], mark[3])
end
for _, entry in ipairs(change.entries) do
    redis.call('XACK', events, 'fold', entry)
    redis.call('XDEL', events, entry)
end
return 1
"""
)
GIVE_UP = (
    RELEASE
    + """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('ZREM', KEYS[2], ARGV[1])
release(KEYS[3], KEYS[4], ARGV[1])
return 1
"""
)
LEFT_OVER = (
    RELEASE
    + """
for _, unit in ipairs(redis.call('HRANDFIELD', KEYS[2], ARGV[1])) do
    if not redis.call('ZSCORE', KEYS[1], unit) then release(KEYS[2], KEYS[3], unit) end
end
return 1
"""
)
"""Frees places of units that wait no more: pods of an earlier version leave them behind."""
ADMIT = """
local units, waiting, unmet, by, untaken = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local who, till, asked = ARGV[1], ARGV[2], cjson.decode(ARGV[5])
local all = tonumber(redis.call('HGET', by, 'all') or '0')
local mine = tonumber(redis.call('HGET', by, who) or '0')
local room = math.max(0, math.min(tonumber(ARGV[3]) - all, tonumber(ARGV[4]) - mine))
local answer, taken, outside, beyond = {}, 0, 0, 0
for i, one in ipairs(asked) do
    local unit, count, possible = one[1], one[2], one[3]
    local known = redis.call('ZSCORE', waiting, unit)
    if not known and redis.call('HEXISTS', units, unit) == 1 then
        answer[i] = count
    elseif not known and not possible then
        answer[i] = -1
        outside = outside + count
    else
        local take = math.min(count, room - taken)
        answer[i] = take
        beyond = beyond + count - take
        if take > 0 then
            local held = cjson.decode(redis.call('HGET', unmet, unit) or '{}')
            held[who] = (held[who] or 0) + take
            redis.call('HSET', unmet, unit, cjson.encode(held))
            if not known then redis.call('ZADD', waiting, till, unit) end
            taken = taken + take
        end
    end
end
if taken > 0 then
    redis.call('HINCRBY', by, who, taken)
    redis.call('HINCRBY', by, 'all', taken)
end
if outside > 0 then redis.call('HINCRBY', untaken, 'outside', outside) end
if beyond > 0 then redis.call('HINCRBY', untaken, 'beyond', beyond) end
return answer
"""
"""How many outcomes of each unit are taken; -1: none, as no unit of that name can be met. Units that were met take as
many as come."""


@dataclass
class LedgerTransaction:
    """What one fold does, all of it or nothing."""

    units: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Unit, record before and after (empty: none), and when it is given up unless it is met (empty: never)."""
    sums: dict[str, float] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)
    """Period and mark."""
    entries: list[str] = field(default_factory=list)
    """Entries of the stream that are done with."""


class LedgerStore:
    """Every method raises what redis-py raises when Redis does not answer or refuses."""

    def __init__(self, redis: Redis | RedisCluster, namespace: str) -> None:
        self._redis = redis
        self._namespace = namespace

    async def append(self, experiment: str, payloads: Sequence[bytes]) -> int:
        """Put events into the stream; gives how many are in it. Where it fails, some may be there all the same."""
        key = self._key(experiment, "events")
        pipeline = self._redis.pipeline(transaction=False)
        for payload in payloads:
            pipeline.xadd(key, {"event": payload})
        pipeline.xlen(key)
        return int((await pipeline.execute())[-1])

    async def length(self, experiment: str) -> int:
        """Events that are in the stream."""
        return int(await self._redis.xlen(self._key(experiment, "events")))

    async def take(self, experiment: str, pod: str, most: int) -> list[tuple[str, bytes]]:
        """Entries that no pod has been given yet, with their events."""
        key = self._key(experiment, "events")
        try:
            answer: Any = await self._redis.xreadgroup(GROUP, pod, {key: ">"}, count=most)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._make_group(key)
            return []
        return [entry for _, entries in answer for entry in _entries(entries)]

    async def reclaim(self, experiment: str, pod: str, idle: float, most: int) -> list[tuple[str, bytes]]:
        """Entries that were given to some pod more than `idle` seconds ago, and are not done with."""
        key = self._key(experiment, "events")
        try:
            answer: Any = await self._redis.xautoclaim(key, GROUP, pod, int(idle * 1e3), count=most)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []
        return _entries(answer[1])

    async def look(
        self, experiment: str, units: Sequence[str], marks: Sequence[tuple[int, str]]
    ) -> tuple[list[bytes | None], list[bool]]:
        """The units' records, and which of the events with these periods and marks have been folded."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hmget(self._key(experiment, "units"), list(units))
        self._ask_for(pipeline, experiment, marks)
        records, *found = await pipeline.execute()
        return records, [any(known) for known in zip(*found, strict=True)]

    async def folded(self, experiment: str, marks: Sequence[tuple[int, str]]) -> list[bool]:
        """Which of the events with these periods and marks have been folded."""
        pipeline = self._redis.pipeline(transaction=False)
        self._ask_for(pipeline, experiment, marks)
        return [any(known) for known in zip(*await pipeline.execute(), strict=True)]

    async def commit(self, experiment: str, change: LedgerTransaction) -> bool:
        """Make a change in one step; False, and nothing is changed, if somebody else has folded meanwhile."""
        periods = _around(period for period, _ in change.marks)
        parts = ("units", "sums", "waiting", "events", "unmet", "unmet:by")
        keys = [self._key(experiment, part) for part in parts]
        keys += [self._key(experiment, f"marks:{period}") for period in periods]
        document = {
            "units": change.units,
            "sums": [(path, repr(amount)) for path, amount in change.sums.items()],
            "marks": [
                (7 + periods.index(period), mark, str(int((period + 2) * PERIOD))) for period, mark in change.marks
            ],
            "entries": change.entries,
        }
        answer = self._redis.eval(COMMIT, len(keys), *keys, json.dumps(document))
        return bool(await cast(Awaitable[int], answer))

    async def give_up(self, experiment: str, before: float, most: int) -> int:
        """Forget units that did something long ago and were never met; gives how many."""
        keys = [self._key(experiment, part) for part in ("units", "waiting", "unmet", "unmet:by")]
        units, waiting, *_ = keys
        due = cast(list[bytes], await self._redis.zrangebyscore(waiting, "-inf", before, start=0, num=most))
        for unit in due:
            record = await cast(Awaitable[bytes | None], self._redis.hget(units, unit.decode()))
            await cast(Awaitable[int], self._redis.eval(GIVE_UP, 4, *keys, unit, record or b""))
        left_over = self._redis.eval(LEFT_OVER, 3, waiting, *keys[2:], str(most))
        await cast(Awaitable[int], left_over)
        return len(due)

    async def admit(
        self,
        experiment: str,
        who: str,
        until: float,
        most: int,
        most_of_one: int,
        asked: Sequence[tuple[str, int, bool]],
    ) -> list[int]:
        """How many outcomes of each unit may be taken, from how many there are and whether the unit can be met at all;
        -1 where it cannot, and was not. Outcomes of units that were not met yet hold room until they are met, or until
        that moment: `most` for all who tell of outcomes, and `most_of_one` of these for each of them."""
        keys = [self._key(experiment, part) for part in ("units", "waiting", "unmet", "unmet:by", "untaken")]
        arguments = (f"by {who}", repr(until), str(most), str(most_of_one), json.dumps(asked))
        return await cast(Awaitable[list[int]], self._redis.eval(ADMIT, len(keys), *keys, *arguments))

    async def unmet(self, experiment: str) -> dict[str, int]:
        """Outcomes that wait for their unit to be met, and by reason those that were not taken."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hget(self._key(experiment, "unmet:by"), "all")
        pipeline.hgetall(self._key(experiment, "untaken"))
        waiting, untaken = await pipeline.execute()
        return {"waiting": int(waiting or 0), **{why.decode(): int(count) for why, count in untaken.items()}}

    async def size(self, experiments: Iterable[str], now: float) -> int:
        """What events, units and marks of these take in Redis, by its own estimate."""
        parts = ["events", "units", "sums", "waiting", "unmet", *(f"marks:{n}" for n in _around([period_of(now)]))]
        pipeline = self._redis.pipeline(transaction=False)
        for experiment in experiments:
            for part in parts:
                pipeline.memory_usage(self._key(experiment, part))
        return sum(size or 0 for size in await pipeline.execute())

    async def forget_pods(self, experiment: str, idle: float) -> None:
        """Take pods out of the group that have been silent for so many seconds and owe nothing."""
        key = self._key(experiment, "events")
        try:
            consumers = await self._redis.xinfo_consumers(key, GROUP)
        except ResponseError:
            return  # there is no stream yet
        for consumer in consumers:
            if consumer["idle"] > idle * 1e3 and not consumer["pending"]:
                await self._redis.xgroup_delconsumer(key, GROUP, consumer["name"])

    async def sums(self, experiment: str) -> dict[str, float]:
        answer = await cast(Awaitable[Mapping[bytes, bytes]], self._redis.hgetall(self._key(experiment, "sums")))
        return {path.decode(): float(amount) for path, amount in answer.items()}

    async def some_sums(self, experiment: str, paths: Sequence[str]) -> dict[str, float]:
        """Those of some paths, 0 where there is none."""
        key = self._key(experiment, "sums")
        amounts = await cast(Awaitable[list[bytes | None]], self._redis.hmget(key, list(paths)))
        return {path: float(amount or 0) for path, amount in zip(paths, amounts, strict=True)}

    async def latches(self, experiment: str) -> dict[str, str]:
        found = await cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(self._key(experiment, "latches")))
        return {question.decode(): said.decode() for question, said in found.items()}

    async def latch(self, experiment: str, said: Mapping[str, str]) -> None:
        """Keep what was said, where nothing was said before."""
        pipeline = self._redis.pipeline(transaction=False)
        for question, answer in said.items():
            pipeline.hsetnx(self._key(experiment, "latches"), question, answer)
        await pipeline.execute()

    async def forget(self, experiment: str, phases: int, period: int) -> None:
        """Delete everything of an experiment; marks of the periods before this one, and of the next one."""
        marks = [f"marks:{number}" for number in range(period - 3, period + 3)]
        await self._delete(experiment, [*PARTS, *marks, *_eras(phases)])

    async def forget_units(self, experiment: str, phases: int) -> None:
        """Delete what is kept by unit; sums stay."""
        await self._delete(experiment, [*PARTS_BY_UNIT, *_eras(phases)])

    async def erase_unfolded(self, experiment: str, unit: str, phases: int) -> bool:
        """Delete a unit's first draws, and its events that have not been folded; whether there were any."""
        key, after, found = self._key(experiment, "events"), "-", 0
        while entries := await self._redis.xrange(key, min=after, max="+", count=SCAN):
            named = [(name, Event.decoded(event)) for name, event in _entries(entries)]
            theirs = [name for name, event in named if event is not None and event.what.unit == unit]
            if theirs:
                found += int(await self._redis.xdel(key, *theirs))
            after = f"({named[-1][0]}"
        for start in range(0, len(eras := _eras(phases)), SCAN):
            pipeline = self._redis.pipeline(transaction=False)
            for era in eras[start : start + SCAN]:
                pipeline.hdel(self._key(experiment, era), unit)
            found += sum(await pipeline.execute())
        return bool(found)

    async def _delete(self, experiment: str, parts: Sequence[str]) -> None:
        for start in range(0, len(parts), SCAN):
            await self._redis.unlink(*(self._key(experiment, part) for part in parts[start : start + SCAN]))

    async def records(self, experiment: str, cursor: int) -> tuple[int, dict[str, bytes]]:
        """Some units and their records, and where the next ones are; 0 begins and ends. A unit may come twice."""
        key = self._key(experiment, "units")
        cursor, found = await cast(
            Awaitable[tuple[int, dict[bytes, bytes]]], self._redis.hscan(key, cursor, count=SCAN)
        )
        return cursor, {unit.decode(): record for unit, record in found.items()}

    def _ask_for(self, pipeline: Any, experiment: str, marks: Sequence[tuple[int, str]]) -> None:
        for period in _around(period for period, _ in marks):
            pipeline.smismember(self._key(experiment, f"marks:{period}"), [mark for _, mark in marks])

    async def _make_group(self, key: str) -> None:
        try:
            await self._redis.xgroup_create(key, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _key(self, experiment: str, part: str) -> str:
        return f"{self._namespace}:exp:{{{experiment}}}:{part}"


def _eras(phases: int) -> list[str]:
    """Where first draws of a bandit may lie that has had so many phases."""
    return [f"sticky:{era}" for era in range(max(1, phases - MOST_ERAS), phases + 1)]


def period_of(received: float) -> int:
    return int(received // PERIOD)


def _around(periods: Any) -> list[int]:
    """These periods and those beside them: a repetition may have come a little earlier or later."""
    return sorted({period + step for period in periods for step in (-1, 0, 1)})


def _entries(entries: Any) -> list[tuple[str, bytes]]:
    """Names of entries, and their events; what somebody else has put there has none."""
    return [(name.decode(), fields.get(b"event", b"")) for name, fields in entries if name is not None]
