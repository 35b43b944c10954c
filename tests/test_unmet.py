"""Outcomes of units that nobody has met, and a Redis that must keep room: on real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Service
from ledgers import NAME, START, TONE, ledger, tell, until_folded
from redis import Redis
from servers import server, until
from test_outcome_routes import DEFINITION, PATH, counts

from app.api.auth.api_keys import new_key
from app.cluster.redis_client import connect
from app.cluster.redis_headroom import FOLDED, PREDICTIONS, SENT, Headroom
from app.cluster.redis_url import RedisUrl
from app.experiments.events import event_ledger as module
from app.experiments.events import unmet_units
from app.experiments.events.event import Exposure, Outcome
from app.experiments.events.ledger_store import LedgerStore
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

KEY = f"tween:exp:{{{NAME}}}"


def outcomes(first: int, count: int, unit: str = "stranger") -> list[Outcome]:
    return [Outcome(f"{unit}-{n}", NAME, f"{unit}-{n}", "bought", 1.0, START) for n in range(first, first + count)]


def exposure(unit: str) -> Exposure:
    return Exposure(f"e-{unit}", NAME, 1, "warm", unit, START, 0.5)


def test_strangers_have_a_bound_for_all_and_for_each_key(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmet_units, "MOST", 100)
    monkeypatch.setattr(unmet_units, "MOST_OF_ONE", 60)

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path / "a") as one, ledger(redis_url, tmp_path / "b") as two:
            taken = await one.record(NAME, TONE, outcomes(0, 80), "shop")
            assert (len(taken.outcomes), taken.dropped) == (60, {"beyond": 20})
            taken = await two.record(NAME, TONE, outcomes(80, 10), "shop")
            assert (len(taken.outcomes), taken.dropped) == (0, {"beyond": 10}), "all pods keep one count"
            taken = await two.record(NAME, TONE, outcomes(100, 50), "bank")
            assert (len(taken.outcomes), taken.dropped) == (40, {"beyond": 10}), "one key leaves room for others"
            same = [Outcome(f"again-{n}", NAME, "stranger-1", "clicks", 1.0, START) for n in range(5)]
            assert (await two.record(NAME, TONE, same, "bank")).dropped == {"beyond": 5}
            assert await one.unmet(NAME) == {"waiting": 100, "beyond": 45}
            assert one.counts["untaken_beyond"] + two.counts["untaken_beyond"] == 45

    asyncio.run(scenario())


def test_a_stranger_who_is_met_or_given_up_leaves_room(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmet_units, "MOST", 10)
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.1)

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path / "a") as one, ledger(redis_url, tmp_path / "b") as two:
            told = [*outcomes(0, 10), *map(exposure, ("stranger-0", "stranger-1", "stranger-2"))]
            assert len((await one.record(NAME, TONE, outcomes(0, 10))).outcomes) == 10
            await tell(two, told[10:])
            await until_folded(one, told)
            async with asyncio.timeout(120):
                while (await one.unmet(NAME))["waiting"] != 7:
                    await asyncio.sleep(0.05)
            assert len((await one.record(NAME, TONE, outcomes(10, 10))).outcomes) == 3
            more = [Outcome(f"x{n}", NAME, "stranger-0", "clicks", 1.0, START) for n in range(50)]
            assert len((await one.record(NAME, TONE, more)).outcomes) == 50, "who was met may do more"
            redis.zrem(f"{KEY}:waiting", "stranger-5", "stranger-6")  # as a pod of an earlier version does
            async with asyncio.timeout(120):
                while (await one.unmet(NAME))["waiting"] != 8:
                    await asyncio.sleep(0.05)
            redis.zadd(f"{KEY}:waiting", {unit: time.time() - 1 for unit in redis.zrange(f"{KEY}:waiting", 0, -1)})
            async with asyncio.timeout(120):
                while redis.exists(f"{KEY}:waiting", f"{KEY}:unmet", f"{KEY}:unmet:by"):
                    await asyncio.sleep(0.05)
            assert (await one.unmet(NAME))["waiting"] == 0

    asyncio.run(scenario())


def test_who_cannot_be_met_waits_for_nothing(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    half = TONE.model_copy(update={"coverage": 0.5})
    draft = TONE.model_copy(update={"status": "draft"})

    async def scenario() -> None:
        async with ledger(redis_url, tmp_path) as pod:
            taken = await pod.record(NAME, half, outcomes(0, 1_000))
            assert 400 < len(taken.outcomes) < 600 and taken.dropped == {"outside": 1_000 - len(taken.outcomes)}
            outside = next(one for one in outcomes(0, 1_000) if one not in taken.outcomes)
            pod.expose(exposure(outside.unit))  # met before the coverage shrank
            assert (await pod.record(NAME, half, [outside])).outcomes == [outside]
            assert (await pod.record(NAME, draft, outcomes(0, 5))).dropped == {"draft": 5}

    asyncio.run(scenario())


def test_while_redis_is_away_all_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmet_units, "MOST", 10)
    with server(tmp_path) as there:

        async def scenario() -> None:
            async with ledger(there.url, tmp_path / "spool") as pod:
                there.kill()
                assert len((await pod.record(NAME, TONE, outcomes(0, 50))).outcomes) == 50
                await asyncio.to_thread(there.start)
                told = [*outcomes(0, 50), *(exposure(one.unit) for one in outcomes(0, 50))]
                await tell(pod, told[50:])
                await until_folded(pod, told)

        asyncio.run(scenario())


def test_events_wait_on_disk_while_redis_is_nearly_full(tmp_path: Path) -> None:
    told = [exposure("ada"), *(Outcome(f"o{n}", NAME, "ada", "clicks", 1.0, START) for n in range(20))]
    with server(tmp_path, "maxmemory 16mb", "maxmemory-policy noeviction") as there, there.client() as redis:

        async def scenario() -> None:
            client = connect(RedisUrl.parse(there.url))
            headroom = Headroom(client.redis, lambda: asyncio.sleep(0, 0))
            watch = asyncio.create_task(headroom.run())
            async with ledger(there.url, tmp_path / "spool", headroom=headroom) as pod:
                for number in range(13):
                    redis.set(f"ballast-{number}", "x" * 2**20)
                await at(lambda: headroom.used >= SENT)
                await tell(pod, told)
                await asyncio.sleep(0.5)
                assert pod.spool.unread and not redis.xlen(f"{KEY}:events") and not pod.counts["sent"]
                redis.delete(*(f"ballast-{number}" for number in range(13)))
                await until_folded(pod, told)
                assert pod.counts["folded"] == len(told)
            watch.cancel()
            await client.aclose()

        asyncio.run(scenario())


def test_where_redis_evicts_what_expires_only_events_count(tmp_path: Path) -> None:
    with server(tmp_path, "maxmemory 16mb", "maxmemory-policy volatile-lru") as there, there.client() as redis:

        async def scenario() -> None:
            client = connect(RedisUrl.parse(there.url))
            async with ledger(there.url, tmp_path / "spool"):
                headroom = Headroom(client.redis, lambda: LedgerStore(client.redis, "tween").size([NAME], time.time()))
                watch = asyncio.create_task(headroom.run())
                for number in range(20):
                    redis.set(f"cached-{number}", "x" * 2**20, ex=1_000)
                await asyncio.sleep(1)
                assert headroom.used < 0.1
                redis.hset(f"{KEY}:units", mapping={f"unit-{n}": "x" * 2_000 for n in range(6_500)})
                await at(lambda: headroom.used >= SENT)
                watch.cancel()
            await client.aclose()

        asyncio.run(scenario())


def test_room_is_left_in_the_order_of_what_matters() -> None:
    assert PREDICTIONS < SENT < FOLDED < 1


async def at(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not there():
            await asyncio.sleep(0.05)


def test_a_key_that_invents_units_stops_no_manager(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path
) -> None:
    """160,000 outcomes of units that nobody met, into 64 MB."""
    with server(tmp_path, "maxmemory 64mb", "maxmemory-policy noeviction") as there, there.client() as redis:
        service = serve(spec, redis_url=there.url, spool=tmp_path / "spool", redis_blends="never")
        client = service.client
        assert client.put(PATH, json=DEFINITION).status_code == 201
        accepted = dropped = 0
        for call in range(16):
            body = [{"unit": f"nobody-{call}-{number}".ljust(200, "-"), "metric": "bought"} for number in range(10_000)]
            reply = posted(client, body)
            accepted, dropped = accepted + reply["accepted"], dropped + reply["dropped"]
            assert reply["dropped"] == 0 or "units that nobody has met" in reply["why"][0]
        assert (accepted, dropped) == (unmet_units.MOST, 160_000 - unmet_units.MOST)
        until(lambda: counts(service)["folded"] == accepted, seconds=120)
        moved = client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"})
        assert moved.status_code == 201, moved.text
        paused = client.post(f"{PATH}/status", json={"status": "paused"})
        assert paused.status_code == 200, paused.text
        memory = redis.info("memory")
        assert memory["used_memory"] < SENT * memory["maxmemory"]
        assert counts(service)["untaken_beyond"] == dropped
        report = client.get(f"{PATH}/report").json()
        assert report["unmet"] == {"waiting": accepted, "untaken": {"beyond": dropped}}
        assert any(f"{dropped:,} outcomes were refused" in warning for warning in report["warnings"])


def test_each_key_has_places_of_its_own(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmet_units, "MOST_OF_ONE", 5)
    keys = {name: new_key(name, role) for name, role in (("boss", "manage"), ("shop", "predict"), ("bank", "predict"))}
    (tmp_path / "keys.toml").write_text("".join(entry for _, entry in keys.values()))
    client = serve(spec, spool=tmp_path / "spool", api_keys=tmp_path / "keys.toml").client
    bearer = {name: {"Authorization": f"Bearer {key}"} for name, (key, _) in keys.items()}
    assert client.put(PATH, json=DEFINITION, headers=bearer["boss"]).status_code == 201
    body = [{"unit": f"nobody-{number}", "metric": "bought"} for number in range(8)]
    for name in ("shop", "bank"):
        told = [{**one, "unit": f"{name}-{one['unit']}"} for one in body]
        headers = {**bearer[name], "X-Tween-Actor": "somebody else"}
        reply = client.post(f"{PATH}/outcomes", json=told, headers=headers).json()
        assert (reply["accepted"], reply["dropped"]) == (5, 3)


def test_a_key_that_tells_ever_more_of_units_that_were_met_stops_no_manager(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path
) -> None:
    """Marks of outcomes fill Redis as well; then they wait on disk, and managers have what is left."""
    with server(tmp_path, "maxmemory 8mb", "maxmemory-policy noeviction") as there:
        service = serve(spec, redis_url=there.url, spool=tmp_path / "spool", redis_blends="never", spool_mib=16)
        client = service.client
        assert client.put(PATH, json=DEFINITION).status_code == 201
        predicted = {"texts": "a", "recipe": "exp:tone", "unit": "ada"}
        assert client.post("/v1/predict", json=predicted).status_code == 200
        for _ in range(12):
            answer = client.post(f"{PATH}/outcomes", json=[{"unit": "ada", "metric": "bought"}] * 10_000)
            if answer.status_code == 503:
                assert "wait on disk" in answer.json()["detail"]
                break
            assert answer.status_code == 202, answer.text
        time.sleep(3)
        assert client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"}).status_code == 201
        assert client.post(f"{PATH}/status", json={"status": "paused"}).status_code == 200
        assert client.post(f"{PATH}/status", json={"status": "running"}).status_code == 200


def posted(client: httpx.Client, body: list[dict[str, Any]]) -> dict[str, Any]:
    reply = client.post(f"{PATH}/outcomes", json=body)
    assert reply.status_code == 202, reply.text
    found: dict[str, Any] = reply.json()
    return found
