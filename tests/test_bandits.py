"""A bandit at work, over HTTP: shares follow outcomes once a period, by one pod, and units stay where they were."""

from __future__ import annotations

import csv
import io
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Service, running
from redis import Redis
from servers import server, until
from test_experiments import ARMS, get, met, put
from test_meetings import Book, predict

from app.cluster import leader_loop
from app.experiments.assignment import assign
from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment import DAY, Experiment
from app.experiments.record import Record
from app.experiments.stats import thompson
from app.models.bank import BankSpec
from tests.units import binary_phase, halves

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

RATES = {"mild": 0.1, "firm": 0.5}
BANDIT: dict[str, Any] = {
    "mode": "bandit",
    "status": "running",
    "window": 1000,
    "metrics": [{"name": "solved", "role": "primary"}],
}
LEASE = "tween:experiments:lease:tone"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_loop, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(leader_loop, "LEASE_SECONDS", 0.5)


@pytest.fixture
def pods(serve: Callable[..., Service], spec: BankSpec, redis: Redis, tmp_path: Path) -> list[Service]:
    """Two, which find nothing on their disks that another test has left to be counted."""
    return [serve(spec, spool=tmp_path / f"spool-{i}") for i in range(2)]


def later(pods: Iterable[Service], days: float) -> None:
    """From now on it is so many days later for whoever works out shares."""
    for pod in pods:
        pod.app.state.bandits.clock = lambda: time.time() + days * DAY


def shares(client: httpx.Client) -> dict[str, float]:
    return {arm["name"]: arm["share"] for arm in get(client)["definition"]["arms"]}


def ask(client: httpx.Client, units: Sequence[str]) -> dict[str, str]:
    """The arm by unit, in calls of forty."""
    found: dict[str, str] = {}
    for start in range(0, len(units), 40):
        some = units[start : start + 40]
        reply = predict(client, texts=["late order"] * len(some), unit=some)
        found |= {unit: one["arm"] for unit, one in zip(some, reply["experiment"], strict=True)}
    return found


def live(pods: Sequence[Service], units: Sequence[str]) -> dict[str, str]:
    """Have units met through both pods, and do what they do; gives their arms once all of it is counted."""
    half = len(units) // 2
    arms = ask(pods[0].client, units[:half]) | ask(pods[1].client, units[half:])
    chance = random.Random(7)
    solved = [unit for unit in units if chance.random() < RATES[arms[unit]]]
    outcomes = [{"unit": unit, "metric": "solved", "id": unit} for unit in solved]
    assert pods[0].client.post("/v1/experiments/tone/outcomes", json=outcomes).status_code == 202
    until(lambda: set(units) <= set(rows(pods[0].client)))
    until(lambda: {unit for unit, row in rows(pods[0].client).items() if float(row["solved"])} >= set(solved))
    return arms


def rows(client: httpx.Client) -> dict[str, dict[str, str]]:
    """What has been counted, by unit; fails where a unit was met in two phases."""
    found = list(csv.DictReader(io.StringIO(client.get("/v1/experiments/tone/export").text)))
    by_unit = {row["unit"]: row for row in found}
    assert len(by_unit) == len(found)
    return by_unit


def test_a_better_arm_gets_more_traffic_and_units_stay(pods: list[Service]) -> None:
    one, two = (pod.client for pod in pods)
    put(one, **BANDIT)
    until(lambda: get(two)["served"])
    first = [f"early-{i}" for i in range(240)]
    arms = live(pods, first)
    later(pods, 2)
    until(lambda: get(one)["phase"] == get(two)["phase"] == 2 and get(two)["served"] and get(one)["served"])
    moved = shares(one)
    assert moved["firm"] > 0.9 and moved["mild"] >= thompson.FLOOR and sum(moved.values()) == pytest.approx(1)
    by_hash = {unit: assign("tone", Experiment(**get(one)["definition"]), 2, unit).arm for unit in first}
    assert by_hash != arms, "without a memory some would have moved"
    for client in (one, two):
        assert ask(client, first) == arms
        looked = met(client, first[0])
        assert (looked["arm"], looked["phase"], looked["propensity"]) == (arms[first[0]], 1, 0.5)

    second = [f"late-{i}" for i in range(120)]
    arms |= live(pods, second)
    assert sum(arms[unit] == "firm" for unit in second) > 100
    later(pods, 3)
    until(lambda: get(one)["version"] == get(two)["version"] == 3)
    assert shares(one) == moved, "nothing to add"
    assert ask(two, first + second) == ask(one, first + second) == arms
    counted = rows(one)
    for units, phase, propensities in ((first, "1", {"mild": 0.5, "firm": 0.5}), (second, "2", moved)):
        for unit in units:
            row = counted[unit]
            assert (row["phase"], row["arm"], float(row["propensity"])) == (phase, arms[unit], propensities[arms[unit]])

    trail = one.get("/v1/experiments/tone/audit").json()["audit"]
    assert (trail[0]["action"], trail[0]["by"]) == ("worked out shares", "bandit")
    report = one.get("/v1/experiments/tone/report").json()
    assert report["metrics"] == [] and report["sample_ratio"] is None
    standing = {arm["arm"]: arm for arm in report["bandit"]}
    assert abs(standing["firm"]["estimate"] - RATES["firm"]) < 0.15


def test_an_arm_that_fails_a_guardrail_gets_no_more_units(pods: list[Service]) -> None:
    """Long before a period is over; units that have it keep it, until people draw everybody anew."""
    one, two = (pod.client for pod in pods)
    guardrail = {"name": "complained", "role": "guardrail", "better": "lower"}
    body = {**BANDIT, "metrics": [*BANDIT["metrics"], guardrail]}
    put(one, **body)
    until(lambda: get(two)["served"])
    first = [f"early-{i}" for i in range(280)]
    arms = ask(one, first[:140]) | ask(two, first[140:])
    outcomes = [
        {"unit": unit, "metric": "complained", "id": unit}
        for number, (unit, arm) in enumerate(arms.items())
        if arm == "firm" and number % 4
    ]
    assert two.post("/v1/experiments/tone/outcomes", json=outcomes).status_code == 202
    until(lambda: shares(one) == shares(two) == {"mild": 1, "firm": 0})
    until(lambda: get(one)["served"] and get(two)["served"])
    assert set(ask(one, [f"late-{i}" for i in range(40)]).values()) == {"mild"}
    assert ask(two, first) == arms
    (entry, *_) = one.get("/v1/experiments/tone/audit").json()["audit"]
    assert entry["by"] == "bandit" and list(entry["changes"]) == ["arms"]
    assert entry["action"].startswith("left out firm: Guardrail complained fails: firm is worse than mild by ")
    report = two.get("/v1/experiments/tone/report").json()
    assert report["sentence"].startswith("Guardrail complained fails: firm is worse")
    assert any(warning.startswith("firm gets no new units") for warning in report["warnings"])
    assert get(one)["phases"][-1]["left_out"].keys() == {"firm"}

    later(pods, 3)
    before = get(one)["version"]
    until(lambda: get(one)["version"] > before)
    assert shares(one) == {"mild": 1, "firm": 0}, "a period later, too"
    put(one, **body, salt="other")
    assert get(one)["phases"][-1]["left_out"] == {}
    time.sleep(0.2)  # for ten looks of each
    assert shares(one) == {"mild": 0.5, "firm": 0.5}, "what was counted before is no evidence on what is drawn anew"


def test_a_period_is_looked_at_once_by_all_pods_together(pods: list[Service]) -> None:
    put(pods[0].client, **BANDIT)
    until(lambda: get(pods[1].client)["served"])
    for days in (1, 2, 3):
        later(pods, days)
        until(lambda days=days: get(pods[0].client)["version"] == get(pods[1].client)["version"] == 1 + days)
        time.sleep(0.2)  # for ten looks of each
        assert get(pods[0].client)["version"] == 1 + days
    assert get(pods[0].client)["phase"] == 1, "warming up"


def test_another_pod_goes_on_when_one_dies(
    spec: BankSpec, redis: Redis, redis_url: str, serve: Callable[..., Service]
) -> None:
    with ExitStack() as first:
        one = first.enter_context(running(spec, redis_url=redis_url, memory_tier_mib=16))
        put(one.client, **BANDIT, period=0.05)
        until(lambda: redis.exists(LEASE))
        holder = redis.get(LEASE)
        two = serve(spec)
        assert redis.get(LEASE) == holder
    left = get(two.client)["version"]
    until(lambda: get(two.client)["version"] > left + 2)
    assert redis.get(LEASE) not in (None, holder)


def test_a_lease_of_a_pod_that_died_while_it_worked_is_waited_for(pods: list[Service], redis: Redis) -> None:
    redis.set(LEASE, "a pod that is no more", px=1000)
    put(pods[0].client, **BANDIT)
    later(pods, 1)
    time.sleep(0.3)
    assert get(pods[0].client)["version"] == 1
    until(lambda: get(pods[0].client)["version"] == 2)


def test_arms_along_t_are_a_dose(pods: list[Service]) -> None:
    """A curve lends what is known of its neighbours to an arm."""
    ts = {"low": 0.1, "middle": 0.4, "high": 0.7, "full": 1.0}
    arms = [{"name": name, "recipe": f"polite@{t}", "share": 0.25} for name, t in ts.items()]
    counts = {"low": (60, 600), "middle": (90, 600), "high": (84, 600), "full": (66, 600)}
    phases = [binary_phase(counts, halves(list(ts)), metric="solved")]

    async def sums(name: str) -> list[PhaseSums]:
        return phases

    for pod in pods:
        pod.app.state.bandits.sums = sums
    later(pods, 1)
    body = {**BANDIT, "arms": arms, "control": "low"}
    put(pods[0].client, **body)
    until(lambda: get(pods[0].client)["phase"] == 2)
    definition = Experiment.model_validate(body)
    curve = thompson.next_shares(definition, phases, time.time() + DAY, ts)
    assert shares(pods[0].client) == pytest.approx(curve)
    assert curve != pytest.approx(thompson.next_shares(definition, phases, time.time() + DAY), abs=0.02)


def test_people_who_change_the_salt_draw_everybody_anew(pods: list[Service]) -> None:
    client, units = pods[0].client, [f"customer-{i}" for i in range(40)]
    put(client, **BANDIT)
    before = ask(client, units)
    put(client, **BANDIT, salt="other")
    after = ask(client, units)
    definition = Experiment(arms=ARMS, control="mild", **{**BANDIT, "salt": "other"})  # type: ignore[arg-type]
    assert after == {unit: assign("tone", definition, 2, unit).arm for unit in units} != before


def test_while_redis_is_away_who_is_known_stays_and_others_are_drawn_alike_on_every_pod(
    spec: BankSpec, tmp_path: Path
) -> None:
    with server(tmp_path, "appendonly yes", "appendfsync always") as redis, ExitStack() as stack:
        options = {"redis_url": redis.url, "memory_tier_mib": 16, "prediction_cache": False}
        pods = [stack.enter_context(running(spec, spool=tmp_path / f"spool-{i}", **options)) for i in range(2)]
        put(pods[0].client, **BANDIT)
        until(lambda: get(pods[1].client)["served"])
        known, unknown = [f"known-{i}" for i in range(40)], [f"unknown-{i}" for i in range(40)]
        arms = ask(pods[0].client, known)
        # Shares move far enough that most would be drawn otherwise.
        record = Record.decoded("tone", redis.client().hget("tween:experiments", "tone"))  # type: ignore[arg-type]
        assert record is not None
        moved = record.reckoned({"mild": 0.99, "firm": 0.01}, time.time(), "bandit")
        redis.client().hset("tween:experiments", mapping={"tone": moved.encoded(), ":mark": "another"})
        until(lambda: all(get(pod.client)["phase"] == 2 and get(pod.client)["served"] for pod in pods))
        books = [Book(), Book()]
        for pod, book in zip(pods, books, strict=True):
            pod.app.state.experiments.ledger = book
        redis.kill()
        assert ask(pods[0].client, known) == arms
        drawn = ask(pods[0].client, unknown)
        assert ask(pods[1].client, unknown) == drawn
        by_hash = {unit: assign("tone", moved.experiment, 2, unit).arm for unit in known}
        assert ask(pods[1].client, known) == by_hash != arms, "who never came to this pod"
        assert {(e.phase, e.propensity) for e in books[0].exposures if e.unit in known} == {(1, 0.5)}
        assert {(e.phase, e.propensity) for e in books[1].exposures} <= {(2, 0.99), (2, 0.01)}
        redis.start()
        until(lambda: ask(pods[1].client, known) == arms)
        assert ask(pods[1].client, unknown) == drawn
