"""Promotion over HTTP: an arm behind an alias at once, or step by step, with guardrails, pods that die, and people who
intervene."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Service, running
from pydantic import ValidationError
from redis import Redis
from servers import until
from test_experiments import detail, get, put, step
from test_meetings import Book, predict

from app.experiments import driving
from app.experiments.rollout import Plan
from app.models.bank import BankSpec

UNITS = [f"customer-{i}" for i in range(60)]
OLD, NEW = "polite@0.5", "angry@0.4"


class Guard:
    """Guardrails that do what they are told: fail with these sentences, or have no answer."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.asked: set[str] = set()
        self.is_away = False

    async def __call__(self, name: str) -> list[str]:
        self.asked.add(name)
        if self.is_away:
            raise ConnectionError("no report")
        return self.failures


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(driving, "LEASE_SECONDS", 0.5)


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def pods(serve: Callable[..., Service], spec: BankSpec, redis: Redis, guard: Guard) -> list[Service]:
    """Two pods; `@prod` points at the old recipe, and an experiment has an arm with the new one."""
    return [prepared(serve(spec), guard) for _ in range(2)]


def prepared(service: Service, guard: Guard) -> Service:
    service.app.state.rollouts.guardrails = guard
    if service.client.get("/v1/aliases/prod").status_code == 404:
        service.client.put("/v1/aliases/prod", json={"recipe": OLD})
        put(service.client, status="running", metrics=[{"name": "solved", "role": "guardrail"}])
    return service


def promote(client: httpx.Client, plan: dict[str, Any] | None = None, **more: Any) -> httpx.Response:
    """By a plan; without any, at once."""
    body = {"arm": "firm", "alias": "prod", "guarded": plan is not None, **(plan or {}), **more}
    return client.post("/v1/experiments/tone/promote", json=body, headers={"X-Tween-Actor": "ada"})


def rollout(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = get(client, "rollout.prod").get("rollout", {})
    return found


def alias(client: httpx.Client) -> str:
    return str(client.get("/v1/aliases/prod").json()["recipe"])


def answers(client: httpx.Client, recipe: str | None = "@prod") -> dict[str, str]:
    reply = predict(client, recipe=recipe, texts=["late order"] * len(UNITS), unit=UNITS)
    recipes = reply["recipe"]
    return dict(zip(UNITS, recipes if isinstance(recipes, list) else [recipes] * len(UNITS), strict=True))


SLOWLY = {"steps": [0.05, 0.25, 0.5, 1], "step_seconds": 3600}
HALF = {"steps": [0.5, 1], "step_seconds": 3600}


# -- at once -------------------------------------------------------------------------------------------


def test_an_arm_is_promoted_at_once(pods: list[Service]) -> None:
    reply = promote(pods[0].client)
    assert reply.status_code == 200 and reply.json() == {"alias": "prod", "recipe": NEW, "rollout": None}
    for pod in pods:
        until(lambda pod=pod: set(answers(pod.client).values()) == {NEW})
    assert promote(pods[0].client, alias="fresh").json()["alias"] == "fresh"
    trail = pods[0].client.get("/v1/experiments/tone/audit").json()["audit"]
    assert (trail[1]["action"], trail[1]["by"]) == ("promoted arm 'firm' to @prod", "ada")


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("tone", {"arm": "none", "alias": "prod"}, 404, "has no arm 'none'; arms: mild, firm"),
        ("none", {"arm": "firm", "alias": "prod"}, 404, "no experiment 'none'"),
        ("tone", {"arm": "firm", "alias": "a b"}, 422, "an alias's name"),
        ("tone", {"arm": "firm", "alias": "none", "guarded": True}, 404, "no alias 'none'"),
        ("tone", {"arm": "firm", "alias": "prod", "guarded": True, "steps": [0.7, 1]}, 422, "steps rise"),
        ("tone", {"arm": "firm", "alias": "prod", "guarded": True, "step_seconds": 0}, 422, "greater than 0"),
        ("tone", {"arm": "firm"}, 422, "'alias' is missing"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    pods: list[Service], path: str, body: dict[str, Any], status: int, sentence: str
) -> None:
    assert sentence in detail(pods[0].client.post(f"/v1/experiments/{path}/promote", json=body), status)


@pytest.mark.parametrize("steps", [(1.0,), (0.5,), (0.5, 0.25, 1.0), (0.25, 0.25, 1.0), (0.6, 1.0), (0.0, 1.0)])
def test_steps_rise_to_half_and_then_to_everybody(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Plan(steps=steps)


# -- step by step --------------------------------------------------------------------------------------


def test_a_rollout_grows_moves_nobody_back_and_ends_with_the_alias(pods: list[Service], guard: Guard) -> None:
    reply = promote(pods[0].client, plan={"steps": [0.05, 0.25, 0.5, 1], "step_seconds": 0.3})
    assert reply.status_code == 202 and reply.json() == {"alias": "prod", "recipe": NEW, "rollout": "rollout.prod"}
    seen: list[set[str]] = []

    def is_done() -> bool:
        for pod in pods:
            found = answers(pod.client)
            assert set(found.values()) <= {OLD, NEW}
            seen.append({unit for unit, recipe in found.items() if recipe == NEW})
        return rollout(pods[1].client)["outcome"] == "done"

    until(is_done)
    for i in (0, 1):  # each pod for itself: they hear of a step one after the other
        for before, after in zip(seen[i::2], seen[i + 2 :: 2], strict=False):
            assert before <= after
    assert len({len(units) for units in seen}) >= 3
    until(lambda: alias(pods[0].client) == alias(pods[1].client) == NEW)
    assert guard.asked == {"rollout.prod"}
    trail = pods[0].client.get("/v1/experiments/rollout.prod/audit").json()["audit"]
    assert [entry["action"] for entry in reversed(trail)] == [
        f"began to roll out {NEW}",
        "went on to 25%",
        "went on to 50%",
        "done",
    ]
    assert get(pods[0].client, "rollout.prod")["status"] == "stopped"
    promote(pods[0].client, plan=HALF, arm="mild")
    again = get(pods[0].client, "rollout.prod")
    assert (again["status"], again["phase"], again["rollout"]["new"]) == ("running", 2, "base")
    assert again["definition"]["metrics"][0]["name"] == "solved"


def test_half_of_those_who_are_counted_are_the_control(pods: list[Service]) -> None:
    book = pods[0].app.state.experiments.ledger = Book()
    promote(pods[0].client, plan=HALF)
    found = answers(pods[0].client)
    assert {(e.unit, e.experiment, e.arm) for e in book.exposures} == {
        (unit, "rollout.prod", "new" if recipe == NEW else "old") for unit, recipe in found.items()
    }
    assert 15 < sum(recipe == NEW for recipe in found.values()) < 45
    assert answers(pods[0].client, None) == found, "who names no recipe means @prod"
    assert predict(pods[0].client, recipe="@prod")["recipe"] == OLD, "without a unit"
    assert predict(pods[0].client, recipe=NEW, unit=UNITS[0])["recipe"] == NEW


def test_a_guardrail_that_fails_rolls_back(pods: list[Service], guard: Guard) -> None:
    promote(pods[0].client, plan=HALF)
    until(lambda: NEW in answers(pods[1].client).values())
    guard.failures = ["solved: 4 points worse than control"]
    until(lambda: rollout(pods[0].client)["outcome"] == "rolled back")
    assert rollout(pods[0].client)["why"] == ["solved: 4 points worse than control"]
    for pod in pods:
        until(lambda pod=pod: set(answers(pod.client).values()) == {OLD})
        assert alias(pod.client) == OLD
    guard.failures = []
    assert promote(pods[0].client, plan=HALF).status_code == 202, "and it may be tried again"


def test_outcomes_that_are_worse_roll_back_what_goes_well_stays(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis, tmp_path: Path
) -> None:
    client = serve(spec, spool=tmp_path).client
    client.put("/v1/aliases/prod", json={"recipe": OLD})
    put(client, status="running", metrics=[{"name": "solved", "role": "guardrail"}])
    promote(client, plan=HALF)
    units = [f"customer-{i}" for i in range(400)]
    recipes = predict(client, recipe="@prod", texts=["late order"] * len(units), unit=units)["recipe"]

    def post(solved: Callable[[int, str], bool]) -> None:
        given = enumerate(zip(units, recipes, strict=True))
        outcomes = [{"unit": unit, "metric": "solved", "value": int(solved(i, recipe))} for i, (unit, recipe) in given]
        assert client.post("/v1/experiments/rollout.prod/outcomes", json=outcomes).json()["accepted"] == len(units)

    def counted() -> list[float | None]:
        metric = client.get("/v1/experiments/rollout.prod/report").json()["metrics"][0]
        return [arm["mean"] for arm in metric["arms"]]

    post(lambda i, recipe: i % 5 == 0)  # as seldom in both arms
    until(lambda: all(counted()))
    time.sleep(3 * driving.LOOK_SECONDS)
    assert rollout(client)["outcome"] == "going"
    post(lambda i, recipe: recipe == OLD)  # from now on by nobody who meets the new recipe
    until(lambda: rollout(client)["outcome"] == "rolled back")
    assert "solved" in rollout(client)["why"][0]
    until(lambda: set(answers(client).values()) == {OLD})


def test_without_a_report_no_step_is_taken(pods: list[Service], guard: Guard) -> None:
    guard.is_away = True
    promote(pods[0].client, plan={"steps": [0.25, 0.5, 1], "step_seconds": 0.05})
    until(lambda: guard.asked)
    asked = guard.asked
    for _ in range(3):
        asked.clear()
        until(lambda: asked)
    assert rollout(pods[0].client)["step"] == 0
    guard.is_away = False
    until(lambda: rollout(pods[0].client)["outcome"] == "done")


def test_another_pod_goes_on_when_one_dies(
    spec: BankSpec, redis: Redis, redis_url: str, serve: Callable[..., Service], guard: Guard
) -> None:
    with ExitStack() as first:
        options = {"redis_url": redis_url, "memory_tier_mib": 16}
        one = prepared(first.enter_context(running(spec, **options)), guard)
        promote(one.client, plan={"steps": [0.25, 0.5, 1], "step_seconds": 1})
        until(lambda: redis.exists("tween:experiments:lease:rollout.prod"))
        holder = redis.get("tween:experiments:lease:rollout.prod")
        two = prepared(serve(spec), guard)
    until(lambda: rollout(two.client)["outcome"] == "done")
    assert alias(two.client) == NEW
    assert redis.get("tween:experiments:lease:rollout.prod") not in (None, holder)


def test_whoever_moves_the_alias_meanwhile_has_the_last_word(pods: list[Service]) -> None:
    promote(pods[0].client, plan=HALF)
    pods[1].client.put("/v1/aliases/prod", json={"recipe": "polite@0.9"})
    assert set(answers(pods[1].client).values()) == {"polite@0.9"}, "at once"
    until(lambda: rollout(pods[0].client)["outcome"] == "cancelled")
    assert rollout(pods[0].client)["why"] == ["@prod was moved to polite@0.9"]
    assert alias(pods[0].client) == "polite@0.9"


def test_people_pause_resume_and_stop_a_rollout(pods: list[Service]) -> None:
    client = pods[0].client
    promote(client, plan=HALF)
    since = rollout(client)["since"]
    assert "being rolled out to 'angry@0.4' already" in detail(promote(client, plan=SLOWLY), 409)
    assert "is a rollout itself" in detail(
        client.post("/v1/experiments/rollout.prod/promote", json={"arm": "new", "alias": "x"}), 409
    )
    step(client, "paused", "rollout.prod")
    assert set(answers(client).values()) == {OLD}
    assert step(client, "running", "rollout.prod").json()["rollout"]["since"] > since
    assert NEW in answers(client).values()
    stopped = client.post(
        "/v1/experiments/rollout.prod/status", json={"status": "stopped"}, headers={"X-Tween-Actor": "bob"}
    )
    assert stopped.json()["rollout"]["outcome"] == "cancelled" and stopped.json()["rollout"]["why"] == [
        "stopped by bob"
    ]
    assert set(answers(client).values()) == {OLD} and alias(client) == OLD
    promote(client)
    assert "points at 'angry@0.4' already" in detail(promote(client, plan=SLOWLY), 409)
