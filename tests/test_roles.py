"""Every route by every role, however its path is spelt: what needs more than a key has is never reached."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import zip_longest
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import Service, running
from fastapi import APIRouter, FastAPI
from hostile import spellings
from starlette.routing import Route
from test_access import BOSS, BOSS_ENTRY, ENTRY, SHOP, bearer

from app.api.auth import route_table
from app.api.auth.route_table import RouteTable
from app.main import ROUTERS
from app.models.bank import BankSpec

PAGE = Path(__file__).parent.parent / "docs" / "security.md"
RANKS = {"none": 0, "predict": 1, "manage": 2}
KEYS: dict[str, dict[str, str]] = {"none": {}, "predict": bearer(SHOP), "manage": bearer(BOSS)}
REFUSED_BY_THE_DOOR = {"about:blank", "urn:tween:no-key", "urn:tween:forbidden"}
"""Types of problems that are answered before any handler runs."""


def table() -> dict[tuple[str, str], str]:
    """Calls and the least role for each, as docs/security.md lists them."""
    rows = re.findall(r"^\| `?(none|predict|manage)`? \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {(method, path): role for role, calls in rows for method, path in re.findall(r"`(\w+) ([^`]+)`", calls)}


TABLE = table()


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("roles") / "keys.toml"
    path.write_text(ENTRY + BOSS_ENTRY)
    with running(spec, api_keys=path, redis_url=redis_url, redis_namespace="roles", memory_tier_mib=16) as made:
        yield made


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, str]:
        problem: dict[str, str] = json.loads(self.body)
        return problem

    @property
    def is_of_a_handler(self) -> bool:
        if self.status < 400:
            return True
        return bool(self.body) and self.problem["type"] not in REFUSED_BY_THE_DOOR


def ask(service: Service, method: str, path: str, role: str, body: object = None) -> Reply:
    """A request whose path reaches the wire as it stands here, which most clients would put right."""
    connection = HTTPConnection("127.0.0.1", service.client.base_url.port or 0, timeout=30)
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    content = None if body is None else json.dumps(body)
    with closing(connection):
        connection.request(method, path, content, {**KEYS[role], "Content-Type": "application/json"})
        reply = connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


def filled(template: str) -> str:
    return re.sub(r"\{\w+(:path)?\}", "none", template)


def is_allowed(method: str, spelling: str, role: str) -> bool:
    """Whether a spelling is one of another call that the role suffices for, such as that of a blend with an odd key."""
    parts = unquote(spelling.partition("?")[0].partition("#")[0]).split("/")
    for (one, template), needed in TABLE.items():
        pairs = list(zip_longest(template.split("/"), parts))
        same = all(name == part or (name and part and name[0] == "{") for name, part in pairs)
        if one == method and same and RANKS[needed] <= RANKS[role]:
            return True
    return False


def test_the_documented_table_is_what_the_service_has(service: Service) -> None:
    routes: RouteTable = service.app.state.routes
    assert {(method, pattern): role or "none" for method, pattern, role in routes.listed()} == TABLE
    assert {role for role in TABLE.values()} == set(RANKS)


@pytest.mark.parametrize("role", ["none", "predict"])
def test_no_spelling_reaches_what_needs_more(service: Service, role: str) -> None:
    tried = 0
    for (method, template), needed in TABLE.items():
        if RANKS[needed] <= RANKS[role]:
            continue
        path = filled(template)
        assert ask(service, method, path, role).status == (401 if role == "none" else 403), (method, path)
        for spelling in spellings(path):
            reply = ask(service, method, spelling, role)
            if not is_allowed(method, spelling, role):
                assert reply.status in (400, 401, 403, 404, 405), (method, spelling, reply.status)
                assert not reply.is_of_a_handler, (method, spelling, reply.body)
            tried += 1
    assert tried > 500


def test_no_method_reaches_what_needs_more(service: Service) -> None:
    """Methods that a path does not have are refused by name, and answer nothing of what its other methods would."""
    for (_, template), _ in TABLE.items():
        path = filled(template)
        allowed = {method for method, other in TABLE if other == template}
        for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
            for role in ("none", "predict"):
                needed = TABLE.get((method, template))
                if needed is not None and RANKS[needed] <= RANKS[role]:
                    continue
                reply = ask(service, method, path, role)
                assert not reply.is_of_a_handler, (method, path, role)
                is_mount = template.endswith("/{path}")  # which answers every method by itself
                is_open = "none" in {TABLE[other, template] for other in allowed}
                if needed is None and not is_mount and (role == "predict" or is_open):
                    assert reply.status == 405, (method, path, role)
                    assert set(reply.headers["allow"].split(", ")) == allowed, (method, path, role)


def test_a_key_that_suffices_is_let_in(service: Service) -> None:
    for (method, template), needed in TABLE.items():
        for role, rank in RANKS.items():
            if rank >= RANKS[needed]:
                status = ask(service, method, filled(template), role).status
                assert status not in (401, 403, 405), (method, template, role, status)


def test_a_path_with_control_characters_is_no_path(service: Service) -> None:
    for role in KEYS:
        for code in ("%00", "%0A", "%0D", "%1B", "%7F", "%C2%85", "%E2%80%A8", "%E2%80%A9"):
            for path in (f"/v1/bank{code}", f"/{code}v1/bank", f"/v1/aliases/a{code}b", f"/livez{code}", code):
                reply = ask(service, "GET", path if path[0] == "/" else f"/{path}", role)
                assert reply.status == 400, (path, role)
                assert reply.headers["content-type"] == "application/problem+json" and reply.headers["x-request-id"]
                assert reply.problem["detail"] == "a path has no control characters"


def test_what_is_not_there_is_the_same_for_every_key(service: Service) -> None:
    """Without a key nothing is told of what exists. With one, 404 says that there is no such route, which is public
    (/docs); 403 comes before a handler looks, so it is the same whether an alias or a sweep exists."""
    assert ask(service, "PUT", "/v1/aliases/known", "manage", body={"recipe": "angry@0.4"}).status == 201
    for method, path in (("GET", "/v1/none"), ("POST", "/v1/predict2"), ("DELETE", "/none"), ("GET", "/v1/sweepsx")):
        replies = [ask(service, method, path, role) for role in KEYS]
        assert [reply.status for reply in replies] == [401, 404, 404], path
        assert replies[1].problem == replies[2].problem
    for method in ("PUT", "DELETE"):
        known, unknown = (ask(service, method, f"/v1/aliases/{name}", "predict") for name in ("known", "none"))
        assert known.status == unknown.status == 403
        assert known.problem["detail"] == unknown.problem["detail"]


def test_a_route_without_a_role_cannot_be_mounted() -> None:
    router = APIRouter(prefix="/v1")

    @router.get("/secrets")
    async def secrets() -> str:
        return "told"

    with pytest.raises(TypeError, match=r"GET /v1/secrets has no role: mark secrets\(\) with @needs\(\.\.\.\)"):
        route_table.install(FastAPI(redoc_url=None), [*ROUTERS, router])
    with pytest.raises(TypeError, match="GET /plain, HEAD /plain has no role"):
        route_table.install(FastAPI(redoc_url=None, routes=[Route("/plain", lambda request: None)]), ROUTERS)


def test_a_route_that_is_added_behind_the_door_is_not_there(service: Service) -> None:
    @service.app.get("/late")
    async def late() -> str:
        return "told"

    for role in KEYS:
        assert ask(service, "GET", "/late", role).status == (401 if role == "none" else 404)
