"""Without keys: answers programs and the service's own pages, and no page of another site.

Where there are no keys, being able to reach the service is the right to use it, and a browser reaches it on behalf of
any page that it shows. Two ways are closed here. Cross-site request forgery: a page sends a request that needs no
preflight, such as a POST without a body, so what may change something is looked at for where it comes from (Fetch
Metadata, then Origin, as Go's net/http does). DNS rebinding: a page's own name leads to this machine, so that it is of
the same origin; then the name is a stranger's, and it is not answered. An address is no name and cannot be rebound.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http_server.middleware import header
from app.api.problems import problem
from app.errors import CrossOrigin, UnknownHost

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing; what they read, other pages may see where CORS says so."""
LOOPBACK = frozenset({"localhost", "*.localhost"})
ANY = "*"


class SameOrigin:
    """Refuses a Host that is not the service's, and changes that a page of another origin asks for."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts`: names beside loopback's, `*.example.org` for all below it; `origins`: whose pages may ask for
        changes; `*` allows all."""
        self._app = app
        self._hosts = LOOPBACK.union(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._complaint(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await problem(Request(scope), error)(scope, receive, send)

    def _complaint(self, scope: Scope) -> UnknownHost | CrossOrigin | None:
        host = header(scope, b"host")
        if host and not self.answers_to(name_of(host)):
            return UnknownHost(
                f"this service is not called {name_of(host)[:80]!r}: without keys it answers to addresses, localhost "
                "and the names in TWEEN_ALLOWED_HOSTS"
            )
        if scope["method"] not in SAFE and self._is_foreign(scope, host):
            return CrossOrigin(
                "a page of another origin asks for this; without keys it may if TWEEN_CORS_ORIGINS names that origin"
            )
        return None

    def answers_to(self, name: str) -> bool:
        """Whether a name, or an address, is the service's."""
        if name in self._hosts or ANY in self._hosts:
            return True
        with suppress(ValueError):
            ip_address(name)
            return True
        above = name
        while above:
            _, _, above = above.partition(".")
            if f"*.{above}" in self._hosts:
                return True
        return False

    def _is_foreign(self, scope: Scope, host: str) -> bool:
        origin = header(scope, b"origin")
        if origin in self._origins or ANY in self._origins:
            return False
        if site := header(scope, b"sec-fetch-site"):  # a browser's word, which no page can change
            return site not in ("same-origin", "none")
        scheme, _, authority = origin.partition("://")
        default = {"http": ":80", "https": ":443"}.get(scheme, "")
        return bool(origin) and authority.lower() != host.lower().removesuffix(default)


def name_of(host: str) -> str:
    """The name or address in a Host header, without its port: `[::1]:8000` is `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".").lower()
