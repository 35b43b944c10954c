"""A method that is registered and is not linear: from its text to the weights that a request runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

import pytest
import torch
from conftest import Service, running
from torch import Tensor

from app.errors import BadRecipe
from app.main import build_engine
from app.models.bank import Bank, BankSpec
from app.serving.executor import Vector
from app.settings import Settings
from app.sweep.logits.line import Line
from app.weights.arena import Arena, Share
from app.weights.layer_depth import depths
from app.weights.methods import METHODS, Method, Parameter
from app.weights.recipe import Cookbook

COOKBOOK = Cookbook(["airline", "finance"])


def slerp(first: Tensor, last: Tensor, t: float, density: float) -> Tensor:
    """`density` of the way along the arc, the rest along the line between two tensors."""
    line = torch.lerp(first, last, t)
    cosine = torch.dot(first.flatten(), last.flatten()) / (first.norm() * last.norm()).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()
    if angle < 1e-4:
        return line
    arc = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * last) / torch.sin(angle)
    return torch.lerp(line, arc, density)


def slerp_tensors(arena: Arena, weights: Mapping[str, Share], out: Tensor, density: float) -> None:
    first, last = (name for name in arena.names if name in weights)
    for name, depth in depths(arena.layout).items():
        (t,) = (share for share in arena.shares_of({last: weights[last]}, depth) if share)
        ends = (arena.layout.view(arena[member], name) for member in (first, last))
        arena.layout.view(out, name).copy_(slerp(*ends, t, density))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(
        METHODS, "slerp", Method(slerp_tensors, is_linear=False, parameters={"density": Parameter(0.8, 0, 1)})
    )
    yield


@pytest.mark.parametrize(
    ("canonical", "spellings"),
    [
        (
            "slerp:finance@0.4;density=0.3",
            [
                "slerp:finance@0.4;density=0.3",
                " slerp : finance@.40 ; density = 0.30 ",
                {"method": "slerp", "t": {"finance": 0.4}, "density": 0.3},
                {"method": "slerp", "variant": "finance", "t": 0.4, "density": 0.3, "temperature": 1},
            ],
        ),
        ("slerp:finance@0.4;density=0.8", ["slerp:finance@0.4", {"method": "slerp", "variant": "finance", "t": 0.4}]),
        (
            "slerp:airline@0.6+finance@0.4;density=0;temperature=1.3",
            ["slerp:airline..finance@0.4;temperature=1.3;density=0"],
        ),
        ("slerp:finance@0.1:0.9;density=0.8", ["slerp:finance@0.1:0.9"]),
        ("base", ["slerp:finance@0", "slerp:base;density=0.1", {"method": "slerp", "t": {}}]),
    ],
)
def test_text_and_json_give_one_recipe_whose_text_reads_back(canonical: str, spellings: list[object]) -> None:
    for spelling in spellings:
        recipe = COOKBOOK.read(spelling)
        assert recipe.text == canonical and COOKBOOK.read(recipe.text) == recipe


def test_method_and_parameters_are_part_of_the_key_and_the_temperature_is_not() -> None:
    texts = ["finance@0.4", "slerp:finance@0.4", "slerp:finance@0.4;density=0.3", "slerp:finance@0.5;density=0.3"]
    assert len({COOKBOOK.read(text).key("bank") for text in texts}) == len(texts)
    tempered = COOKBOOK.read("slerp:finance@0.4;temperature=2")
    assert tempered.key("bank") == COOKBOOK.read("slerp:finance@0.4").key("bank")
    assert tempered.blend == COOKBOOK.read("slerp:finance@0.4")


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("ties:finance@0.4", "no method 'ties'; served: linear, slerp"),
        ({"method": "ties", "t": {"finance": 0.4}}, "no method 'ties'; served: linear, slerp"),
        ({"method": ["slerp"], "t": {"finance": 0.4}}, "no method ['slerp']; served: linear, slerp"),
        ("slerp:finance@0.4;k=3", "parameter 'k' is unknown; slerp takes density, temperature"),
        ("finance@0.4;density=0.3", "parameter 'density' is unknown; linear takes temperature"),
        ("slerp:finance@0.4;density=1.5", "density = 1.5 is out of bounds; it may go from 0 to 1"),
        ("slerp:finance@0.4;density=much", "density is 'much'; it must be a number such as 0.3"),
        ("slerp:finance@0.4;density=0.1;density=0.2", "the recipe names the density twice"),
        (
            {"method": "slerp", "t": {"finance": 0.4}, "k": 3},
            "recipe field 'k' is unknown; known: density, from, method, t, temperature, variant",
        ),
        ({"t": {"finance": 0.4}, "density": 0.3}, "recipe field 'density' is unknown; known: from, method, t"),
        ({"method": "slerp", "t": {"finance": 0.4}, "density": float("nan")}, "density = NaN is out of bounds"),
        ({"method": "slerp", "t": {"finance": 0.4}, "density": True}, "density is True; it must be a number"),
    ],
)
def test_a_refusal_lists_what_exists(recipe: object, sentence: str) -> None:
    with pytest.raises(BadRecipe) as refused:
        COOKBOOK.read(recipe)
    assert sentence in str(refused.value)


def test_a_sweep_s_line_stays_linear() -> None:
    with pytest.raises(BadRecipe, match="names a method that is not linear"):
        Line.read("slerp:finance@0.4", COOKBOOK)


def expected(bank: Bank, recipe: str) -> Tensor:
    """The blend (P,), tensor by tensor."""
    read = Cookbook(bank.variants).read(recipe)
    out = torch.zeros_like(bank.arena["base"])
    slerp_tensors(bank.arena, read.weights, out, **read.parameter_values)
    return out


@pytest.mark.parametrize("text", ["slerp:angry@0.4;density=0.3", "slerp:angry..polite@0.4", "slerp:angry@0.1:0.9"])
def test_it_is_built_once_never_mixed_and_gives_its_own_weights(spec: BankSpec, text: str) -> None:
    async def main() -> None:
        async with AsyncExitStack() as resources:
            settings = Settings(memory_tier_mib=1, redis_blends="never", workers=0, prediction_cache=False)
            engine = await build_engine(settings, spec, resources)
            assert engine.compute.mixes
            engine.blends.scheduler.reuse = 0.0  # no build of a linear recipe would pay
            recipe, linear = engine.cookbook.read(text), engine.cookbook.read(text.removeprefix("slerp:").split(";")[0])
            assert (await engine.predict(["late order"], linear)).source == "mixed"
            before = engine.blends.scheduler.costs.build
            first = await engine.predict(["late order"], recipe)
            again = await engine.predict(["late order"] * 2, [recipe, linear])
            assert first.source == "built" and engine.blends.counters()["build"]["builds"] == 1
            assert engine.blends.scheduler.costs.build == before, "it says nothing of what linear builds cost"
            assert again.predictions[0].scores == pytest.approx(first.predictions[0].scores, abs=1e-6)
            async with engine.blends.lease(recipe) as weights:
                assert isinstance(weights.operand, Vector)
                assert torch.equal(weights.operand.values, expected(engine.bank, text))
            layout = engine.bank.arena.layout
            async with engine.blends.lease(linear) as mixed:
                assert isinstance(mixed.operand, Vector)
                assert not torch.allclose(
                    layout.views(mixed.operand.values)["bert.embeddings.word_embeddings.weight"],
                    layout.views(expected(engine.bank, text))["bert.embeddings.word_embeddings.weight"],
                )

    asyncio.run(main())


def ask(service: Service, recipe: object) -> dict[str, object]:
    reply = service.client.post("/v1/predict", json={"texts": "late order", "recipe": recipe, "function": "none"})
    assert reply.status_code == 200, reply.text
    answer: dict[str, object] = reply.json()
    return answer


def test_it_is_served_over_http_by_text_json_and_alias(spec: BankSpec) -> None:
    with running(spec, redis_blends="never", memory_tier_mib=8, prediction_cache=False) as service:
        text = ask(service, "slerp:angry@0.4;density=0.3")
        assert (text["source"], text["recipe"]) == ("built", "slerp:angry@0.4;density=0.3")
        json = ask(service, {"method": "slerp", "variant": "angry", "t": 0.4, "density": 0.3})
        assert json["key"] == text["key"] and json["predictions"] == text["predictions"]
        assert service.client.put("/v1/aliases/prod", json={"recipe": text["recipe"]}).status_code == 201
        assert ask(service, "@prod")["key"] == text["key"]
        assert ask(service, "angry@0.4")["predictions"] != text["predictions"]
        reply = service.client.get(f"/v1/blends/{text['key']}/weights")
        assert reply.status_code == 200
        refused = service.client.post("/v1/predict", json={"texts": "ok", "recipe": "ties:angry@0.4"})
        assert refused.status_code == 422 and refused.json()["detail"] == "no method 'ties'; served: linear, slerp"
