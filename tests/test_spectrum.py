"""What texts get all along a line, over a real uvicorn, against predictions at each t."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pico
import pytest
from conftest import Service, running
from redis import Redis
from test_http import TEXTS, predict, problem

from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


@pytest.fixture
def client(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> httpx.Client:
    return serve(spec).client


@pytest.fixture(scope="module")
def lone_spec(tmp_path_factory: pytest.TempPathFactory) -> BankSpec:
    """A bank with one variant, near its base, as a fine-tune is."""
    folder = pico.write_near(tmp_path_factory.mktemp("near"))
    return BankSpec.from_options(str(folder / "base"), [f"near={folder / 'near'}"])


@contextmanager
def alone(spec: BankSpec, redis_url: str) -> Iterator[httpx.Client]:
    with running(spec, redis_url=redis_url, memory_tier_mib=16) as service:
        yield service.client


def spectrum(client: httpx.Client, **body: object) -> dict[str, object]:
    reply = client.post("/v1/spectrum", json=body)
    assert reply.status_code == 200, reply.text
    result: dict[str, object] = reply.json()
    return result


def test_the_curve_is_what_predict_answers_at_each_t(lone_spec: BankSpec, redis_url: str, redis: Redis) -> None:
    with alone(lone_spec, redis_url) as client:
        found = spectrum(client, texts=[*TEXTS, ["is it late?", "yes"]], ts=[0, 0.1, 0.35, 0.5, 0.9, 1], check=True)
        assert found["line"] == "base..near" and len(found["texts"]) == 3
        assert found["check"]["t"] == 0.35 and found["check"]["mean"] < 0.01 and found["check"]["labels"] == 0
        for place, t in enumerate(found["ts"]):
            answers = predict(client, texts=[*TEXTS, ["is it late?", "yes"]], recipe=f"near@{t}")["predictions"]
            for text, answer in zip(found["texts"], answers, strict=True):
                got = {label: curve[place] for label, curve in text["probabilities"].items()}
                assert got == pytest.approx(answer["probabilities"], abs=3e-3)
                assert text["tokens"] == answer["tokens"]


def test_a_page_can_draw_any_t_from_the_logits_of_the_nodes(client: httpx.Client) -> None:
    found = spectrum(client, texts=TEXTS, variant="angry", ts=[0.37])
    nodes = np.array(found["nodes"])
    assert nodes.tolist() == [0, 0.2, 0.5, 0.8, 1]
    assert found["recipes"] == ["base", "angry@0.2", "angry@0.5", "angry@0.8", "angry@1"]
    others = [np.delete(nodes, k) for k in range(5)]
    weights = [np.prod((0.37 - other) / (node - other)) for node, other in zip(nodes, others, strict=True)]
    for text in found["texts"]:
        z = np.array([np.dot(weights, text["logits"][label]) for label in pico.LABELS])
        p = np.exp(z) / np.exp(z).sum()
        assert [text["probabilities"][label][0] for label in pico.LABELS] == pytest.approx(p.tolist(), abs=1e-9)


def test_at_the_nodes_the_curve_is_the_blend_itself(client: httpx.Client) -> None:
    found = spectrum(client, texts=TEXTS[0], recipe="angry..polite", ts=[0, 0.2, 1], function="none")
    assert found["line"] == "angry..polite" and found["check"] is None
    for place, recipe in enumerate(("angry", "angry..polite@0.2", "polite")):
        (answer,) = predict(client, texts=TEXTS[0], recipe=recipe, function="none")["predictions"]
        (text,) = found["texts"]
        got = {label: curve[place] for label, curve in text["probabilities"].items()}
        assert got == pytest.approx(answer["probabilities"], abs=1e-4)


def test_all_nodes_ride_one_batch_and_what_is_remembered_costs_none(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis
) -> None:
    service = serve(spec, prediction_cache=True)
    batcher = service.app.state.engine.batcher
    for _ in range(2):
        spectrum(service.client, texts=TEXTS, variant="angry")
        assert batcher.rows_mixed + batcher.rows_on_vectors == 10 and batcher.batches <= 5


def test_steps_are_even_and_21_by_default(client: httpx.Client) -> None:
    assert spectrum(client, texts="ok", variant="angry")["ts"] == pytest.approx([k / 20 for k in range(21)])
    assert spectrum(client, texts="ok", variant="angry", steps=3)["ts"] == [0, 0.5, 1]


REFUSED = [
    ({}, 422, "'angry'|name a 'variant'"),
    ({"variant": "agnry"}, 404, "no variant 'agnry'; loaded: base, angry, polite"),
    ({"variant": "angry", "recipe": "angry..polite"}, 422, "either 'variant' or 'recipe'"),
    ({"recipe": "base"}, 422, "is no line: both ends are base"),
    ({"recipe": "angry..agnry"}, 404, "no variant 'agnry'"),
    ({"recipe": {"variant": "angry"}}, 422, "recipe: Input should be a valid string"),
    ({"variant": "angry", "ts": [0.5, 1.2]}, 422, "t = 1.2 is not between 0 and 1"),
    ({"variant": "angry", "ts": []}, 422, "ts: List should have at least 1 item"),
    ({"variant": "angry", "steps": 1}, 422, "steps: Input should be greater than or equal to 2"),
    ({"variant": "angry", "steps": 3, "ts": [0.5]}, 422, "either 'steps' or 'ts', not both"),
    ({"variant": "angry", "texts": []}, 422, "texts is empty"),
    ({"variant": "angry", "texts": ["ok", " "]}, 422, "text 1 is empty"),
    ({"variant": "angry", "texts": ["ok"] * 103}, 422, "103 texts along a line; at most 102 are taken"),
    ({"variant": "angry", "texts": ["ok"] * 50, "steps": 1001}, 422, "are 150150 scores; at most 100000"),
    ({"variant": "angry", "t": 0.4}, 422, "field 't' is unknown here"),
]


@pytest.fixture(scope="module")
def shared(spec: BankSpec, redis_url: str) -> Iterator[httpx.Client]:
    with alone(spec, redis_url) as client:
        yield client


@pytest.mark.parametrize(("body", "status", "sentence"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_answered_is_one_sentence(
    shared: httpx.Client, body: dict[str, object], status: int, sentence: str
) -> None:
    detail = problem(shared.post("/v1/spectrum", json={"texts": "ok", **body}), status)
    assert any(part in detail for part in sentence.split("|")), detail


def test_a_body_that_does_not_say_that_it_is_json_is_refused(shared: httpx.Client, folders: Path) -> None:
    problem(shared.post("/v1/spectrum", content=b'{"texts": "ok"}'), 415)
