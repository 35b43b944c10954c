"""The store that pods share, over a real Redis and a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import RedisCluster
from servers import cluster

from app.cluster.document_store import DocumentStore
from app.cluster.redis_client import connect
from app.cluster.redis_url import RedisUrl
from app.errors import RedisUnavailable

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


def run(url: str, scenario: Callable[[DocumentStore], Awaitable[None]]) -> None:
    async def main() -> None:
        client = connect(RedisUrl.parse(url)).redis
        await asyncio.wait_for(scenario(DocumentStore(client, "test", "aliases")), 30)
        await client.aclose()

    asyncio.run(main())


async def swaps_and_tells(store: DocumentStore) -> None:
    """What a store does, from nothing to nothing."""
    changes, asked = asyncio.Event(), asyncio.Queue[tuple[str, str]]()
    listening = asyncio.create_task(store.listen(changes.set, lambda ticket, text: asked.put_nowait((ticket, text))))
    while await store.ask("t0", "base") == 0:
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(asked.get(), 5) == ("t0", "base")

    assert await store.mark() is None and (await store.read()).documents == {}
    assert await store.swap("prod", None, b"one")
    await asyncio.wait_for(changes.wait(), 5)
    first = await store.read()
    assert first.documents == {"prod": b"one"} and first.mark == await store.mark() is not None
    assert not await store.swap("prod", None, b"two") and not await store.swap("prod", b"two", b"three")
    assert (await store.read()) == first, "what is refused changes nothing"
    assert await store.swap("prod", b"one", b"two") and await store.mark() != first.mark
    assert await store.swap("prod", b"one", b"two"), "once more, as after a lost reply"
    assert await store.swap("canary", None, b"\x00\xff")
    assert (await store.read()).documents == {"prod": b"two", "canary": b"\x00\xff"}
    assert await store.swap("canary", b"\x00\xff", None)
    assert (await store.read()).documents == {"prod": b"two"}

    assert await store.answers("t1") == []
    await store.answer("t1", "pod a", True)
    await store.answer("t1", "pod b", False)
    await store.answer("t1", "pod a", True)
    assert sorted(await store.answers("t1")) == [False, True]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


def test_documents_are_swapped_and_pods_are_told(redis: Redis, redis_url: str) -> None:
    run(redis_url, swaps_and_tells)
    assert {redis.ttl(name) > 0 for name in redis.keys("test:aliases:warm:*")} == {True}
    assert redis.ttl("test:aliases") == -1


def test_on_a_cluster_too(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        async with RedisCluster(host="127.0.0.1", port=port) as client:
            await asyncio.wait_for(swaps_and_tells(DocumentStore(client, "test", "aliases")), 30)

    with cluster(tmp_path) as nodes:
        asyncio.run(main(nodes[0].port))


def test_of_many_who_swap_at_once_one_wins(redis: Redis, redis_url: str) -> None:
    async def scenario(store: DocumentStore) -> None:
        swapped = await asyncio.gather(*(store.swap("prod", None, str(i).encode()) for i in range(12)))
        assert sum(swapped) == 1
        assert (await store.read()).documents == {"prod": str(swapped.index(True)).encode()}

    run(redis_url, scenario)


def test_a_lease_is_one_pods_until_it_expires(redis: Redis, redis_url: str) -> None:
    async def scenario(store: DocumentStore) -> None:
        assert await store.lease("prod", "pod a", 60) and await store.lease("prod", "pod a", 60)
        assert not await store.lease("prod", "pod b", 60) and await store.lease("canary", "pod b", 60)
        assert await store.lease("prod", "pod a", 0.01)
        while not await store.lease("prod", "pod b", 60):
            await asyncio.sleep(0.01)
        assert not await store.lease("prod", "pod a", 60)

    run(redis_url, scenario)


def test_an_outage_is_one_sentence(tmp_path: Path) -> None:
    async def scenario(store: DocumentStore) -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            store.mark,
            store.read,
            lambda: store.swap("prod", None, b"one"),
            lambda: store.ask("t", "base"),
            lambda: store.answer("t", "pod", True),
            lambda: store.answers("t"),
            lambda: store.lease("prod", "pod", 1),
            lambda: store.listen(lambda: None, lambda ticket, text: None),
        ]
        for call in calls:
            with pytest.raises(RedisUnavailable, match=r"redis does not answer or refuses \(ConnectionError\)"):
                await call()

    run(f"unix://{tmp_path}/redis.sock", scenario)


def test_a_key_of_another_type_is_an_outage_and_not_an_error(redis: Redis, redis_url: str) -> None:
    redis.set("test:aliases", "a string")

    async def scenario(store: DocumentStore) -> None:
        with pytest.raises(RedisUnavailable, match="ResponseError"):
            await store.mark()

    run(redis_url, scenario)
