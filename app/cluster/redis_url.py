"""Where Redis is, in one line of text.

    redis://[[user]:password@]host[:port][/db]              one server
    rediss://...                                            the same over TLS
    unix://[[user]:password@]/path/to/socket[?db=0]         one server on a Unix socket
    redis+sentinel://[...]host:port,host:port/service[/db]  the master of a service that Sentinels watch
    redis+cluster://[...]host:port,host:port                a cluster; any of its nodes will do
    rediss+sentinel://, rediss+cluster://                   the same over TLS

User and password are those of the servers that hold the data; `?sentinel_username=` and `?sentinel_password=` are
for Sentinels that want some. Other options after `?` go to redis-py as they are (`ssl_ca_certs`, `ssl_cert_reqs`,
...). No message ever repeats a part of an address, because any part may be a misplaced password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.connection import parse_url

from app.errors import BadSettings

Kind = Literal["server", "sentinel", "cluster"]
FORMS = "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
DEFAULT_PORT = {"server": 6379, "cluster": 6379, "sentinel": 26379}


@dataclass(frozen=True)
class RedisUrl:
    """An address, taken apart.

    `plain` is what redis-py reads: how to talk to a server that holds data. Behind Sentinels and in a cluster its
    host is only a stand-in for those that `nodes` lead to.
    """

    kind: Kind
    plain: str = field(repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_login: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Raises `BadSettings`, without a word of the address."""
        try:
            parsed = cls._parse(url)
            parse_url(parsed.plain)
        except ValueError:
            raise BadSettings(f"REDIS_URL cannot be read; it is an address that starts with {FORMS}") from None
        return parsed

    @classmethod
    def _parse(cls, url: str) -> RedisUrl:
        scheme, _, rest = url.partition("://")
        plain_scheme, plus, topology = scheme.partition("+")
        if not plus:
            return cls("server", url)
        if plain_scheme not in ("redis", "rediss") or topology not in ("sentinel", "cluster"):
            raise ValueError
        kind: Kind = "sentinel" if topology == "sentinel" else "cluster"
        split = urlsplit(f"//{rest}")
        login, at, hosts = split.netloc.rpartition("@")
        nodes = tuple(_node(host, DEFAULT_PORT[kind]) for host in hosts.split(","))
        service, _, database = split.path.strip("/").partition("/")
        if kind == "cluster":
            service, database = "", service
        elif not service:
            raise ValueError
        options = dict(parse_qsl(split.query))
        sentinel_login = {
            name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
        }
        plain = f"{plain_scheme}://{login}{at}node/{database}?{urlencode(options)}"
        return cls(kind, plain, nodes, service, sentinel_login)


def _node(text: str, default_port: int) -> tuple[str, int]:
    split = urlsplit(f"//{text}")
    if not split.hostname:
        raise ValueError
    return split.hostname, split.port or default_port
