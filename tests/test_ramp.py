"""t that runs over the layers: where each parameter lies, and the same logits built, mixed, and by the definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
from conftest import Service
from redis import Redis
from test_classifier import TEXTS, blended
from test_http import predict, problem
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from app.models.bank import Bank, BankSpec, load_bank
from app.models.checkpoint import Source
from app.models.classifier import Classifier, Mix
from app.models.tokenizer import TextTokenizer
from app.weights.layer_depth import depths, stretches
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

RECIPES = ["angry@0.1:0.9", "angry..polite@0.2:0.7", "polite@0:1", "angry@0.3+polite@1:-0.5", "angry@1:0"]


@pytest.fixture(scope="module", params=pico.CONFIGS)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write_bank(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def this_bank(architecture: Path) -> Bank:
    return load_bank(BankSpec.from_toml(architecture / "bank.toml"), torch.device("cpu"))


def is_first(name: str) -> bool:
    """Whether a parameter of a model of two layers lies at the ramp's start."""
    return any(part in name for part in ("embed", "layer.0.", "layers.0.", "deberta.encoder.LayerNorm"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_are_those_of_checkpoints_blended_tensor_by_tensor(
    architecture: Path, this_bank: Bank, recipe: str
) -> None:
    weights = Cookbook(this_bank.variants).read(recipe).weights
    members = {m: AutoModelForSequenceClassification.from_pretrained(architecture / m) for m in weights}
    theirs = members["base"] if "base" in members else next(iter(members.values()))
    states = {member: {k: v.clone() for k, v in model.state_dict().items()} for member, model in members.items()}
    for name, tensor in theirs.state_dict().items():
        shares = {m: (w[0] if is_first(name) else w[1]) if isinstance(w, tuple) else w for m, w in weights.items()}
        tensor.copy_(sum(share * states[m][name] for m, share in shares.items()))
    rows = TextTokenizer(this_bank.tokenizer, this_bank.config, max_tokens=64).encode(TEXTS)
    ours = Classifier(this_bank).logits(blended(this_bank, weights).vector, rows)
    for text, row in zip(TEXTS, ours, strict=True):
        inputs = this_bank.tokenizer(*([text] if isinstance(text, str) else text), truncation=True, return_tensors="pt")
        with torch.inference_mode():
            torch.testing.assert_close(row, theirs.eval()(**inputs).logits[0], rtol=0, atol=1e-4)


def test_ramps_and_plain_recipes_ride_one_batch_and_have_the_logits_of_their_built_blends(this_bank: Bank) -> None:
    classifier = Classifier(this_bank)
    if not classifier.mixes:
        return
    recipes = [*RECIPES, "angry@0.4", "base", "polite@0.2:0.3", "angry@0.5+polite@0.5", "angry@0.9:0.9"]
    weights = [Cookbook(this_bank.variants).read(recipe).weights for recipe in recipes]
    rows = TextTokenizer(this_bank.tokenizer, this_bank.config, 64).encode(TEXTS * 2)
    mixed = classifier.batch(rows, [Mix.of(w, this_bank.arena) for w in weights])
    for row, w, logits in zip(rows, weights, mixed, strict=True):
        built = classifier.logits(blended(this_bank, w).vector, [row])[0]
        torch.testing.assert_close(logits, built, rtol=0, atol=2e-5)


def test_stretches_cover_the_vector_and_every_parameter_lies_in_the_one_of_its_depth(this_bank: Bank) -> None:
    layout = this_bank.arena.layout
    found = stretches(layout)
    assert found[0].start == 0 and found[-1].stop == layout.size
    assert [s.stop for s in found[:-1]] == [s.start for s in found[1:]]
    assert len(found) <= 5, "two layers, and what is before and after them"
    depth = depths(layout)
    assert {name for name, d in depth.items() if d == 0} == {name for name in layout.names if is_first(name)}
    for place in layout.places:
        (own,) = (s for s in found if s.start <= place.block_start < s.stop)
        assert own.depth == depth[place.name] and place.block_stop <= own.stop


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Four layers, and a base without a head."""
    folder = tmp_path_factory.mktemp("deep")
    config = BertConfig.from_dict({**pico.CONFIGS["bert"].to_dict(), "num_hidden_layers": 4})
    config.id2label, config.label2id = dict(enumerate(pico.LABELS)), {l: i for i, l in enumerate(pico.LABELS)}  # noqa: E741
    torch.manual_seed(5)
    for name in ("angry", "polite"):
        pico.save(AutoModelForSequenceClassification.from_config(config), folder / name)
    BertModel(config).save_pretrained(folder / "base")
    pico.tokenizer().save_pretrained(folder / "base")
    variants = {name: Source(str(folder / name)) for name in ("angry", "polite")}
    return load_bank(BankSpec(Source(str(folder / "base")), variants), torch.device("cpu"))


def test_t_runs_linearly_from_the_first_to_the_last_layer(deep: Bank) -> None:
    weights = Cookbook(deep.variants).read("angry@0.1:0.7").weights
    built = blended(deep, weights).vector
    layout, base, angry = deep.arena.layout, deep.arena["base"], deep.arena["angry"]
    expected = {"embeddings.word": 0.1, "layer.0.": 0.1, "layer.1.": 0.3, "layer.2.": 0.5, "layer.3.": 0.7}
    for part, t in expected.items():
        for name in (name for name in layout.names if part in name):
            whole = torch.lerp(layout.view(base, name), layout.view(angry, name), t)
            torch.testing.assert_close(layout.view(built, name), whole, rtol=0, atol=1e-6)
    # The head is the variant's, as only variants have one.
    assert torch.equal(layout.view(built, "classifier.weight"), layout.view(angry, "classifier.weight"))


def test_a_head_that_only_variants_have_is_mixed_as_it_is_built(deep: Bank) -> None:
    classifier = Classifier(deep)
    rows = TextTokenizer(deep.tokenizer, deep.config, 64).encode(TEXTS)
    weights = [Cookbook(deep.variants).read(recipe).weights for recipe in RECIPES]
    mixed = classifier.batch(rows, [Mix.of(w, deep.arena) for w in weights])
    for row, w, logits in zip(rows, weights, mixed, strict=True):
        built = classifier.logits(blended(deep, w).vector, [row])[0]
        torch.testing.assert_close(logits, built, rtol=0, atol=2e-5)


def test_the_ends_of_a_ramp_are_exact(this_bank: Bank) -> None:
    arena = this_bank.arena
    built = blended(this_bank, Cookbook(this_bank.variants).read("angry@0:1").weights).vector
    for name, depth in depths(arena.layout).items():
        member = arena["angry" if depth else "base"]
        assert torch.equal(arena.layout.view(built, name), arena.layout.view(member, name)), name
    plain, whole = blended(this_bank, {"base": 0.6, "angry": 0.4}).vector, arena.new_vector()
    METHODS["linear"](arena, {"base": (0.6, 0.6), "angry": (0.4, 0.4)}, whole)
    torch.testing.assert_close(whole, plain, rtol=0, atol=1e-7)


def test_a_ramp_is_served_like_any_recipe(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    client = serve(spec, workers=1).client
    cold = predict(client, texts=["late order", "ok"], recipe=["angry@0.1:0.9", {"t": {"polite": [0.3, 0.2]}}])
    assert cold["recipe"] == ["angry@0.1:0.9", "polite@0.3:0.2"]
    assert [p["t"] for p in cold["predictions"]] == [{"angry": [0.1, 0.9]}, {"polite": [0.3, 0.2]}]
    built = client.post("/v1/blends", json={"recipe": "angry@0.1:0.9"})
    assert built.status_code in (200, 201) and built.json()["recipe"] == "angry@0.1:0.9"
    warm = predict(client, texts="late order", recipe="angry@0.1:0.9")
    assert warm["key"] == cold["key"][0] == built.json()["key"] and warm["source"] == "memory"
    for answer in (cold, warm):
        assert answer["predictions"][0]["probabilities"] == pytest.approx(
            warm["predictions"][0]["probabilities"], abs=1e-5
        )
    plain = predict(client, texts="late order", recipe="angry@0.5")
    assert plain["predictions"][0]["probabilities"] != pytest.approx(warm["predictions"][0]["probabilities"], abs=1e-4)
    body = {"texts": "ok", "recipe": "angry@0.1:0.9"}
    assert "over the layers" in problem(client.post("/v1/spectrum", json=body), 422)
