"""One server, Sentinels, a cluster, TLS, users: the same tier on all of them."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trustme
from conftest import running
from pods import KEY, KIND, VECTOR, P, fetched, name, with_pods, write
from redis import Redis
from servers import Server, cluster, line_to, server, until, watched

from app.cache.bulk_transfer import BulkTransfer
from app.cache.redis_tier import RedisTier
from app.cluster.redis_client import CircuitOpen, RedisCallFailed, RedisClient, connect
from app.cluster.redis_url import RedisUrl
from app.models.bank import BankSpec

PASSWORD = "s3cret-canary"


BUSY = pytest.mark.patient("a fetch that a busy machine delays must not count as a miss")


async def there_and_back(tier: RedisTier) -> None:
    """All that the tier does, on two pods where one builds for the other."""
    assert await tier.is_well() and await fetched(tier) is None
    assert await write(tier)
    out = await fetched(tier)
    assert out is not None and torch.equal(out, VECTOR)
    assert [blend.key for blend in await tier.stored()] == [KEY]
    assert await tier.delete(KEY) and await tier.stored() == []
    assert {way for way, _, _ in tier.costs()} == {"fetch", "write"} and tier.errors == 0
    assert not await tier.get(KEY, KIND, torch.zeros(P))


def nodes(servers: list[Server]) -> str:
    return ",".join(f"127.0.0.1:{made.port}" for made in servers)


def test_a_server_with_a_database(tmp_path: Path) -> None:
    with server(tmp_path) as made:
        with_pods(f"{made.url}/3", lambda tier: write(tier))
        with made.client(db=3) as redis:
            assert redis.exists(name("manifest"))


@BUSY
def test_a_unix_socket(redis: Redis, redis_url: str) -> None:
    assert redis_url.startswith("unix://")
    with_pods(redis_url, there_and_back)


@BUSY
def test_a_cluster(tmp_path: Path) -> None:
    async def many(tier: RedisTier) -> None:
        await there_and_back(tier)
        for key in "abcdefgh":
            assert await write(tier, key) and await fetched(tier, key) is not None
        assert len(await tier.stored()) == 8

    with cluster(tmp_path) as servers:
        with_pods(f"redis+cluster://{nodes(servers[:2])}", many)
        keys = [{key.decode() for key in client.keys("*:manifest")} for client in map(Server.client, servers)]
        assert sum(map(len, keys)) == 8 and all(keys)


def test_a_cluster_that_loses_a_node_is_a_miss_there(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        for key in "abcdefgh":
            await write(tier, key)
        servers[1].kill()
        started = time.perf_counter()
        found = [await fetched(tier, key) for key in "abcdefgh"]
        assert time.perf_counter() - started < 5 and any(out is None for out in found)

    with cluster(tmp_path) as servers:
        with_pods(f"redis+cluster://{nodes(servers)}", scenario)


@BUSY
def test_sentinels_and_a_failover(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        await there_and_back(tier)
        assert await write(tier)
        data[0].kill()
        assert await fetched(tier) is None
        await asyncio.to_thread(until, lambda: Redis(port=data[1].port).info("replication")["role"] == "master")
        for _ in range(200):
            if await write(tier, "after"):
                break
            await asyncio.sleep(0.05)
        assert await fetched(tier, "after") is not None

    with watched(tmp_path) as (data, sentinels):
        with_pods(f"redis+sentinel://{nodes(sentinels)}/main", scenario)


def test_sentinels_that_do_not_know_the_service(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await fetched(tier) is None and not await write(tier) and not await tier.is_well()

    with server(tmp_path, sentinel=True) as sentinel:
        with_pods(f"redis+sentinel://{nodes([sentinel])}/other", scenario)


# -- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    yield f"?ssl_ca_certs={file}"


@BUSY
def test_tls(tmp_path: Path, tls: ssl.SSLContext, trusted: str) -> None:
    """The servers that wheels ship know no TLS, so a proxy ends it in front of a plain one."""
    with server(tmp_path) as made, line_to(made.port, tls) as line:
        with_pods(line.url + trusted, there_and_back)


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, tls: ssl.SSLContext) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await fetched(tier) is None and not await tier.is_well()

    with server(tmp_path) as made, line_to(made.port, tls) as line:
        with_pods(line.url, scenario)


# -- users ---------------------------------------------------------------------------------------------

RULES = "+@read +@write +@scripting +@connection +@pubsub +info +time ~tween:* resetchannels &tween:*"
"""All that a user of this service needs, in the words of ACL SETUSER."""


def test_the_rights_that_a_service_needs_are_documented_and_enough(tmp_path: Path, spec: BankSpec) -> None:
    assert f"`{RULES}`" in (Path(__file__).parent.parent / "docs" / "cache.md").read_text(encoding="utf-8")
    with server(tmp_path, f"user tween on >{PASSWORD} {RULES}") as made, made.client() as redis:
        url = f"redis://tween:{PASSWORD}@127.0.0.1:{made.port}"
        with running(spec, redis_url=url, redis_blends="always") as service:
            predict = {"texts": "ok", "recipe": "angry@0.4"}
            assert service.client.post("/v1/predict", json=predict).json()["source"] == "built"
            assert service.client.put("/v1/aliases/prod", json={"recipe": "angry@0.5"}).status_code in (200, 201)
            until(lambda: redis.keys("tween:blend:*:manifest") and redis.keys("tween:prediction:*"))
            assert service.client.get("/readyz").json()["redis"] == "ok"
        assert redis.keys("tween:aliases") and redis.acl_log() == []


@BUSY
def test_a_user_with_no_more_rights_than_documented(tmp_path: Path) -> None:
    with server(tmp_path, "user default off", f"user tween on >{PASSWORD} {RULES}") as made:
        with_pods(f"redis://tween:{PASSWORD}@127.0.0.1:{made.port}", there_and_back)


@BUSY
def test_a_user_who_may_not_ask_for_the_server_s_memory(tmp_path: Path) -> None:
    rules = RULES.replace("+info", "-info")
    with server(tmp_path, "user default off", f"user tween on >{PASSWORD} {rules}") as made:
        with_pods(f"redis://tween:{PASSWORD}@127.0.0.1:{made.port}", there_and_back)


def test_a_user_who_may_only_read_is_served_from_builds(tmp_path: Path) -> None:
    async def scenario(tier: RedisTier) -> None:
        assert await fetched(tier) is None and not await write(tier)
        assert not tier.breakers()["small"].is_open

    with server(tmp_path, "user default off", f"user tween on >{PASSWORD} +@read +@connection ~*") as made:
        with_pods(f"redis://tween:{PASSWORD}@127.0.0.1:{made.port}", scenario)


@pytest.mark.parametrize("login", [f":{PASSWORD}", f"tween:{PASSWORD}"])
def test_a_wrong_password_is_an_outage_and_stays_out_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, login: str
) -> None:
    async def scenario(tier: RedisTier) -> None:
        for _ in range(10):
            assert await fetched(tier) is None and not await write(tier)
        assert not await tier.is_well() and tier.breakers()["small"].is_open

    caplog.set_level(logging.DEBUG)
    with server(tmp_path, "requirepass right") as made:
        with_pods(f"redis://{login}@127.0.0.1:{made.port}", scenario)
    assert "AuthenticationError" in caplog.text and PASSWORD not in caplog.text


def test_nothing_that_is_raised_or_shown_holds_the_password(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = connect(url)
        with pytest.raises(RedisCallFailed) as failure:
            await client.call(lambda redis: redis.get("a"))
        shown = f"{client!r} {failure.value!r} {failure.value.__cause__!r} {url!r}"
        assert PASSWORD not in shown
        await client.aclose()

    url = RedisUrl.parse(f"unix://tween:{PASSWORD}@{tmp_path}/nothing.sock")
    asyncio.run(scenario())


# -- calls ---------------------------------------------------------------------------------------------


def test_an_option_that_nobody_knows_is_found_before_the_first_call() -> None:
    with pytest.raises(TypeError):
        BulkTransfer(RedisUrl.parse("redis://localhost?colour=red"))


def with_client(url: str, scenario: object) -> None:
    async def main() -> None:
        client = connect(RedisUrl.parse(url))
        try:
            await scenario(client)  # type: ignore[operator]
        finally:
            await client.aclose()

    asyncio.run(main())


def test_a_stale_connection_is_replaced_without_a_failure(tmp_path: Path) -> None:
    async def scenario(client: RedisClient) -> None:
        await asyncio.gather(*(client.call(lambda redis: redis.get("a")) for _ in range(10)))
        made.kill()
        made.start()
        answers = await asyncio.gather(*(client.call(lambda redis: redis.get("a")) for _ in range(10)))
        assert answers == [None] * 10 and client.breaker.openings == 0

    with server(tmp_path) as made:
        with_client(made.url, scenario)


def test_who_waited_for_a_time_out_does_not_wait_for_another(tmp_path: Path) -> None:
    async def scenario(client: RedisClient) -> None:
        await client.ping()
        line.state = "silent"
        with pytest.raises(RedisCallFailed) as failure:
            await client.ping()
        assert failure.value.timed_out and line.connections == 1

    with server(tmp_path) as made, line_to(made.port) as line:
        with_client(line.url, scenario)


def test_a_refusal_opens_no_breaker(redis: Redis, redis_url: str) -> None:
    async def scenario(client: RedisClient) -> None:
        redis.set("text", "x")
        for _ in range(10):
            with pytest.raises(RedisCallFailed, match="ResponseError"):
                await client.call(lambda redis: redis.lpush("text", "y"))
        assert not client.breaker.is_open and await client.ping() > 0

    with_client(redis_url, scenario)


def test_who_hangs_up_leaves_the_connection_in_order(redis: Redis, redis_url: str) -> None:
    async def scenario(client: RedisClient) -> None:
        for number in range(50):
            redis.set(str(number), number)
        for number in range(50):
            call = asyncio.create_task(client.call(lambda redis: redis.get("0")))
            await asyncio.sleep(number / 50_000)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        for number in range(50):
            assert await client.call(lambda redis, number=number: redis.get(str(number))) == b"%d" % number

    with_client(redis_url, scenario)


def test_a_line_that_is_cut_and_comes_back(tmp_path: Path) -> None:
    async def scenario(client: RedisClient) -> None:
        await client.ping()
        line.cut()
        left_alone = 0
        for _ in range(20):
            try:
                await client.ping()
            except CircuitOpen:
                left_alone += 1
            except RedisCallFailed:
                pass
        assert client.breaker.is_open and left_alone == 17
        line.state = "up"
        for _ in range(200):
            try:
                await client.ping()
                break
            except RedisCallFailed:
                await asyncio.sleep(0.02)
        assert not client.breaker.is_open and client.breaker.openings == 1

    with server(tmp_path) as made, line_to(made.port) as line:
        with_client(line.url, scenario)
