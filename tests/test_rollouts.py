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

from app.cluster import leader_loop
from app.errors import RedisUnavailable
from app.experiments.events.event import Exposure
from app.experiments.events.event_ledger import EventLedger
from app.experiments.rollout import Evidence, RolloutPlan
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

UNITS = [f"customer-{i}" for i in range(60)]
OLD, NEW = "polite@0.5", "angry@0.4"


class Guard:
    """A judge who says what it is told: all is well after units enough, or these guardrails fail, or no answer."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.mismatch: str | None = None
        self.against: list[str] = []
        self.asked: set[str] = set()
        self.is_away = False
        self.closes = 100
        """Units of an arm whose window has closed at each time it is asked."""
        self.closed = 0

    async def evidence(self, name: str) -> Evidence:
        self.asked.add(name)
        if self.is_away:
            raise RedisUnavailable("no report")
        self.closed += self.closes
        return Evidence(self.failures, self.closed, self.mismatch)

    async def objections(self, name: str, arm: str) -> list[str]:
        if self.is_away:
            raise RedisUnavailable("no report")
        return self.against


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_loop, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(leader_loop, "LEASE_SECONDS", 0.5)


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def pods(serve: Callable[..., Service], spec: BankSpec, redis: Redis, guard: Guard) -> list[Service]:
    """Two pods; `@prod` points at the old recipe, and an experiment has an arm with the new one."""
    return [prepared(serve(spec), guard) for _ in range(2)]


def prepared(service: Service, guard: Guard) -> Service:
    service.app.state.rollouts.judge = guard
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
        (
            "tone",
            {"arm": "firm", "alias": "prod", "guarded": True, "step_units": 99},
            422,
            "greater than or equal to 100",
        ),
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
        RolloutPlan(steps=steps)


GUARDRAIL = {"name": "solved", "role": "guardrail"}
LEDGERS: dict[httpx.Client, EventLedger] = {}
"""Of the pods that clients talk to."""


@pytest.fixture
def client(serve: Callable[..., Service], spec: BankSpec, redis: Redis, tmp_path: Path) -> httpx.Client:
    """A pod that judges by its own ledger; `@prod` points at the old recipe."""
    service = serve(spec, spool=tmp_path)
    service.client.put("/v1/aliases/prod", json={"recipe": OLD})
    LEDGERS[service.client] = service.app.state.ledger
    return service.client


def lived(client: httpx.Client, name: str, units: dict[str, str], solved: Callable[[str], bool], hours: float) -> None:
    """Have units meet these arms so many hours ago, and do what they did then; returns once all is counted."""
    at, phase = time.time() - 3600 * hours, get(client, name)["phase"]
    for unit, arm in units.items():
        LEDGERS[client].expose(Exposure(f"{name}-{unit}", name, phase, arm, unit, at, 0.5))
    outcomes = [{"unit": unit, "metric": "solved", "id": unit, "at": at + 1} for unit in units if solved(unit)]
    if outcomes:
        reply = client.post(f"/v1/experiments/{name}/outcomes", json=outcomes)
        assert reply.json()["accepted"] == len(outcomes)

    def counted() -> tuple[int, float]:
        report = client.get(f"/v1/experiments/{name}/report").json()
        means = [(arm["units"], arm["mean"] or 0) for arm in report["metrics"][0]["arms"]]
        return sum(arm["units"] for arm in report["arms"]), round(sum(n * mean for n, mean in means))

    until(lambda: counted() == (len(units), len(outcomes)))


def split(arms: tuple[str, str], first: int, second: int, prefix: str = "u") -> dict[str, str]:
    return {f"{prefix}-{arm}-{i}": arm for arm, count in zip(arms, (first, second), strict=True) for i in range(count)}


# -- where the report says no --------------------------------------------------------------------------


def test_an_arm_whose_guardrail_fails_is_promoted_by_force_alone(client: httpx.Client) -> None:
    put(client, status="running", metrics=[GUARDRAIL])
    lived(client, "tone", split(("mild", "firm"), 150, 150), lambda unit: "mild" in unit, hours=0)
    for body in ({}, {"plan": HALF}):
        said = detail(promote(client, **body), 409)
        assert "speaks against arm 'firm': Guardrail solved fails: firm is worse than mild by " in said
        assert "'force': true" in said and alias(client) == OLD
    assert promote(client, arm="mild").status_code == 200, "nothing speaks against control"
    assert promote(client, force=True).status_code == 200 and alias(client) == NEW
    (entry, *_) = client.get("/v1/experiments/tone/audit").json()["audit"]
    assert entry["action"].startswith("promoted arm 'firm' to @prod by force against: Guardrail solved fails: ")
    assert entry["by"] == "ada"


def test_an_arm_that_loses_or_is_not_split_as_configured_is_not_promoted(client: httpx.Client) -> None:
    put(client, status="running", metrics=[{"name": "solved", "role": "primary"}])
    lived(client, "tone", split(("mild", "firm"), 150, 150), lambda unit: "mild" in unit, hours=0)
    assert "firm is worse than mild by" in detail(promote(client), 409)
    put(client, status="running", metrics=[{"name": "solved", "role": "primary"}], name="tones")
    lived(client, "tones", split(("mild", "firm"), 150, 50), lambda unit: unit.endswith("0"), hours=0)
    reply = client.post("/v1/experiments/tones/promote", json={"arm": "firm", "alias": "prod"})
    assert "Sample-ratio mismatch" in detail(reply, 409)


def test_without_a_report_force_alone_promotes(pods: list[Service], guard: Guard) -> None:
    guard.is_away = True
    assert "no report" in detail(promote(pods[0].client), 503)
    assert promote(pods[0].client, force=True).status_code == 200
    (entry, *_) = pods[0].client.get("/v1/experiments/tone/audit").json()["audit"]
    assert entry["action"] == "promoted arm 'firm' to @prod by force against: the report could not be had: no report"


def test_a_rollout_that_nothing_would_guard_is_refused(client: httpx.Client) -> None:
    put(client, status="running", metrics=[{"name": "solved", "role": "primary"}])
    said = detail(promote(client, plan=HALF), 409)
    assert "'tone' has no guardrail metric" in said and "or promote the arm without 'guarded'" in said
    assert client.get("/v1/experiments/rollout.prod").status_code == 404


# -- what a step needs ---------------------------------------------------------------------------------


QUICK = {"steps": [0.25, 0.5, 1], "step_seconds": 0.05}


def waits_for(client: httpx.Client) -> list[str]:
    found: list[str] = get(client, "rollout.prod")["waits_for"]
    return found


def test_without_traffic_no_step_is_taken_and_the_status_says_why(client: httpx.Client) -> None:
    put(client, status="running", metrics=[GUARDRAIL])
    promote(client, plan=QUICK)
    time.sleep(0.3)  # six steps' time
    assert rollout(client)["step"] == 0 and alias(client) == OLD
    assert waits_for(client) == [
        "0 of 100 units of each arm have closed their window since this step began",
        "no outcome of solved has come to rollout.prod",
    ]
    step(client, "paused", "rollout.prod")
    assert waits_for(client) == ["it is paused"]


def test_each_step_needs_units_of_its_own_whose_window_has_closed(client: httpx.Client) -> None:
    put(client, status="running", window=600, metrics=[GUARDRAIL])
    promote(client, plan=QUICK)
    young = split(("old", "new"), 150, 150)
    lived(client, "rollout.prod", young, lambda unit: unit.endswith("0"), hours=0)
    assert waits_for(client) == ["0 of 100 units of each arm have closed their window since this step began"]
    assert rollout(client)["step"] == 0


def test_units_enough_take_one_step_and_more_of_them_the_next(client: httpx.Client) -> None:
    put(client, status="running", window=600, metrics=[GUARDRAIL])
    promote(client, plan=QUICK)
    first = split(("old", "new"), 120, 130)
    lived(client, "rollout.prod", first, lambda unit: unit.endswith("0"), hours=3)
    until(lambda: rollout(client)["step"] == 1)
    assert rollout(client)["closed"] == 120
    time.sleep(0.2)
    assert waits_for(client) == ["0 of 100 units of each arm have closed their window since this step began"]
    assert alias(client) == OLD


def test_units_that_are_not_split_alike_hold_a_step_up(client: httpx.Client) -> None:
    put(client, status="running", window=600, metrics=[GUARDRAIL])
    promote(client, plan=QUICK)
    lived(client, "rollout.prod", split(("old", "new"), 250, 120), lambda unit: unit.endswith("0"), hours=3)
    time.sleep(0.2)
    assert rollout(client)["step"] == 0
    (said,) = waits_for(client)
    assert said.startswith("Sample-ratio mismatch: ") and "old 250, new 120" in said


def test_what_an_earlier_rollout_did_says_nothing_about_this_one(client: httpx.Client) -> None:
    put(client, status="running", window=600, metrics=[GUARDRAIL])
    promote(client, plan=QUICK)
    lived(client, "rollout.prod", split(("old", "new"), 150, 150), lambda unit: "old" in unit, hours=3)
    until(lambda: rollout(client)["outcome"] == "rolled back")
    promote(client, plan=QUICK)
    time.sleep(0.2)
    assert rollout(client)["outcome"] == "going" and rollout(client)["step"] == 0
    assert client.get("/v1/experiments/rollout.prod/report").json()["sentence"] == "No units yet."


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
    time.sleep(3 * leader_loop.LOOK_SECONDS)
    assert rollout(client)["outcome"] == "going"
    post(lambda i, recipe: recipe == OLD)  # from now on by nobody who meets the new recipe
    until(lambda: rollout(client)["outcome"] == "rolled back")
    assert "solved" in rollout(client)["why"][0]
    until(lambda: set(answers(client).values()) == {OLD})


def test_without_a_report_no_step_is_taken(pods: list[Service], guard: Guard) -> None:
    promote(pods[0].client, plan={"steps": [0.25, 0.5, 1], "step_seconds": 0.3})
    guard.is_away = True
    until(lambda: guard.asked)
    asked = guard.asked
    for _ in range(3):
        asked.clear()
        until(lambda: asked)
    assert rollout(pods[0].client)["step"] == 0
    assert waits_for(pods[0].client) == ["the report cannot be had: no report"]
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
