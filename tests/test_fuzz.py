"""No input gives a 500: what a specification allows and forbids, made by schemathesis, and a list made by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Service, running
from hostile import ARMS, CANARY, SOUND, Hostile, requests
from redis import Redis

from app.models.bank import BankSpec

EXAMPLES = int(os.environ.get("TWEEN_FUZZ_EXAMPLES", "5"))


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str) -> Iterator[Service]:
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    with running(spec, redis_url=redis_url, memory_tier_mib=16, sweeps_waiting=0, prediction_cache=False) as service:
        put = service.client.put("/v1/experiments/tone", json={"arms": ARMS, "control": "mild"})
        assert put.status_code == 201
        yield service


def complaints(reply: httpx.Response) -> Iterator[str]:
    """What is wrong with a reply to something hostile."""
    if reply.status_code >= 500:
        yield f"{reply.status_code}: {reply.text[:200]}"
    if reply.status_code < 400:
        return
    if reply.headers.get("content-type") != "application/problem+json":
        yield f"{reply.status_code} is {reply.headers.get('content-type')}"
        return
    problem = reply.json()
    if problem["status"] != reply.status_code:
        yield f"the body says {problem['status']}"
    if not problem["detail"] or "\n" in problem["detail"] or len(problem["detail"]) > 500:
        yield f"that is not one sentence: {problem['detail'][:600]!r}"
    if CANARY in reply.text.replace(problem["instance"], ""):
        yield f"the caller's text is in the refusal: {problem['detail'][:600]!r}"


def test_nothing_on_the_hostile_list_gives_a_500_and_no_refusal_shows_what_was_sent(
    service: Service, spec: BankSpec, redis_url: str
) -> None:
    client = service.client
    specification = client.get("/openapi.json").json()
    with_body = {
        f"{method.upper()} {path}"
        for path, operations in specification["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    }
    assert with_body == set(SOUND), "every operation with a body has one to start from"

    found: dict[str, str] = {}
    sent = 0
    for hostile in requests(specification):
        sent += 1
        for complaint in complaints(send(client, hostile)):
            found.setdefault(f"{hostile.method} {hostile.target[:60]}, {hostile.why}", complaint)
    assert not found, "\n".join(f"{request}\n    {complaint}" for request, complaint in list(found.items())[:20])
    assert sent > 5_000

    # What was accepted can be read, here and by a pod that starts now.
    with running(spec, redis_url=redis_url, memory_tier_mib=16) as other:
        for what in ("experiments", "aliases"):
            here, there = (pod.client.get(f"/v1/{what}").json()[what] for pod in (service, other))
            assert [(one["name"], one["version"]) for one in here] == [(one["name"], one["version"]) for one in there]


def send(client: httpx.Client, hostile: Hostile) -> httpx.Response:
    """As the bytes are, without what a client would put right."""
    target, _, query = hostile.target.partition("?")
    url = client.base_url.copy_with(raw_path=(target + ("?" + query if query else "")).encode("latin-1"))
    return client.request(hostile.method, url, content=hostile.body, headers=hostile.headers)


def test_replies_are_as_the_specification_says(service: Service, tmp_path: Path) -> None:
    """Examples, values at every border and beyond, and requests drawn at random with a fixed seed."""
    tool = Path(sys.executable).with_name("st")
    rules = Path(__file__).parent / "fuzz" / "schemathesis.toml"
    command = [
        tool,
        f"--config-file={rules}",
        "run",
        f"{service.client.base_url}/openapi.json",
        "--phases=examples,coverage,fuzzing",
    ]
    command += ["--checks=all", f"--max-examples={EXAMPLES}", "--seed=1", "--generation-deterministic", "--no-color"]
    # What a recipe may be, no schema can say: a sound one names variants that are there.
    command += ["--exclude-checks=positive_data_acceptance"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
