"""First draws stay, whoever drew, and whatever Redis does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis
from servers import server

from app.cluster.circuit_breaker import PROBE_SECONDS
from app.cluster.redis_client import connect
from app.cluster.redis_url import RedisUrl
from app.experiments import sticky_assignment as module
from app.experiments.sticky_assignment import Key, StickyAssignment

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

A: Key = ("tone", 1, "ä")
B: Key = ("other", 1, "ä")


@asynccontextmanager
async def pod(url: str) -> AsyncIterator[StickyAssignment]:
    client = connect(RedisUrl.parse(url))
    try:
        yield StickyAssignment(client, "tween")
    finally:
        await client.aclose()


def test_what_was_drawn_first_holds_on_every_pod(redis: Redis, redis_url: str) -> None:
    async def scenario() -> None:
        async with pod(redis_url) as one, pod(redis_url) as two:
            assert await two.first({A: "look"}, keep=False) == {A: "look"} and not redis.keys()
            assert await one.first({A: "first", B: "second"}) == {A: "first", B: "second"}
            assert await two.first({A: "later", ("tone", 2, "ä"): "new"}) == {A: "first", ("tone", 2, "ä"): "new"}
            assert await two.first({B: "later"}, keep=False) == {B: "second"}
            calls = int(redis.info("stats")["total_commands_processed"])
            for _ in range(10):
                assert await two.first({A: "later"}) == {A: "first"}
            assert int(redis.info("stats")["total_commands_processed"]) < calls + 10, "remembered"

    asyncio.run(scenario())


def test_while_redis_is_away_who_is_remembered_stays_and_new_draws_are_kept_for_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        with server(tmp_path, "appendonly yes", "appendfsync always") as redis:
            async with pod(redis.url) as one, pod(redis.url) as two:
                await one.first({A: "first"})
                redis.kill()
                assert await one.first({A: "later", B: "drawn"}) == {A: "first", B: "drawn"}
                assert await two.first({A: "hash"}) == {A: "hash"}, "never met here"
                redis.start()
                await asyncio.sleep(1.5 * PROBE_SECONDS)
                assert await one.first({A: "later", B: "later"}) == {A: "first", B: "drawn"}
                assert await two.first({A: "hash", B: "hash"}) == {A: "first", B: "drawn"}

    asyncio.run(scenario())


def test_what_redis_has_lost_is_written_back(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with pod(redis_url) as one, pod(redis_url) as two:
            await one.first({A: "first"})
            redis.flushall()
            monkeypatch.setattr(module, "TRUSTED_SECONDS", 0.0)
            one._known[A] = ("first", 0.0)  # a minute later
            await one.first({A: "later"})
            assert await two.first({A: "later"}) == {A: "first"}

    asyncio.run(scenario())


def test_memory_is_bounded_and_redis_knows_the_rest(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 10)

    async def scenario() -> None:
        async with pod(redis_url) as one:
            for i in range(30):
                await one.first({("tone", 1, f"u{i}"): str(i)})
            assert list(one._known) == [("tone", 1, f"u{i}") for i in range(20, 30)]
            assert await one.first({("tone", 1, "u0"): "later"}) == {("tone", 1, "u0"): "0"}

    asyncio.run(scenario())


def test_without_redis_a_process_remembers() -> None:
    async def scenario() -> None:
        alone = StickyAssignment(None, "tween")
        assert await alone.first({A: "first"}) == await alone.first({A: "later"}) == {A: "first"}

    asyncio.run(scenario())
