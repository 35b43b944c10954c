"""Who may do what: keys at the door, limits for each name, and a line in the audit log for what was managed.

Installed only where there is a file of keys; without one everything is open. Whoever was let in is
`request.state.actor` from here on.
"""

from __future__ import annotations

import logging

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth.api_keys import ApiKey, ApiKeys
from app.api.auth.rate_limit import RateLimit
from app.api.auth.roles import Role
from app.api.auth.route_table import found_of
from app.api.http_server.middleware import header
from app.api.problems import problem, reference
from app.errors import Forbidden, LimitReached, NoKey

audit = logging.getLogger("tween.audit")


class Authorization:
    """Lets in whoever has a key for what he asks, as often as his name allows."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, limits: RateLimit) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        role = found_of(scope).right.role if scope["type"] == "http" else None
        if role is None:
            await self._app(scope, receive, send)
            return
        try:
            key = self._admitted(role, scope)
            limited = key.per_second is not None or key.per_day is not None
            told = await self._limits.admit(key) if limited else {}
        except (NoKey, Forbidden, LimitReached) as error:
            await _refusal(Request(scope), error)(scope, receive, send)
            return
        scope.setdefault("state", {})["actor"] = key.name
        if told or role == "manage":
            send = _telling(scope, send, told, key.name if role == "manage" else None)
        await self._app(scope, receive, send)

    def _admitted(self, role: Role, scope: Scope) -> ApiKey:
        """Whose key it is; raises `NoKey` and `Forbidden`."""
        kind, _, credentials = header(scope, b"authorization").partition(" ")
        given = credentials.strip() if kind.lower() == "bearer" else header(scope, b"x-api-key")
        if not given:
            raise NoKey("this call needs a key: send Authorization: Bearer KEY, or X-API-Key: KEY")
        key = self._keys.find(given)
        if key is None:
            raise NoKey("this key is not known, or no longer")
        if role == "manage" and key.role != "manage":
            audit.warning("%s %s %s: refused", key.name, scope["method"], _audited(scope))
            raise Forbidden(f"the key of {key.name!r} may predict; this call needs one that may manage")
        return key


def _telling(scope: Scope, send: Send, told: dict[str, str], manager: str | None) -> Send:
    """Adds headers to a reply, and writes down what a manager did."""
    headers = [(name.lower().encode(), value.encode()) for name, value in told.items()]

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
            if manager is not None:
                audit.info("%s %s %s: %d", manager, scope["method"], _audited(scope), message["status"])
        await send(message)

    return telling


def _audited(scope: Scope) -> str:
    """A path as the audit log shows it: without the name of a unit, which that very call may be to erase."""
    pattern = found_of(scope).pattern
    return pattern if "{unit" in pattern else reference(scope)


def _refusal(request: Request, error: NoKey | Forbidden | LimitReached) -> JSONResponse:
    reply = problem(request, error)
    if isinstance(error, LimitReached):
        reply.headers.update(error.headers)
    else:
        insufficient = isinstance(error, Forbidden)
        reply.headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"' if insufficient else "Bearer"
    return reply
