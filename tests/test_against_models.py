"""Aliases and experiments, changed at random on two pods that share a Redis, against plain models of both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from typing import Any

import httpx
import pytest
from conftest import running
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis
from servers import until
from steady import STEADY

from app.experiments.assignment import assign
from app.experiments.experiment import Experiment
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

REMEMBERED = 20
"""Versions of an alias, the present one included."""
SPELLINGS = {
    "base": "base",
    "angry@0.40": "angry@0.4",
    "angry@0.1:0.9": "angry@0.1:0.9",
    "base..polite@.5": "polite@0.5",
}
PODS = st.integers(0, 1)
VERSIONS = st.sampled_from([None, 0, "now", "before"])
names = (f"n{number}" for number in count())


@pytest.fixture(scope="module")
def pods(spec: BankSpec, redis_url: str) -> Iterator[list[httpx.Client]]:
    with Redis.from_url(redis_url) as redis, ExitStack() as stack:
        redis.flushall()
        options: dict[str, Any] = {"redis_url": redis_url, "memory_tier_mib": 16, "prediction_cache": False}
        yield [stack.enter_context(running(spec, **options)).client for _ in range(2)]


class AliasMachine(RuleBasedStateMachine):
    """One alias. The model: (number, recipe or None, number of the version that it brings back), the newest last."""

    pods: list[httpx.Client]
    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.path = f"/v1/aliases/{next(names)}"
        self.versions: list[tuple[int, str | None, int]] = []
        self.last = 0  # the pod that made the newest change

    @property
    def number(self) -> int:
        return self.versions[-1][0] if self.versions else 0

    @property
    def recipe(self) -> str | None:
        return self.versions[-1][1] if self.versions else None

    def given(self, version: object) -> int | None:
        """A version as a caller names it."""
        named = {"now": self.number, "before": self.number - 1 if self.number else 7, 0: 0, None: None}
        return named[version]

    def fits(self, version: int | None) -> bool:
        return version in (None, self.number) or (version == 0 and self.recipe is None)

    def add(self, recipe: str | None, of: int | None = None, pod: int = 0) -> None:
        self.versions.append((self.number + 1, recipe, of or self.number + 1))
        del self.versions[:-REMEMBERED]
        self.last = pod

    @rule(pod=PODS, spelling=st.sampled_from(list(SPELLINGS)), version=VERSIONS)
    def move(self, pod: int, spelling: str, version: object) -> None:
        asked = self.given(version)
        reply = self.pods[pod].put(self.path, json={"recipe": spelling, "version": asked})
        if not self.fits(asked):
            assert reply.status_code == 409
            return
        assert reply.status_code == (200 if self.recipe else 201), reply.text
        if self.recipe != SPELLINGS[spelling]:
            self.add(SPELLINGS[spelling], pod=pod)
        assert (reply.json()["version"], reply.json()["recipe"]) == (self.number, self.recipe)

    @rule(pod=PODS, version=VERSIONS)
    def delete(self, pod: int, version: object) -> None:
        asked = self.given(version)
        reply = self.pods[pod].delete(self.path, params={} if asked is None else {"version": asked})
        if not self.fits(asked) or self.recipe is None:
            assert reply.status_code == (404 if self.fits(asked) else 409)
            return
        self.add(None, pod=pod)
        assert reply.status_code == 200 and reply.json()["version"] == self.number

    @rule(pod=PODS, version=VERSIONS)
    def roll_back(self, pod: int, version: object) -> None:
        asked = self.given(version)
        reply = self.pods[pod].post(f"{self.path}/rollback", params={} if asked is None else {"version": asked})
        if not self.fits(asked) or not self.versions:
            assert reply.status_code == (404 if self.fits(asked) else 409)
            return
        origin = self.versions[-1][2]
        earlier = [(recipe, of) for number, recipe, of in self.versions if number < origin and recipe]
        if not earlier:
            assert reply.status_code == 409
            return
        self.add(*earlier[-1], pod=pod)
        assert (reply.status_code, reply.json()["recipe"]) == (200, self.recipe)

    @rule(recipes=st.permutations(["angry@0.2", "polite@0.3"]))
    def both_pods_move_it_at_once_and_one_wins(self, recipes: list[str]) -> None:
        bodies = [{"recipe": recipe, "version": self.number} for recipe in recipes]
        with ThreadPoolExecutor(2) as threads:
            replies = list(threads.map(lambda pod, body: pod.put(self.path, json=body), self.pods, bodies))
        won = [i for i, reply in enumerate(replies) if reply.status_code in (200, 201)]
        if self.recipe in recipes:  # to move it where it points is no change, so both may have been right
            assert won and {reply.status_code for reply in replies} <= {200, 409}
            moved = [i for i in won if recipes[i] != self.recipe]
        else:
            assert len(won) == 1 and replies[1 - won[0]].status_code == 409, [reply.text for reply in replies]
            moved = won
        for pod in moved:
            self.add(recipes[pod], pod=pod)

    @precondition(lambda self: self.recipe)  # of an alias that is gone, a pod does not say which version it knows
    @rule()
    def redis_loses_everything_once_both_know(self) -> None:
        self.both_pods_say_what_the_model_says()
        self.redis.flushall()

    @rule()
    def both_pods_say_what_the_model_says(self) -> None:
        for pod in range(2):
            until(lambda: self.seen(pod) == self.expected())  # noqa: B023

    @invariant()
    def who_changed_it_sees_it(self) -> None:
        assert self.seen(self.last) == self.expected()

    def seen(self, pod: int) -> list[tuple[int, str | None]]:
        """Versions, the newest last, as a pod shows them; none of an alias that is gone."""
        reply = self.pods[pod].get(self.path)
        if reply.status_code == 404:
            return []
        body = reply.json()
        return [(one["version"], one["recipe"]) for one in (*reversed(body["history"]), body)]

    def expected(self) -> list[tuple[int, str | None]]:
        return [(number, recipe) for number, recipe, _ in self.versions] if self.recipe else []

    def teardown(self) -> None:
        self.both_pods_say_what_the_model_says()
        for pod in self.pods:
            if self.recipe:
                body = {"texts": "late order", "recipe": f"@{self.path.rpartition('/')[2]}"}
                until(lambda: pod.post("/v1/predict", json=body).json().get("recipe") == self.recipe)  # noqa: B023
        self.pods[0].delete(self.path)


class ExperimentMachine(RuleBasedStateMachine):
    """One experiment. The model: its definition, version and status, and the shares of each phase."""

    pods: list[httpx.Client]

    def __init__(self) -> None:
        super().__init__()
        self.name = next(names)
        self.path = f"/v1/experiments/{self.name}"
        self.version = 0
        self.status = "draft"
        self.definition: dict[str, Any] = {}
        self.phases: list[tuple[Any, dict[str, float]]] = []
        self.has_begun = False
        self.last = 0

    NEXT = {
        "draft": {"running"},
        "running": {"paused", "stopped"},
        "paused": {"running", "stopped"},
        "stopped": set[str](),
    }

    def become(self, definition: dict[str, Any], status: str, pod: int) -> None:
        shares = {arm["name"]: arm["share"] for arm in definition["arms"]}
        meets = (definition["arms"], definition.get("salt"))
        if not self.has_begun:
            self.phases = [(meets, shares)]
        elif self.phases[-1][0] != meets:
            self.phases.append((meets, shares))
        self.has_begun = self.has_begun or status == "running"
        self.definition, self.status, self.version, self.last = definition, status, self.version + 1, pod

    @rule(
        pod=PODS,
        firm=st.sampled_from([0.1, 0.5]),
        recipe=st.sampled_from(["angry@0.4", "polite@0.5"]),
        coverage=st.sampled_from([0.2, 1.0]),
        salt=st.sampled_from([None, "salt"]),
        status=st.sampled_from([None, None, "draft", "running", "paused", "stopped"]),
        right=st.booleans(),
    )
    def define(
        self, pod: int, firm: float, recipe: str, coverage: float, salt: str | None, status: str | None, right: bool
    ) -> None:
        arms = [
            {"name": "mild", "recipe": "base", "share": 1 - firm},
            {"name": "firm", "recipe": recipe, "share": firm},
        ]
        definition = {"arms": arms, "control": "mild", "coverage": coverage, "salt": salt}
        body = definition if status is None else {**definition, "status": status}
        version = {} if right else {"version": self.version + 1}
        reply = self.pods[pod].put(self.path, json=body, params=version)
        if not right:
            assert reply.status_code == 409
            return
        after = status or self.status
        same = self.version > 0 and definition == self.definition and after == self.status
        possible = (
            after in ("draft", "running")
            if not self.version
            else self.status != "stopped" and (after == self.status or after in self.NEXT[self.status])
        )
        if same or not possible:
            assert reply.status_code == (200 if same else 409), reply.text
            return
        assert reply.status_code == (200 if self.version else 201), reply.text
        self.become(definition, after, pod)

    @rule(pod=PODS, status=st.sampled_from(["running", "paused", "stopped"]))
    def step(self, pod: int, status: str) -> None:
        reply = self.pods[pod].post(f"{self.path}/status", json={"status": status})
        if not self.version:
            assert reply.status_code == 404
        elif status == self.status:
            assert reply.status_code == 200 and reply.json()["version"] == self.version
        elif status not in self.NEXT[self.status]:
            assert reply.status_code == 409
        else:
            assert reply.status_code == 200, reply.text
            self.become(self.definition, status, pod)

    @invariant()
    def who_changed_it_sees_it(self) -> None:
        assert self.seen(self.last) == self.expected()

    @rule()
    def both_pods_say_what_the_model_says(self) -> None:
        for pod in range(2):
            until(lambda: self.seen(pod) == self.expected())  # noqa: B023

    def seen(self, pod: int) -> object:
        reply = self.pods[pod].get(self.path)
        if reply.status_code == 404:
            return None
        body = reply.json()
        assert body["phase"] == body["phases"][-1]["number"] == len(body["phases"])
        assert (body["phases"][-1]["began"] is None) == (not self.has_begun) or pod != self.last
        return body["version"], body["status"], [phase["shares"] for phase in body["phases"]], body["served"]

    def expected(self) -> object:
        return (self.version, self.status, [shares for _, shares in self.phases], True) if self.version else None

    def teardown(self) -> None:
        self.both_pods_say_what_the_model_says()
        if not self.version:
            return
        model = Experiment.model_validate({**self.definition, "status": self.status})
        for number in range(20):
            unit = f"customer-{number}"
            found = assign(self.name, model, len(self.phases), unit)
            for pod in self.pods:
                met = pod.get(f"{self.path}/assignment", params={"unit": unit}).json()
                assert (met["arm"], met["reason"], met["phase"]) == (found.arm, found.reason, found.phase)
        self.pods[0].post(f"{self.path}/status", json={"status": "stopped"})


def test_aliases_on_two_pods_do_what_a_list_of_versions_does(pods: list[httpx.Client], redis: Redis) -> None:
    class OnTheseTwo(AliasMachine):
        pass

    OnTheseTwo.pods, OnTheseTwo.redis = pods, redis
    run_state_machine_as_test(OnTheseTwo, settings=STEADY)


def test_experiments_on_two_pods_do_what_a_table_of_states_does(pods: list[httpx.Client]) -> None:
    class OnTheseTwo(ExperimentMachine):
        pass

    OnTheseTwo.pods = pods
    run_state_machine_as_test(OnTheseTwo, settings=STEADY)
