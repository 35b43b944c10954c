from __future__ import annotations

import pytest
from redis.connection import SSLConnection, parse_url

from app.cluster.redis_url import RedisUrl
from app.errors import BadSettings


@pytest.mark.parametrize("url", ["redis://h:1/2", "rediss://u:p@h", "unix:///tmp/redis.sock?db=3"])
def test_one_server_is_left_to_redis_py(url: str) -> None:
    assert RedisUrl.parse(url) == RedisUrl("server", url)


def test_sentinels_their_service_and_the_login_of_the_servers() -> None:
    url = RedisUrl.parse("redis+sentinel://tween:s%40crt@[::1]:3,a:1,b/main/2?sentinel_password=other&client_name=x")
    assert (url.kind, url.service) == ("sentinel", "main")
    assert url.nodes == (("::1", 3), ("a", 1), ("b", 26379))
    assert url.sentinel_login == {"password": "other"}
    options = parse_url(url.plain)
    assert (options["username"], options["password"], options["db"]) == ("tween", "s@crt", 2)
    assert options["client_name"] == "x"


def test_clusters_and_tls() -> None:
    url = RedisUrl.parse("rediss+cluster://:pw@a:7000,b:7001?ssl_ca_certs=%2Fca.pem")
    assert url.kind == "cluster" and url.nodes == (("a", 7000), ("b", 7001))
    options = parse_url(url.plain)
    assert options["connection_class"] is SSLConnection and options["ssl_ca_certs"] == "/ca.pem"


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@host",
        "s3cret",
        "redis://:s3cret/and@host",
        "redis+sentinel://:s3cret@host:1",
        "redis+sentinel://:s3cret@host:port/main",
        "redis+tree://:s3cret@host",
        "unix+cluster://:s3cret@host",
        "redis+cluster://:s3cret@",
    ],
)
def test_what_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(BadSettings, match=r"REDIS_URL cannot be read; .* redis\+sentinel://") as refusal:
        RedisUrl.parse(url)
    assert "s3cret" not in str(refusal.value) and refusal.value.__cause__ is None


def test_an_address_does_not_show_its_passwords() -> None:
    assert "s3cret" not in repr(RedisUrl.parse("redis+sentinel://:s3cret@h/main?sentinel_password=s3cret"))
