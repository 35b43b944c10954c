"""Experiments over HTTP: on real services that share a real Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import Service, running
from redis import Redis
from servers import messages_lost, server, until

from app.experiments.assignment import assign
from app.experiments.experiment import Experiment
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

ARMS = [{"name": "mild", "recipe": "base", "share": 0.5}, {"name": "firm", "recipe": "angry@0.4", "share": 0.5}]


@pytest.fixture
def pod(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Callable[..., httpx.Client]:
    """Start a pod of one service; all that are started share a Redis."""
    return lambda **options: serve(spec, **options).client


def definition(**more: Any) -> dict[str, Any]:
    return {"arms": ARMS, "control": "mild", **more}


def put(client: httpx.Client, name: str = "tone", actor: str | None = None, **more: Any) -> dict[str, Any]:
    headers = {"X-Tween-Actor": actor} if actor else {}
    reply = client.put(f"/v1/experiments/{name}", json=definition(**more), headers=headers)
    assert reply.status_code in (200, 201), reply.text
    changed: dict[str, Any] = reply.json()
    return changed


def step(client: httpx.Client, status: str, name: str = "tone", **more: Any) -> httpx.Response:
    return client.post(f"/v1/experiments/{name}/status", json={"status": status, **more})


def get(client: httpx.Client, name: str = "tone") -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/experiments/{name}").json()
    return found


def met(client: httpx.Client, unit: str, name: str = "tone") -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/experiments/{name}/assignment", params={"unit": unit}).json()
    return found


def detail(reply: httpx.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json()["detail"])


# -- one pod -------------------------------------------------------------------------------------------


def test_an_experiment_is_made_started_changed_and_stopped(pod: Callable[..., httpx.Client]) -> None:
    client = pod()
    made = client.put("/v1/experiments/tone", json=definition(coverage=0.2), headers={"X-Tween-Actor": "ada"})
    assert made.status_code == 201
    body = made.json()
    assert (body["version"], body["status"], body["phase"], body["by"]) == (1, "draft", 1, "ada")
    assert body["definition"]["arms"][1]["recipe"] == "angry@0.4" and body["served"] and body["shared"]
    assert body["phases"] == [{"number": 1, "began": None, "shares": {"mild": 0.5, "firm": 0.5}, "left_out": {}}]
    assert met(client, "customer-1")["reason"] == "draft"
    started = step(client, "running").json()
    assert (started["status"], started["pods_asked"], started["pods_warm"]) == ("running", 1, 1)
    assert met(client, "customer-1")["reason"] == "coverage"
    grown = put(client, coverage=1, actor="bob")
    assert (grown["version"], grown["status"], grown["phase"]) == (3, "running", 1)
    found = met(client, "customer-1")
    expected = assign("tone", Experiment.model_validate(definition(status="running")), 1, "customer-1")
    assert (found["arm"], found["reason"], found["propensity"]) == (expected.arm, "assigned", 0.5)
    assert found["recipe"] == {"mild": "base", "firm": "angry@0.4"}[found["arm"]]
    arms = [{**ARMS[0], "share": 0.9}, {**ARMS[1], "share": 0.1}]
    assert put(client, arms=arms)["phase"] == 2
    assert step(client, "stopped").json()["status"] == "stopped"
    assert (met(client, "customer-1")["arm"], met(client, "customer-1")["reason"]) == ("mild", "stopped")
    assert [record["name"] for record in client.get("/v1/experiments").json()["experiments"]] == ["tone"]
    audit = client.get("/v1/experiments/tone/audit").json()["audit"]
    assert [(e["version"], e["action"], e["by"]) for e in audit] == [
        (5, "stopped", None),
        (4, "changed", None),
        (3, "changed", "bob"),
        (2, "started", None),
        (1, "drafted", "ada"),
    ]
    assert audit[2]["changes"] == {"coverage": [0.2, 1.0]} and list(audit[1]["changes"]) == ["arms"]


def test_a_change_that_changes_nothing_is_none_and_versions_are_compared(pod: Callable[..., httpx.Client]) -> None:
    client = pod()
    assert put(client)["version"] == put(client)["version"] == 1
    conflict = client.put("/v1/experiments/tone?version=7", json=definition(coverage=0.1))
    assert "is at version 1, not 7" in detail(conflict, 409)
    assert "does not exist" in detail(client.put("/v1/experiments/other?version=1", json=definition()), 409)
    assert client.put("/v1/experiments/other?version=0", json=definition()).status_code == 201
    assert "is at version 1, not 0" in detail(step(client, "running", version=0), 409)


def test_states_go_only_where_they_may(pod: Callable[..., httpx.Client]) -> None:
    client = pod()
    assert "no experiment 'tone'; experiments: none yet" in detail(step(client, "running"), 404)
    put(client)
    assert "is draft and cannot become paused; only running" in detail(step(client, "paused"), 409)
    for status in ("running", "paused", "running", "stopped"):
        assert step(client, status).json()["status"] == status
    assert "is stopped and cannot become running; only no more: this is its end" in detail(step(client, "running"), 409)
    assert "has stopped" in detail(client.put("/v1/experiments/tone", json=definition(coverage=0.5)), 409)


def test_experiments_of_a_layer_hold_ranges_that_do_not_meet(pod: Callable[..., httpx.Client]) -> None:
    client = pod()
    put(client, "a", layer={"name": "checkout", "high": 0.5}, status="running")
    put(client, "b", layer={"name": "checkout", "low": 0.5}, status="running")
    put(client, "c", layer={"name": "search"})
    clash = client.put("/v1/experiments/d", json=definition(layer={"name": "checkout", "low": 0.4, "high": 0.6}))
    assert "'a' holds 0 to 0.5 of layer 'checkout', which 0.4 to 0.6 would share" in detail(clash, 409)
    step(client, "stopped", "a")
    put(client, "d", layer={"name": "checkout", "high": 0.5})


def test_what_is_counted_stays_and_what_decides_is_amended(pod: Callable[..., httpx.Client]) -> None:
    client = pod()
    spent = {"name": "spent", "kind": "continuous"}
    put(client, metrics=[spent], planned_units=1_000, status="running")
    redefined = client.put("/v1/experiments/tone", json=definition(metrics=[{**spent, "kind": "count"}]))
    assert "with kind 'continuous', which stays; give the new metric another name" in detail(redefined, 409)
    shorter = client.put("/v1/experiments/tone", json=definition(metrics=[spent], window=60))
    assert "make another experiment for another window" in detail(shorter, 409)
    put(client, metrics=[spent], planned_units=10, actor="bob")
    found = client.get("/v1/experiments/tone/report").json()
    assert [(one["by"], one["what"]) for one in found["amended"]] == [("bob", "planned_units from 1000 to 10")]
    assert "the confidence sequence decides, because the plan was changed" in found["warnings"][0]


def test_what_has_stopped_is_archived_and_deleted_everywhere(
    pod: Callable[..., httpx.Client], redis: Redis, tmp_path: Path
) -> None:
    one, two = pod(spool=tmp_path / "one"), pod(spool=tmp_path / "two")
    put(one, metrics=[{"name": "bought"}], status="running")
    assert "is running; stop it before it is deleted" in detail(one.delete("/v1/experiments/tone"), 409)
    units = [f"customer-{i}" for i in range(20)]
    outcomes = [{"unit": unit, "metric": "bought", "id": "first"} for unit in units]

    def meet_and_buy() -> None:
        body = {"texts": ["late"] * 20, "recipe": "exp:tone", "unit": units}
        assert one.post("/v1/predict", json=body).status_code == 200
        assert one.post("/v1/experiments/tone/outcomes", json=outcomes).status_code == 202
        until(lambda: bought(one) == 20)

    def bought(client: httpx.Client) -> float:
        metrics = client.get("/v1/experiments/tone/report").json()["metrics"]
        return sum((arm["mean"] or 0) * arm["units"] for arm in metrics[0]["arms"])

    meet_and_buy()
    step(one, "stopped")
    until(lambda: get(two).get("status") == "stopped")
    assert two.post("/v1/experiments/tone/archive").json()["archived"]
    until(lambda: one.get("/v1/experiments").json() == {"experiments": []})
    (archived,) = one.get("/v1/experiments?archived=true").json()["experiments"]
    assert archived["name"] == "tone" and bought(one) == 20, "its report stays"
    assert "is archived" in detail(one.post("/v1/experiments/tone/outcomes", json=outcomes), 409)
    assert "is at version 3, not 1" in detail(two.delete("/v1/experiments/tone?version=1"), 409)
    assert two.delete("/v1/experiments/tone?version=3").json() == {"name": "tone", "version": 4}
    assert not list(redis.scan_iter("tween:exp:{tone}:*"))
    until(lambda: one.get("/v1/experiments/tone").status_code == 404)
    assert "no experiment 'tone'" in detail(one.delete("/v1/experiments/tone"), 404)
    assert put(one, metrics=[{"name": "bought"}], status="running")["version"] == 5
    assert bought(one) == 0
    meet_and_buy()  # ids that the deleted one has counted are new to this one
    assert get(pod())["phase"] == 2


def test_there_is_room_again_where_one_is_archived_or_deleted(
    pod: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.experiments.experiment_registry.MAX_EXPERIMENTS", 2)
    client = pod()
    for name in ("a", "b"):
        put(client, name)
    full = client.put("/v1/experiments/c", json=definition())
    assert "there are 2 experiments already; archive or delete one that has stopped" in detail(full, 409)
    assert client.post("/v1/experiments/a/archive").status_code == 200
    put(client, "c")
    assert client.delete("/v1/experiments/b").status_code == 200
    put(client, "d")


def test_a_unit_is_erased_from_records_and_sums(pod: Callable[..., httpx.Client], redis: Redis, tmp_path: Path) -> None:
    client = pod(spool=tmp_path)
    put(client, metrics=[{"name": "bought"}], status="running", overrides={"tester/1": "mild"})
    units = ["ada/ü", "bob", "cyd"]
    client.post("/v1/predict", json={"texts": ["late"] * 3, "recipe": "exp:tone", "unit": units})
    client.post("/v1/experiments/tone/outcomes", json=[{"unit": unit, "metric": "bought"} for unit in units])

    def counted() -> tuple[int, float]:
        arms = client.get("/v1/experiments/tone/report").json()["arms"]
        sums = {path.decode(): float(amount) for path, amount in redis.hgetall("tween:exp:{tone}:sums").items()}
        return sum(arm["units"] for arm in arms), sum(
            y for path, y in sums.items() if path.endswith("metrics/bought/y")
        )

    until(lambda: counted() == (3, 3.0))
    path = f"/v1/experiments/tone/units/{quote('ada/ü', safe='')}"
    assert client.delete(path).json() == {"erased": True, "named": False}
    assert counted() == (2, 2.0)
    assert "ada" not in client.get("/v1/experiments/tone/export").text
    assert client.delete(path).json() == {"erased": False, "named": False}
    tester = client.delete("/v1/experiments/tone/units/tester%2F1")
    assert tester.json() == {"erased": False, "named": True}
    assert "1 to 256 characters" in detail(client.delete(f"/v1/experiments/tone/units/{'u' * 300}"), 422)
    assert "no experiment 'none'" in detail(client.delete("/v1/experiments/none/units/ada"), 404)


def test_times_are_obeyed(pod: Callable[..., httpx.Client]) -> None:
    client = pod()
    put(client, "later", status="running", start="2999-01-01T00:00:00Z")
    assert met(client, "a", "later")["reason"] == "not yet"
    put(client, "tone", status="running", stop=time.time() + 0.3)
    assert met(client, "a")["reason"] == "assigned"
    until(lambda: met(client, "a")["reason"] == "stopped")
    until(lambda: (get(client)["status"], get(client)["by"]) == ("stopped", "its stop time"))


BAD: list[tuple[str, str, object, int, str]] = [
    ("no body", "tone", None, 422, "body is missing"),
    ("no arms", "tone", {"control": "a"}, 422, "'arms' is missing"),
    ("an unknown field", "tone", definition(colour="red"), 422, "'colour' is unknown"),
    ("an unknown control", "tone", definition(control="none"), 422, "arms that are shown: mild, firm"),
    ("shares above 1", "tone", {**definition(), "arms": [ARMS[0], {**ARMS[1], "share": 0.7}]}, 422, "add up to 1.2"),
    ("an unknown variant", "tone", {**definition(), "arms": [ARMS[0], {**ARMS[1], "recipe": "x"}]}, 404, "arm 'firm'"),
    ("an alias", "tone", {**definition(), "arms": [ARMS[0], {**ARMS[1], "recipe": "@prod"}]}, 422, "is an alias"),
    ("an experiment", "tone", {**definition(), "arms": [ARMS[0], {**ARMS[1], "recipe": "exp:a"}]}, 422, "experiment"),
    ("an impossible name", "a b", definition(), 422, "no experiment's name"),
    ("a name of ours", "rollout.prod", definition(), 422, "those of rollouts"),
    ("a word as a time", "tone", definition(start="soon"), 422, "a moment is seconds since 1970"),
    ("no number", "tone", {**definition(), "coverage": float("nan")}, 422, "coverage"),
    ("paused at once", "tone", definition(status="paused"), 409, "could be paused"),
]


@pytest.fixture(scope="module")
def lasting(redis_url: str, spec: BankSpec) -> Iterator[httpx.Client]:
    """One service for all bad input: it must not care."""
    with running(spec, redis_url=redis_url, redis_namespace="bad-experiments", memory_tier_mib=16) as service:
        yield service.client


@pytest.mark.parametrize(
    ("name", "body", "status", "sentence"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_gets_one_clear_sentence(
    lasting: httpx.Client, name: str, body: object, status: int, sentence: str
) -> None:
    content = None if body is None else json.dumps(body)
    reply = lasting.put(f"/v1/experiments/{name}", content=content, headers={"Content-Type": "application/json"})
    assert sentence in detail(reply, status)
    assert lasting.get("/v1/experiments").json() == {"experiments": []}


def test_questions_that_have_no_answer(lasting: httpx.Client) -> None:
    for path in ("", "/audit", "/assignment?unit=a"):
        assert "no experiment 'tone'" in detail(lasting.get(f"/v1/experiments/tone{path}"), 404)
    assert "NAME=VALUE" in detail(lasting.get("/v1/experiments/tone/assignment?unit=a&attribute=plan"), 422)


# -- two pods ------------------------------------------------------------------------------------------


def test_every_pod_sees_a_change_and_assigns_alike(pod: Callable[..., httpx.Client]) -> None:
    one, two = pod(), pod()
    changed = put(one, status="running")
    assert (changed["pods_asked"], changed["pods_warm"]) == (2, 2)
    until(lambda: get(two).get("version") == 1 and get(two)["served"])
    units = [f"customer-{i}" for i in range(40)]
    arms = [met(one, unit)["arm"] for unit in units]
    assert arms == [met(two, unit)["arm"] for unit in units] and set(arms) == {"mild", "firm"}
    step(two, "paused")
    until(lambda: met(one, units[0])["reason"] == "paused")
    three = pod()
    assert get(three) == get(one) and met(three, units[0])["reason"] == "paused"


def test_of_those_who_compare_and_set_at_once_one_wins(pod: Callable[..., httpx.Client]) -> None:
    pods = [pod(), pod()]
    put(pods[0])

    def change(i: int) -> int:
        reply = pods[i % 2].put("/v1/experiments/tone?version=1", json=definition(coverage=(i + 1) / 100))
        return reply.status_code

    with ThreadPoolExecutor(8) as callers:
        statuses = list(callers.map(change, range(8)))
    assert sorted(statuses) == [200] + [409] * 7
    until(lambda: get(pods[0]) == get(pods[1]))
    assert get(pods[0])["definition"]["coverage"] == (statuses.index(200) + 1) / 100


def test_a_lost_message_is_made_up_for(pod: Callable[..., httpx.Client], redis: Redis) -> None:
    one, two = pod(), pod()
    put(one, status="running")
    with messages_lost(redis):
        put(one, coverage=0)
        until(lambda: met(two, "a")["reason"] == "coverage")


def test_redis_gone_and_back(serve: Callable[..., Service], spec: BankSpec, tmp_path: Path) -> None:
    with server(tmp_path) as made:
        one, two = (serve(spec, redis_url=made.url).client for _ in range(2))
        put(one, status="running")
        until(lambda: get(two).get("served"))
        arm = met(one, "customer-1")["arm"]
        made.kill()
        assert "experiments stay as they are" in detail(step(two, "paused"), 503)
        assert "experiments stay as they are" in detail(one.put("/v1/experiments/new", json=definition()), 503)
        assert met(one, "customer-1")["arm"] == met(two, "customer-1")["arm"] == arm
        made.start()
        with made.client() as redis:
            until(lambda: redis.hexists("tween:experiments", "tone"))
        assert step(two, "paused").json()["version"] == 2
        until(lambda: get(one)["status"] == "paused")
        assert [e["action"] for e in one.get("/v1/experiments/tone/audit").json()["audit"]] == ["paused", "started"]


def test_a_pod_whose_bank_lacks_an_arm_says_so(
    serve: Callable[..., Service], folders: Path, spec: BankSpec, redis: Redis
) -> None:
    whole = serve(spec).client
    poor = serve(BankSpec.from_options(str(folders / "base"), [f"polite={folders / 'polite'}"])).client
    changed = put(whole, status="running")
    assert (changed["pods_asked"], changed["pods_warm"]) == (2, 1)
    until(lambda: get(poor).get("version") == 1)
    assert not get(poor)["served"] and get(whole)["served"]
    reply = poor.get("/v1/experiments/tone/assignment", params={"unit": "a"})
    assert "an arm that the bank of this pod cannot make" in detail(reply, 404)


def test_without_redis_experiments_live_in_the_process_and_say_so(
    serve: Callable[..., Service], spec: BankSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap.find_server", lambda: None)
    client = serve(spec, redis_url=None).client
    assert not put(client, status="running")["shared"]
    assert met(client, "a")["reason"] == "assigned"
    assert step(client, "stopped").json()["version"] == 2


# -- a file --------------------------------------------------------------------------------------------

FILE = """
[tone]
control = "mild"
status = "running"
start = 2026-01-01T00:00:00Z
coverage = {coverage}
arms = [
    {{ name = "mild", recipe = "base", share = 0.5 }},
    {{ name = "firm", recipe = {{ variant = "angry", t = 0.4 }}, share = 0.5 }},
]
metrics = [{{ name = "solved", role = "guardrail" }}]
"""


def test_a_file_is_followed_once_and_then_again_when_it_says_something_else(
    pod: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(FILE.format(coverage=0.5))
    one = pod(experiments=file)
    found = get(one)
    assert (found["version"], found["status"], found["by"]) == (1, "running", "file experiments.toml")
    assert found["definition"]["start"] == 1767225600.0 and found["definition"]["arms"][1]["recipe"] == "angry@0.4"
    assert get(pod(experiments=file))["version"] == 1
    step(one, "paused")
    assert get(pod(experiments=file))["status"] == "paused", "a pod that starts undoes nothing"
    file.write_text(FILE.format(coverage=0.8))
    again = get(pod(experiments=file))
    assert (again["version"], again["status"], again["definition"]["coverage"]) == (3, "running", 0.8)
    step(one, "stopped")
    file.write_text(FILE.format(coverage=0.9))
    assert get(pod(experiments=file))["status"] == "stopped", "what cannot be is left, and the pod starts"


def test_a_file_waits_for_redis(serve: Callable[..., Service], spec: BankSpec, tmp_path: Path) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(FILE.format(coverage=0.5))
    with server(tmp_path) as made:
        made.kill()
        client = serve(spec, redis_url=made.url, experiments=file).client
        assert client.get("/v1/experiments/tone").status_code == 404
        made.start()
        until(lambda: get(client).get("status") == "running")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tone", "experiments.toml: Expected"),
        ("tone = 1", "experiments.toml: tone: Input should be"),
        ('[tone]\ncontrol = "a"', "experiments.toml: tone.arms: Field required"),
        ("[rollout]\n[rollout.prod]\n", "experiments.toml: rollout.arms"),
        ('["a b"]', "no experiment's name"),
        (FILE.format(coverage=2), "experiments.toml: tone.coverage"),
        (FILE.format(coverage=1).replace('"angry"', '"angri"'), "arm 'firm': no variant 'angri'"),
    ],
)
def test_a_file_that_is_wrong_is_refused_at_the_start(
    spec: BankSpec, redis_url: str, tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(text)
    with running(spec, wait=False, redis_url=redis_url, experiments=file, memory_tier_mib=16) as service:
        until(lambda: service.failures)
    assert sentence in str(service.failures[0])
