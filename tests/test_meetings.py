"""Predictions by an experiment, over HTTP: which arm answers, what the ledger is told, and what shadows do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from conftest import Service
from redis import Redis
from servers import until
from test_aliases import slow_builds
from test_experiments import ARMS, definition, detail, put, step

from app.experiments.assignment import assign
from app.experiments.events.event import Exposure
from app.experiments.experiment import Experiment
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

__all__ = ["slow_builds"]
TEXT = "late order"
RECIPES = {"mild": "base", "firm": "angry@0.4"}
SHADOWS = [
    {"name": "ghost", "recipe": "polite@0.7", "share": 0, "shadow": True},
    {"name": "base", "recipe": "base", "share": 0, "shadow": True},
]


class Book:
    """A ledger that can be read."""

    def __init__(self) -> None:
        self.exposures: list[Exposure] = []

    def expose(self, exposure: Exposure) -> None:
        self.exposures.append(exposure)


@pytest.fixture
def service(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Service:
    return serve(spec)


@pytest.fixture
def book(service: Service) -> Book:
    book = service.app.state.experiments.ledger = Book()
    return book


def predict(client: httpx.Client, headers: Mapping[str, str] | None = None, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/predict", json={"texts": TEXT, "recipe": "exp:tone", **body}, headers=headers)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def arm_of(unit: str, **changes: Any) -> str:
    return assign("tone", Experiment.model_validate(definition(status="running", **changes)), 1, unit).arm


def test_a_unit_is_answered_by_its_arm_and_the_ledger_is_told(service: Service, book: Book) -> None:
    put(service.client, status="running")
    units = [f"customer-{i}" for i in range(20)]
    for unit in units:
        reply = predict(service.client, unit=unit)
        arm = arm_of(unit)
        assert reply["experiment"] == {"name": "tone", "arm": arm} and reply["recipe"] == RECIPES[arm]
        assert reply["source"] == "memory", "arms are kept warm"
        plain = predict(service.client, recipe=RECIPES[arm])
        assert plain["predictions"][0]["label"] == reply["predictions"][0]["label"] and "experiment" not in plain
    assert [(e.unit, e.arm) for e in book.exposures] == [(unit, arm_of(unit)) for unit in units]
    assert {arm_of(unit) for unit in units} == {"mild", "firm"}
    assert len({e.id for e in book.exposures}) == 20
    one = book.exposures[0]
    assert (one.experiment, one.phase, one.propensity, one.agreed, one.covariate) == ("tone", 1, 0.5, {}, None)
    assert one.latency_ms > 0 and one.at > 1.7e9


def test_the_unit_may_come_as_a_header(service: Service, book: Book) -> None:
    put(service.client, status="running")
    assert predict(service.client, {"X-Tween-Unit": "customer-1"})["experiment"]["arm"] == arm_of("customer-1")
    predict(service.client, {"X-Tween-Unit": "customer-1"}, unit="customer-2")
    assert [e.unit for e in book.exposures] == ["customer-1", "customer-2"]


def test_who_is_not_in_gets_control_and_is_not_counted(service: Service, book: Book) -> None:
    client = service.client
    put(client, targeting={"plan": ["free"]}, overrides={"tester": "firm"})
    assert predict(client, unit="tester")["experiment"]["arm"] == "firm", "in a draft too"
    step(client, "running")
    assert predict(client)["experiment"] == {"name": "tone", "arm": "mild"}
    assert predict(client, unit="customer-1")["experiment"]["arm"] == "mild"
    assert predict(client, unit="tester")["experiment"]["arm"] == "firm"
    assert book.exposures == []
    predict(client, unit="customer-1", attributes={"plan": "free"})
    assert [e.unit for e in book.exposures] == ["customer-1"]
    step(client, "paused")
    assert predict(client, unit="customer-1", attributes={"plan": "free"})["experiment"]["arm"] == "mild"
    assert len(book.exposures) == 1


def test_texts_of_several_customers_come_in_one_call(service: Service, book: Book) -> None:
    put(service.client, status="running")
    units = ["customer-1", None, *(f"customer-{i}" for i in range(2, 8))]
    reply = predict(service.client, texts=[TEXT] * 8, unit=units)
    arms = ["mild" if unit is None else arm_of(unit) for unit in units]
    assert reply["experiment"] == [{"name": "tone", "arm": arm} for arm in arms] and len(set(arms)) == 2
    assert reply["recipe"] == [RECIPES[arm] for arm in arms] and len(reply["key"]) == 8
    assert [e.unit for e in book.exposures] == [unit for unit in units if unit]


def test_recipes_and_experiments_stand_side_by_side(service: Service, book: Book) -> None:
    put(service.client, status="running")
    given = ["exp:tone", "polite@0.5", " exp:tone "]
    reply = predict(service.client, texts=[TEXT] * 3, recipe=given, unit="customer-1")
    arm = {"name": "tone", "arm": arm_of("customer-1")}
    assert reply["experiment"] == [arm, None, arm]
    assert reply["recipe"] == [RECIPES[arm["arm"]], "polite@0.5", RECIPES[arm["arm"]]]
    assert len(book.exposures) == 2


def test_shadows_run_in_the_same_batch_are_not_shown_and_agreement_is_told(service: Service, book: Book) -> None:
    client = service.client
    put(client, arms=[*ARMS, *SHADOWS], status="running")
    texts = ["late order", "thanks a lot", "never again", "works well"]
    before = service.app.state.engine.batcher.batches
    reply = predict(client, texts=texts, unit="customer-1")
    until(lambda: len(book.exposures) == len(texts))
    assert service.app.state.engine.batcher.batches == before + 1
    assert reply["recipe"] == RECIPES[arm_of("customer-1")]
    shadow = {arm["name"]: predict(client, texts=texts, recipe=arm["recipe"])["predictions"] for arm in SHADOWS}
    for i, exposure in enumerate(book.exposures):
        label = reply["predictions"][i]["label"]
        assert exposure.agreed == {name: found[i]["label"] == label for name, found in shadow.items()}
        assert exposure.covariate == pytest.approx(shadow["base"][i]["probability"], abs=1e-5)
    assert Counter(e.arm for e in book.exposures) == {arm_of("customer-1"): 4}


def test_shadows_are_spared_where_nothing_was_drawn(service: Service, book: Book) -> None:
    put(service.client, arms=[*ARMS, *SHADOWS], status="running")
    before = service.app.state.engine.batcher.rows_mixed + service.app.state.engine.batcher.rows_on_vectors
    predict(service.client)
    after = service.app.state.engine.batcher.rows_mixed + service.app.state.engine.batcher.rows_on_vectors
    assert after == before + 1 and book.exposures == []


def test_arms_are_met_warm_on_every_pod(
    slow_builds: None, serve: Callable[..., Service], spec: BankSpec, redis: Redis
) -> None:
    one, two = serve(spec, redis_blends="never").client, serve(spec, redis_blends="never").client
    arms = [{**ARMS[0], "recipe": "angry@0.31"}, {**ARMS[1], "recipe": "polite@0.37"}]
    assert put(one, arms=arms, status="running")["pods_warm"] == 2
    for client in (one, two):
        until(lambda client=client: client.get("/v1/experiments/tone").json().get("served"))
        for unit in ("customer-1", "customer-2", "customer-3", "customer-4"):
            assert predict(client, unit=unit)["source"] == "memory"
    three = serve(spec, redis_blends="never").client
    assert predict(three, unit="customer-1")["source"] == "memory"


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"recipe": "exp:none"}, 404, "no experiment 'none'; experiments: tone"),
        ({"recipe": "exp:"}, 404, "no experiment ''"),
        ({"recipe": "exp:tone", "unit": ""}, 422, "a unit has 1 to 256 characters"),
        ({"recipe": "exp:tone", "unit": "x" * 257}, 422, "a unit has 1 to 256 characters, not 257"),
        ({"recipe": "exp:tone", "unit": ["a", "b"]}, 422, "1 texts and 2 units"),
        ({"recipe": ["exp:tone"] * 2, "unit": "a"}, 422, "1 texts and 2 recipes"),
        ({"recipe": "exp:tone", "unit": 5}, 422, "unit"),
        ({"recipe": "exp:tone", "attributes": {"plan": 5}}, 422, "attributes.plan"),
        ({"recipe": "exp:tone", "texts": []}, 422, "texts is empty"),
    ],
)
def test_bad_input_gets_one_clear_sentence(service: Service, body: dict[str, Any], status: int, sentence: str) -> None:
    put(service.client, status="running")
    assert sentence in detail(service.client.post("/v1/predict", json={"texts": TEXT, **body}), status)


def test_half_of_a_character_is_nobodys_name(service: Service) -> None:
    put(service.client, status="running")
    body = '{"texts": "late", "recipe": "exp:tone", "unit": "\\ud800"}'
    reply = service.client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert "lone surrogate" in detail(reply, 422)


def test_elsewhere_an_experiment_is_no_recipe(service: Service) -> None:
    put(service.client, status="running")
    for path in ("blends", "aliases/prod"):
        call = service.client.put if path.startswith("aliases") else service.client.post
        assert "only predict may ask for" in detail(call(f"/v1/{path}", json={"recipe": "exp:tone"}), 422)
