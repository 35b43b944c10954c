"""Ledgers of several pods over real Redis servers, against sums worked out unit by unit."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from ledgers import NAME, START, TONE, Known, expected, ledger, tell, traffic, until_counted, until_folded
from redis import Redis
from servers import Server, cluster, line_to, server

from app.errors import RedisUnavailable, SpoolFull, UnknownMetric
from app.experiments.events import event_ledger as module
from app.experiments.events.aggregation import MOST_OUTCOMES
from app.experiments.events.event import Event, Exposure, Outcome

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

TESTS = Path(__file__).parent


def outcome(number: int, metric: str = "bought", value: float = 1.0, unit: str = "ada", at: float = START) -> Outcome:
    return Outcome(f"o{number}", NAME, unit, metric, value, at)


def exposure(unit: str = "ada", at: float = START) -> Exposure:
    return Exposure(f"e-{unit}-{at}", NAME, 1, "warm", unit, at, 0.5)


def test_pods_fold_what_they_are_told_into_the_sums_that_its_definition_says(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    events = traffic(1, units=200)

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path / "a") as one, ledger(redis_url, tmp_path / "b") as two:
            await asyncio.gather(tell(one, events[::2]), tell(two, events[1::2]))
            await until_folded(one, events)
            await until_counted([one, two], len(events))
            assert redis.xlen(f"tween:exp:{{{NAME}}}:events") == 0
            assert all(-1 < ttl <= 3 * module.PERIOD for ttl in map(redis.ttl, redis.scan_iter("*marks*")))

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", [2, 3])
def test_order_and_repetitions_change_nothing(redis: Redis, redis_url: str, tmp_path: Path, seed: int) -> None:
    events = traffic(seed)
    chooser = random.Random(seed)
    told = events + chooser.choices(events, k=len(events))
    chooser.shuffle(told)

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path / "a") as one, ledger(redis_url, tmp_path / "b") as two:
            await asyncio.gather(tell(one, told[::2]), tell(two, told[1::2]))
            await until_folded(two, events)
            await until_counted([one, two], len(events), len(told) - len(events))

    asyncio.run(scenario())


def test_what_is_accepted_while_redis_is_away_arrives_later_in_order(tmp_path: Path) -> None:
    events = traffic(4)
    with server(tmp_path, "appendonly yes") as there:

        async def scenario() -> None:
            async with ledger(there.url, tmp_path / "spool") as pod:
                await tell(pod, events[:100])
                there.kill()
                await tell(pod, events[100:])
                assert pod.spool.unread
                with pytest.raises(RedisUnavailable):
                    await pod.sums(NAME)
                await asyncio.to_thread(there.start)
                await until_folded(pod, events)

        asyncio.run(scenario())


def test_what_redis_has_lost_shortly_after_it_was_counted_is_counted_again(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_SECONDS", 1.0)
    events = traffic(5)

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            await tell(pod, events)
            await until_folded(pod, events)
            redis.flushall()
            await until_folded(pod, events)
            assert pod.counts["resent"] >= len(events)
            async with asyncio.timeout(20):
                while pod.spool.segments:
                    await asyncio.sleep(0.05)
            await until_folded(pod, events)

    asyncio.run(scenario())
    assert not list(tmp_path.iterdir())


def test_a_pod_that_is_killed_loses_nothing_that_it_accepted(tmp_path: Path) -> None:
    units: set[str] = set()
    with server(tmp_path, "appendonly yes") as there:
        for series, last in enumerate([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]):
            if series == 1:
                there.kill()  # this pod has only its disk
            command = [sys.executable, str(TESTS / "ledger_pod.py"), there.url, str(tmp_path / "spool"), str(series)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as pod:
                assert pod.stdout is not None
                lines = [pod.stdout.readline() for _ in range(40)]
                pod.send_signal(last)
                units |= {f"unit-{number}" for line in [*lines, *pod.stdout] for number in json.loads(line)}
            if series == 1:
                there.start()

        async def scenario() -> None:
            async with ledger(there.url, tmp_path / "spool") as pod:
                for unit in units:
                    pod.expose(exposure(unit))
                async with asyncio.timeout(30):
                    while sum([arm.metrics["bought"].y for arm in (await pod.sums(NAME))[0].arms.values()]) < len(
                        units
                    ):
                        await asyncio.sleep(0.1)
                assert {unit async for unit, record in pod.records(NAME) if record.outcomes} == units

        asyncio.run(scenario())


def test_events_that_a_dead_pod_took_are_folded_by_another(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECLAIM_SECONDS", 0.2)
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.2)
    events = [exposure(), outcome(1)]
    stream = f"tween:exp:{{{NAME}}}:events"
    redis.xgroup_create(stream, "fold", id="0", mkstream=True)
    for event in events:
        redis.xadd(stream, {"event": Event(event, time.time()).encoded()})
    redis.xadd(stream, {"something": "else"})
    assert redis.xreadgroup("fold", "dead", {stream: ">"})

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            await until_folded(pod, events)
            assert pod.counts["foreign"] == 1

    asyncio.run(scenario())
    assert redis.xlen(stream) == 0


def test_a_unit_that_is_never_met_is_forgotten_in_the_end(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.1)
    key = f"tween:exp:{{{NAME}}}"

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            await pod.record(NAME, TONE, [outcome(1, unit="never met"), outcome(2, unit="met late")])
            async with asyncio.timeout(10):
                while redis.hlen(f"{key}:units") < 2:
                    await asyncio.sleep(0.05)
            pod.expose(exposure("met late"))
            await until_folded(pod, [exposure("met late"), outcome(2, unit="met late")])
            assert redis.zrange(f"{key}:waiting", 0, -1) == [b"never met"]
            redis.zadd(f"{key}:waiting", {"never met": time.time() - 1})  # as if the window had passed
            async with asyncio.timeout(10):
                while redis.hlen(f"{key}:units") > 1:
                    await asyncio.sleep(0.05)
            assert not redis.exists(f"{key}:waiting")

    asyncio.run(scenario())


def test_bots_are_harmless(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    clicks = [outcome(number, "clicks") for number in range(MOST_OUTCOMES + 500)]

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            for _ in range(500):
                pod.expose(Exposure(f"e{random.random()}", NAME, 1, "warm", "ada", START, 0.5))
            await pod.record(NAME, TONE, clicks)
            async with asyncio.timeout(30):
                while pod.counts["folded"] < len(clicks) + 500:
                    await asyncio.sleep(0.05)
            warm = (await pod.sums(NAME))[0].arms["warm"]
            assert (warm.units, warm.exposures, warm.metrics["clicks"].y) == (1, 500, 5.0)
            [(_, record)] = [one async for one in pod.records(NAME)]
            assert (len(record.outcomes), record.surplus) == (MOST_OUTCOMES, 500)

    asyncio.run(scenario())


def test_a_metric_that_does_not_exist_is_refused_by_its_name(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            with pytest.raises(UnknownMetric, match="no metric 'bougt'; metrics: bought, clicks, spent"):
                await pod.record(NAME, TONE, [outcome(1), outcome(2, "bougt")])
            assert pod.counts["outcomes"] == 0

    asyncio.run(scenario())


def test_a_full_spool_refuses_what_is_new_and_keeps_what_it_has(tmp_path: Path) -> None:
    kept = [exposure()]
    with server(tmp_path) as there:

        async def scenario() -> None:
            there.kill()
            async with ledger(there.url, tmp_path / "spool", mib=0.01) as pod:
                pod.expose(exposure())
                with pytest.raises(SpoolFull, match="wait on disk"):
                    for number in range(1_000):
                        await pod.record(NAME, TONE, [outcome(number)])
                        kept.append(outcome(number))
                for _ in range(100):
                    pod.expose(exposure())
                await asyncio.sleep(0.2)
                assert (pod.counts["dropped_exposures"], pod.counts["refused_outcomes"]) == (100, 1)
                await asyncio.to_thread(there.start)
                await until_folded(pod, kept)

        asyncio.run(scenario())


def test_a_disk_that_refuses_is_no_failure_of_predictions(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def scenario(there: Server) -> None:
        async with ledger(there.url, tmp_path / "file" / "spool") as pod:
            pod.expose(exposure())
            with pytest.raises(SpoolFull, match="disk"):
                await pod.record(NAME, TONE, [outcome(1)])
            assert (pod.counts["dropped_exposures"], pod.counts["refused_outcomes"]) == (1, 1)

    with server(tmp_path) as there:
        asyncio.run(scenario(there))


def test_a_ledger_works_on_a_cluster(tmp_path: Path) -> None:
    events = traffic(6, units=20)
    with cluster(tmp_path) as nodes:

        async def scenario() -> None:
            url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
            async with ledger(url, tmp_path / "a") as one, ledger(url, tmp_path / "b") as two:
                await asyncio.gather(tell(one, events[::2]), tell(two, events[1::2]))
                await until_folded(one, events)
                units = {unit async for unit, _ in two.records(NAME)}
                assert units == {event.unit for event in events if isinstance(event, Exposure)}

        asyncio.run(scenario())


@pytest.mark.parametrize("seed", [7, 8])
def test_a_storm_of_faults_changes_nothing(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is killed, the line to it cut and silent, pods restart, and everything is told twice."""
    monkeypatch.setattr(module, "SETTLED_SECONDS", 0.3)
    monkeypatch.setattr(module, "RECLAIM_SECONDS", 0.5)
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.3)
    events = traffic(seed, units=100)
    chooser = random.Random(seed)
    told = events + chooser.choices(events, k=len(events))
    chooser.shuffle(told)
    with server(tmp_path, "appendonly yes", "appendfsync everysec") as there, line_to(there.port) as line:

        async def trouble() -> None:
            for state in chooser.sample(["cut", "silent", "hang up once", "kill"], k=4):
                await asyncio.sleep(chooser.uniform(0.1, 0.5))
                if state == "kill":
                    there.kill()
                    await asyncio.sleep(0.3)
                    await asyncio.to_thread(there.start)
                elif state == "cut":
                    line.cut()
                else:
                    line.state = state
                await asyncio.sleep(0.4)
                line.state = "up"

        async def pods(part: list[Exposure | Outcome], folder: Path) -> None:
            for start in range(0, len(part), 100):
                async with ledger(line.url, folder) as pod:
                    await tell(pod, part[start : start + 100])
                    await asyncio.sleep(chooser.uniform(0, 0.3))

        async def scenario() -> None:
            await asyncio.gather(trouble(), pods(told[::2], tmp_path / "a"), pods(told[1::2], tmp_path / "b"))
            async with ledger(line.url, tmp_path / "a") as one, ledger(line.url, tmp_path / "b"):
                await until_folded(one, events, seconds=40)

        asyncio.run(scenario())


def test_events_of_a_deleted_experiment_are_neither_sent_nor_folded(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.1)
    stream = f"tween:exp:{{{NAME}}}:events"

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            definitions = pod._definitions
            assert isinstance(definitions, Known)
            await tell(pod, [exposure(), outcome(1)])
            await until_folded(pod, [exposure(), outcome(1)])
            definitions.deletions[NAME] = time.time()
            await pod.forget(NAME, 2)
            assert not list(redis.scan_iter(f"tween:exp:{{{NAME}}}:*"))
            redis.xadd(stream, {"event": Event(outcome(2), time.time() - 9).encoded()})  # what was on its way
            await tell(pod, [exposure(), outcome(1)])  # the next one of that name, with the same ids
            await until_folded(pod, [exposure(), outcome(1)])
            async with asyncio.timeout(10):
                while redis.xlen(stream):
                    await asyncio.sleep(0.05)
            assert pod.counts["foreign"] == 1

    asyncio.run(scenario())


def test_an_erased_unit_leaves_nothing_behind(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    events = traffic(9, units=20)
    theirs = [event for event in events if event.unit == "unit-3-ü"]
    assert any(isinstance(event, Exposure) for event in theirs), "or this shows nothing"

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            await tell(pod, events)
            await until_folded(pod, events)
            redis.hset(f"tween:exp:{{{NAME}}}:sticky:2", "unit-3-ü", "a draw")
            assert await pod.erase(NAME, "unit-3-ü") and not await pod.erase(NAME, "unit-3-ü")
            sums = await pod.sums(NAME)
            for phase, wanted in zip(sums, expected([e for e in events if e not in theirs], START + 1e6), strict=True):
                for name, arm in wanted.arms.items():
                    assert phase.arms[name].units == arm.units
                    for metric, moments in arm.metrics.items():
                        assert asdict(phase.arms[name].metrics[metric]) == pytest.approx(asdict(moments), abs=1e-6)
            assert "unit-3-ü" not in {unit async for unit, _ in pod.records(NAME)}
            assert not redis.exists(f"tween:exp:{{{NAME}}}:sticky:2")

    asyncio.run(scenario())


def test_units_are_forgotten_when_their_time_is_over_and_sums_stay(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.1)

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            await tell(pod, [exposure(), outcome(1)])
            await until_folded(pod, [exposure(), outcome(1)])
            assert isinstance(pod._definitions, Known)
            pod._definitions.is_expired = True
            async with asyncio.timeout(10):
                while redis.exists(f"tween:exp:{{{NAME}}}:units"):
                    await asyncio.sleep(0.05)
            assert (await pod.sums(NAME))[0].arms["warm"].metrics["bought"].y == 1

    asyncio.run(scenario())
