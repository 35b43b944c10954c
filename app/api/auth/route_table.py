"""Which route answers a request, found once, before anything else is done with it.

Authorization, deadlines, metrics and traces go by the same find as the call of the handler itself: there is no second
reading of a path that a spelling could tell apart from the first. Literal paths are found by a dictionary and go before
patterns. A path with control characters or line separators is no path at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.auth.roles import Right, right_of

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
ELSEWHERE = "other"
"""The pattern of what no route answers: no such path, or an impossible one."""
KEY = "tween.found"
"""Where in a request's scope its `Found` is."""


@dataclass(frozen=True)
class Found:
    """What answers a request; `inside` is what the framework adds to the scope. Where `route` is None nothing does:
    `refusal` is the status, `detail` says more, `allow` names the path's methods."""

    route: BaseRoute | None
    right: Right
    pattern: str
    inside: Scope = field(default_factory=dict)
    refusal: int = 404
    detail: str | None = None
    allow: str = ""


# Whoever has a key may learn that there is no such route, which the documentation shows to all.
NOTHING = Found(None, Right("predict"), ELSEWHERE)
IMPOSSIBLE = Found(None, Right(None), ELSEWHERE, refusal=400, detail="a path has no control characters")


def found_of(scope: Scope) -> Found:
    """What answers a request."""
    found: Found = scope[KEY]
    return found


class RouteTable:
    """Every route of an application, with what it needs."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        """Raises `TypeError` for a route that has no role."""
        self._routes = [(route, _pattern(route), _right(route)) for route in routes]
        self._literal: dict[tuple[str, str], Found] = {}
        for route, pattern, right in self._routes:
            if isinstance(route, Route) and "{" not in pattern:
                for method in route.methods or ():
                    _, inside = route.matches({"type": "http", "method": method, "path": pattern})
                    self._literal.setdefault((method, pattern), Found(route, right, pattern, inside))

    def find(self, scope: Scope) -> Found:
        """What answers a request."""
        path = scope["path"]
        found = self._literal.get((scope["method"], path))
        if found is not None:
            return found
        if UNPRINTABLE.search(path):
            return IMPOSSIBLE
        others: list[tuple[BaseRoute, str, Right]] = []
        for route, pattern, right in self._routes:
            match, inside = route.matches(scope)
            if match is Match.FULL:
                return Found(route, right, pattern, inside)
            if match is Match.PARTIAL:
                others.append((route, pattern, right))
        return _another_method(others) if others else NOTHING

    def listed(self) -> Iterator[tuple[str, str, str | None]]:
        """Method, path's pattern and role of every route."""
        for route, pattern, right in self._routes:
            for method in _methods(route):
                yield method, pattern, right.role


def install(app: FastAPI, routers: Sequence[APIRouter]) -> RouteTable:
    """Mount routers, and let the application answer by what is found. To be called once all middleware is added; what
    is mounted later is never found. Raises `TypeError` for a route without a role."""
    app.router.routes.extend(route for router in routers for route in router.routes)
    routes = RouteTable(app.router.routes)
    app.router.middleware_stack = _calling(app.router.middleware_stack)  # type: ignore[assignment]  # narrower there
    stack = app.build_middleware_stack()

    async def finding(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[KEY] = routes.find(scope)
        await stack(scope, receive, send)

    app.middleware_stack = finding
    return routes


def _calling(router: ASGIApp) -> ASGIApp:
    """In the router's place, within all middleware: calls what was found."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await router(scope, receive, send)
            return
        found = found_of(scope)
        if found.route is None:
            raise HTTPException(found.refusal, found.detail, {"Allow": found.allow} if found.allow else None)
        scope.update(found.inside)
        await found.route.handle(scope, receive, send)

    return call


def _another_method(others: Sequence[tuple[BaseRoute, str, Right]]) -> Found:
    """The path is there, and another method was asked for: an open path tells so to all, others to every key."""
    _, pattern, _ = others[0]
    is_open = any(right.role is None for _, _, right in others)
    allow = ", ".join(sorted({method for route, _, _ in others for method in _methods(route)}))
    return Found(None, Right(None if is_open else "predict"), pattern, refusal=405, allow=allow)


def _methods(route: BaseRoute) -> list[str]:
    return sorted(getattr(route, "methods", None) or ["GET"])


def _pattern(route: BaseRoute) -> str:
    if not isinstance(route, Route | Mount):
        raise TypeError(f"{route!r} is no route that has a path and a role")
    return route.path if isinstance(route, Route) else f"{route.path}/{{path}}"


def _right(route: BaseRoute) -> Right:
    pattern = _pattern(route)
    endpoint = route.endpoint if isinstance(route, Route) else route.app  # type: ignore[attr-defined]
    right = right_of(endpoint, pattern)
    if right is None:
        name = getattr(endpoint, "__name__", "its function")
        calls = ", ".join(f"{method} {pattern}" for method in _methods(route))
        raise TypeError(f"{calls} has no role: mark {name}() with @needs(...)")
    return right
