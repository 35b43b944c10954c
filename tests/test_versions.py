"""Versions over HTTP: `ETag`, `?version=`, `If-Match` and `If-None-Match`, the same on every route for changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from conftest import Service, running
from test_live_tables import table_at

from app.models.bank import Bank, BankSpec

ALIAS, TABLE, EXPERIMENT = "/v1/aliases/prod", "/v1/segments/angry", "/v1/experiments/tone"
ARMS = [{"name": "mild", "recipe": "angry@0.1", "share": 0.5}, {"name": "firm", "recipe": "angry@0.9", "share": 0.5}]


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str) -> Iterator[Service]:
    with running(spec, redis_url=redis_url, redis_namespace="versions", memory_tier_mib=16) as made:
        yield made


@pytest.fixture
def client(service: Service) -> httpx.Client:
    """A client of a service with nothing that has a version."""
    for path in (ALIAS, TABLE, EXPERIMENT):
        service.client.post(f"{path}/status", json={"status": "stopped"})
        service.client.delete(path)
    return service.client


@pytest.fixture(params=[ALIAS, TABLE, EXPERIMENT])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def body(path: str, bank: Bank) -> Callable[[int], dict[str, Any]]:
    """By number, bodies that differ, for PUT."""

    def made(number: int) -> dict[str, Any]:
        if path == ALIAS:
            return {"recipe": f"angry@0.{number}"}
        if path == TABLE:
            return table_at(number / 10, bank)
        return {"arms": ARMS, "control": "mild", "coverage": number / 10}

    return made


Body = Callable[[int], dict[str, Any]]


def problem(reply: httpx.Response, status: int) -> tuple[str, str]:
    """Type and sentence of a refusal."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json" and "etag" not in reply.headers
    return reply.json()["type"], reply.json()["detail"]


def number(reply: httpx.Response) -> int:
    """The version that a reply shows, which its body agrees with."""
    assert reply.status_code in (200, 201), reply.text
    shown = reply.json()
    version = shown["version"] if "version" in shown else shown["live"]["version"]
    assert reply.headers["etag"] == f'"{version}"'
    return int(version)


def test_every_reply_about_one_of_them_has_its_version_as_etag(client: httpx.Client, path: str, body: Body) -> None:
    made = client.put(path, json=body(1))
    assert made.status_code == 201
    first = number(made)
    assert number(client.get(path)) == first
    assert number(client.put(path, json=body(2))) == first + 1
    assert number(client.get(path)) == first + 1
    gone = client.delete(path)
    assert number(gone) == first + 2 and "etag" not in client.get(path).headers


def test_a_change_may_be_bound_to_an_etag(client: httpx.Client, path: str, body: Body) -> None:
    first = number(client.put(path, json=body(1)))
    etag = f'"{first}"'
    second = number(client.put(path, json=body(2), headers={"If-Match": etag}))
    kind, words = problem(client.put(path, json=body(3), headers={"If-Match": etag}), 412)
    assert kind == "urn:tween:precondition-failed"
    assert f"is at version {second}, and If-Match asks for another version; look at it and decide again" in words
    problem(client.delete(path, headers={"If-Match": etag}), 412)
    problem(client.put(path, json=body(3), headers={"If-Match": f'W/"{second}"'}), 412)  # it is compared strongly
    several = [("If-Match", f'"abc", {etag}'), ("If-Match", f'"{second}"')]
    third = number(client.put(path, json=body(3), headers=httpx.Headers(several)))
    assert number(client.put(path, json=body(4), headers={"If-Match": "*"})) == third + 1
    assert number(client.delete(path, headers={"If-Match": f'"{third + 1}"'})) == third + 2
    assert (
        "does not exist, and If-Match: *" in problem(client.put(path, json=body(1), headers={"If-Match": "*"}), 412)[1]
    )


def test_a_version_in_the_query_that_does_not_fit_stays_a_409(client: httpx.Client, path: str, body: Body) -> None:
    assert (
        "does not exist, so it is not at version 77" in problem(client.put(f"{path}?version=77", json=body(1)), 409)[1]
    )
    first = number(client.put(f"{path}?version=0", json=body(1)))
    assert f"is at version {first}, not 0" in problem(client.put(f"{path}?version=0", json=body(2)), 409)[1]
    assert f"is at version {first}, not 77" in problem(client.delete(f"{path}?version=77"), 409)[1]
    assert number(client.delete(f"{path}?version={first}")) == first + 1


def test_if_none_match_makes_what_does_not_exist_and_nothing_else(client: httpx.Client, path: str, body: Body) -> None:
    new = {"If-None-Match": "*"}
    made = client.put(path, json=body(1), headers=new)
    assert made.status_code == 201
    _, words = problem(client.put(path, json=body(2), headers=new), 412)
    assert f"is at version {number(made)}, and If-None-Match: * asks for the contrary" in words
    assert number(client.get(path)) == number(made)
    client.delete(path)
    assert client.put(f"{path}?version=0", json=body(2), headers=new).status_code == 201, "both say the same"


@pytest.mark.parametrize(
    ("query", "headers", "words"),
    [
        ("?version=2", {"If-Match": '"3"'}, "version 2 contradicts If-Match"),
        ("?version=0", {"If-Match": "*"}, "version 0 contradicts If-Match"),
        ("?version=2", {"If-None-Match": "*"}, "version 2 contradicts If-None-Match"),
        ("", {"If-Match": '"3"', "If-None-Match": "*"}, "If-Match and If-None-Match contradict each other"),
        ("", {"If-Match": "*", "If-None-Match": "*"}, "If-Match and If-None-Match contradict each other"),
        ("", {"If-None-Match": '"3"'}, "If-None-Match is `*` here"),
        ("", {"If-Match": "3"}, "with quotation marks"),
        ("", {"If-Match": ""}, "with quotation marks"),
        ("", {"If-Match": '"3", secret'}, "with quotation marks"),
    ],
)
def test_what_contradicts_itself_or_cannot_be_read_is_one_sentence(
    client: httpx.Client, path: str, body: Body, query: str, headers: dict[str, str], words: str
) -> None:
    for reply in (
        client.put(path + query, json=body(1), headers=headers),
        client.delete(path + query, headers=headers),
    ):
        kind, sentence = problem(reply, 422)
        assert kind == "urn:tween:bad-precondition" and words in sentence and "secret" not in sentence


def test_a_version_in_the_body_is_that_of_the_query(client: httpx.Client) -> None:
    first = number(client.put(ALIAS, json={"recipe": "base", "version": 0}))
    contrary = client.put(f"{ALIAS}?version={first}", json={"recipe": "angry", "version": first + 1})
    assert f"version is {first} in the query and {first + 1} in the body" in problem(contrary, 422)[1]
    contrary = client.put(ALIAS, json={"recipe": "angry", "version": 77}, headers={"If-Match": f'"{first}"'})
    assert "version 77 contradicts If-Match" in problem(contrary, 422)[1]
    agreed = client.put(f"{ALIAS}?version={first}", json={"recipe": "angry", "version": first})
    assert number(agreed) == first + 1


def test_steps_of_aliases_and_experiments_take_versions_alike(client: httpx.Client) -> None:
    first = number(client.put(ALIAS, json={"recipe": "base"}))
    second = number(client.put(ALIAS, json={"recipe": "angry"}))
    url = f"{ALIAS}/rollback"
    problem(client.post(url, headers={"If-Match": f'"{first}"'}), 412)
    problem(client.post(f"{url}?version={first}"), 409)
    assert number(client.post(url, headers={"If-Match": f'"{second}"'})) == second + 1

    made = number(client.put(EXPERIMENT, json={"arms": ARMS, "control": "mild"}))
    url, going = f"{EXPERIMENT}/status", {"status": "running"}
    problem(client.post(url, json=going, headers={"If-Match": '"77"'}), 412)
    problem(client.post(f"{url}?version=77", json=going), 409)
    problem(client.post(url, json={**going, "version": 77}), 409)
    started = number(client.post(url, json=going, headers={"If-Match": f'"{made}"'}))
    promoted = {"arm": "firm", "alias": "prod", "force": True}
    for guarded in (False, True):
        asked = {**promoted, "guarded": guarded}
        problem(client.post(f"{EXPERIMENT}/promote", json=asked, headers={"If-Match": f'"{made}"'}), 412)
        problem(client.post(f"{EXPERIMENT}/promote?version={made}", json=asked), 409)
    assert client.post(f"{EXPERIMENT}/promote?version={started}", json=promoted).status_code == 200
    stopped = number(client.post(url, json={"status": "stopped"}))
    url = f"{EXPERIMENT}/archive"
    problem(client.post(url, headers={"If-Match": f'"{made}"'}), 412)
    assert number(client.post(url, headers={"If-Match": f'"{stopped}"'})) == stopped + 1


def test_whoever_acts_is_named_alike(client: httpx.Client, path: str, body: Body) -> None:
    def by(reply: httpx.Response) -> str | None:
        shown = reply.json()
        name: str | None = shown["by"] if "by" in shown else shown["live"]["by"]
        return name

    assert by(client.put(path, json=body(1), headers={"X-Tween-Actor": "ada"})) == "ada"
    assert by(client.put(path, json=body(2), headers={"From": "bob@example.com"})) == "bob@example.com"
    assert by(client.put(path, json=body(3), headers={"From": "bob@example.com", "X-Tween-Actor": "ada"})) == "ada"


def test_the_specification_declares_the_headers(service: Service) -> None:
    paths = service.app.openapi()["paths"]
    changes = {
        ("/v1/aliases/{name}", "put"),
        ("/v1/aliases/{name}", "delete"),
        ("/v1/aliases/{name}/rollback", "post"),
        ("/v1/segments/{variant}", "put"),
        ("/v1/segments/{variant}", "delete"),
        ("/v1/experiments/{name}", "put"),
        ("/v1/experiments/{name}", "delete"),
        ("/v1/experiments/{name}/status", "post"),
        ("/v1/experiments/{name}/archive", "post"),
        ("/v1/experiments/{name}/promote", "post"),
    }
    for route, method in changes:
        operation = paths[route][method]
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {"version", "If-Match", "If-None-Match", "X-Tween-Actor", "From"} <= names, (route, method)
        assert {"409", "412", "422"} <= set(operation["responses"])
    tagged = changes - {("/v1/experiments/{name}/promote", "post")}
    tagged |= {(route, "get") for route, method in changes if method == "put"}
    for route, method in tagged:
        replies = paths[route][method]["responses"]
        for status in {"200", "201"} & set(replies):
            assert "ETag" in replies[status]["headers"], (route, method, status)
            assert replies[status]["content"]["application/json"]["schema"], (route, method, status)
