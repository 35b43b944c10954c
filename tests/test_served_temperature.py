"""A recipe's temperature over HTTP: it divides logits, and shares the blend and all that is remembered of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pico
import pytest
import torch
from conftest import Service
from redis import Redis
from test_http import TEXTS, predict, problem
from transformers import AutoModelForSequenceClassification

from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

FUNCTIONS = {
    "softmax": lambda z: torch.softmax(z, dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda z: z,
}


@pytest.fixture
def service(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Service:
    return serve(spec, prediction_cache=True)


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.client


def scores(client: httpx.Client, recipe: object, function: str) -> torch.Tensor:
    """Scores (N, C) of TEXTS."""
    answers = predict(client, texts=TEXTS, recipe=recipe, function=function)["predictions"]
    return torch.tensor([[answer["probabilities"][label] for label in pico.LABELS] for answer in answers])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("recipe", ["angry@0.4", "base"])
def test_logits_are_divided_by_it_whatever_makes_scores_of_them(
    client: httpx.Client, recipe: str, function: str
) -> None:
    logits = scores(client, recipe, "none")
    got = scores(client, f"{recipe};temperature=1.3", function)
    torch.testing.assert_close(got, FUNCTIONS[function](logits / 1.3))


def test_in_a_list_every_recipe_has_its_own(client: httpx.Client) -> None:
    recipes = ["angry@0.4;temperature=0.5", "angry@0.4"]
    mixed = scores(client, recipes, "none")
    logits = scores(client, "angry@0.4", "none")
    torch.testing.assert_close(mixed, logits / torch.tensor([[0.5], [1.0]]))
    reply = predict(client, texts=TEXTS, recipe=recipes)
    assert reply["recipe"] == recipes and len(set(reply["key"])) == 1


def test_recipes_that_differ_in_it_alone_share_one_blend_and_what_is_remembered(service: Service) -> None:
    client, engine = service.client, service.app.state.engine
    first = predict(client, texts=TEXTS, recipe="angry@0.4;temperature=1.3")
    assert first["recipe"] == "angry@0.4;temperature=1.3" and not any(p["cached"] for p in first["predictions"])
    for recipe in ("angry@0.4", {"variant": "angry", "t": 0.4, "temperature": 2}):
        again = predict(client, texts=TEXTS, recipe=recipe)
        assert again["key"] == first["key"] and all(p["cached"] for p in again["predictions"])
    assert engine.batcher.rows_on_vectors + engine.batcher.rows_mixed == len(TEXTS)
    built = client.post("/v1/blends", json={"recipe": "angry@0.4;temperature=3"}).json()
    assert built["recipe"] == "angry@0.4" and built["key"] == first["key"]
    assert [blend["recipe"] for blend in client.get("/v1/blends").json()["blends"]] == ["angry@0.4"]


def test_an_alias_keeps_it(client: httpx.Client) -> None:
    logits = scores(client, "angry@0.4", "none")
    moved = client.put("/v1/aliases/prod", json={"recipe": "angry@0.4;temperature=1.3"})
    assert moved.status_code == 201 and moved.json()["recipe"] == "angry@0.4;temperature=1.3"
    torch.testing.assert_close(scores(client, "@prod", "none"), logits / 1.3)
    assert predict(client, texts="ok")["recipe"] == "angry@0.4;temperature=1.3"
    client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"})
    torch.testing.assert_close(scores(client, "@prod", "none"), logits)


def test_a_file_has_it_where_it_is_named(client: httpx.Client, folders: Path, tmp_path: Path) -> None:
    key = client.post("/v1/blends", json={"recipe": "angry@0.4;temperature=1.3"}).json()["key"]
    models = []
    for query in ("", "?temperature=1.3"):
        folder = tmp_path / f"export{len(models)}"
        folder.mkdir()
        (folder / "config.json").write_bytes((folders / "base" / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes(client.get(f"/v1/blends/{key}/weights{query}").content)
        models.append(AutoModelForSequenceClassification.from_pretrained(folder).eval())
    with torch.inference_mode():
        plain, divided = (m(**pico.tokenizer()(TEXTS[0], return_tensors="pt")).logits for m in models)
    torch.testing.assert_close(divided, plain / 1.3)
    torch.testing.assert_close(plain[0], scores(client, "angry@0.4", "none")[0], atol=1e-4, rtol=0)
    refused = problem(client.get(f"/v1/blends/{key}/weights?temperature=0"), 422)
    assert refused == "temperature = 0.0 is out of bounds; it may go from 0.05 to 20"


def test_a_bad_one_is_refused_in_one_sentence(client: httpx.Client) -> None:
    body = {"texts": "ok", "recipe": "angry@0.4;temperature=0"}
    assert "may go from 0.05 to 20" in problem(client.post("/v1/predict", json=body), 422)
    body = {"texts": "ok", "recipe": "angry;temperature=2"}
    assert "leave the temperature out" in problem(client.post("/v1/spectrum", json=body), 422)
