"""Roles: what a key may do, and the mark on each route that says which role it needs.

A route without a mark cannot be mounted (`route_table.py`), so nothing is open because somebody forgot it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Role = Literal["predict", "manage"]
"""What a key may do; `manage` includes `predict`."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Right:
    """What a route needs. `role` None needs no key; `only_computes`: it changes nothing, though it may be a POST."""

    role: Role | None
    only_computes: bool = False


FRAMEWORK = {
    path: Right(None) for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/static-offline-docs/{path}")
}
"""Routes by the framework itself, which cannot be marked: the specification and the pages that show it."""

_marks: dict[Callable[..., Any], Right] = {}


def needs(role: Role | None, only_computes: bool = False) -> Callable[[Endpoint], Endpoint]:
    """Marks a route's function with the least role that a key must have for it; None: it needs no key."""

    def mark(endpoint: Endpoint) -> Endpoint:
        _marks[endpoint] = Right(role, only_computes)
        return endpoint

    return mark


def right_of(endpoint: Callable[..., Any], path: str) -> Right | None:
    """What a route needs; None if nothing says so."""
    return _marks.get(endpoint) or FRAMEWORK.get(path)
