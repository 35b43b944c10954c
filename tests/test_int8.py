"""int8 products: near to float32, the same in any company, for hot vectors only, and never of an earlier blend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import Service

from app.models import int8
from app.models.bank import Bank, BankSpec
from app.models.classifier import Classifier
from app.models.int8 import Int8Block, Int8Copies, Quantised
from app.models.operands import FixedOperands, product
from app.models.tokenizer import Row, TextTokenizer
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport, Vector, logits_of
from app.weights.methods import METHODS

pytestmark = pytest.mark.skipif(not int8.int8_is_fast(), reason="this processor has no int8 products (VNNI)")


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    texts = [f"{'late ' * (i % 9)} order {i}, they never answer" for i in range(40)]
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode(texts)


def copies(bank: Bank, room: int = 8) -> Int8Copies:
    made = Classifier(bank).int8_copies(room)
    assert made is not None
    return made


@pytest.mark.parametrize("activation", [None, "gelu", "relu", "tanh"])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_is_within_the_error_of_its_bytes(activation: str | None, add: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(17, 96) * torch.logspace(-3, 3, 17)[:, None], torch.randn(96, 40), torch.randn(40)
    more = torch.randn(17, 40) if add else None
    ours = Int8Block.of(weight, bias).product(x, activation, more)
    theirs = product(x, weight, bias) + (more if more is not None else 0)
    if activation:
        theirs = {"gelu": torch.nn.functional.gelu, "relu": torch.relu, "tanh": torch.tanh}[activation](theirs)
    # Each of 96 terms is off by at most half a step of the token and half a step of the channel.
    steps = x.abs().amax(1, keepdim=True) * weight.abs().amax(0) / 127
    assert ((ours - theirs).abs() <= 96 * steps + 1e-5).all()
    assert ((ours - theirs).abs().mean(1) <= 2 * steps.mean(1) * 96**0.5 + 1e-5).all()


def test_logits_are_near_those_of_float32(bank: Bank, rows: list[Row]) -> None:
    assert bank.family is not None
    classifier = Classifier(bank)
    quantised = Quantised(bank.arena.layout, bank.arena["angry"], bank.family.large_blocks)
    ours, theirs = classifier.batch(rows, [quantised] * len(rows)), classifier.logits(bank.arena["angry"], rows)
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
    alone = torch.cat([classifier.batch([row], [quantised]) for row in rows])
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


def test_only_hot_vectors_get_a_copy_and_only_so_many(bank: Bank) -> None:
    kept = copies(bank, room=2)
    vectors = [FixedOperands(bank.arena.layout, row) for row in bank.arena.rows]
    enough = int8.WORTH_TOKENS
    assert kept.of(vectors[0], "a", enough - 1) is vectors[0]
    first = kept.of(vectors[0], "a", 1)
    assert isinstance(first, Quantised) and kept.of(vectors[0], "a", 1) is first
    second, _ = kept.of(vectors[1], "b", enough), kept.of(vectors[0], "a", 1)
    kept.of(vectors[2], "c", enough)  # takes the place of the one unused longest
    assert kept.of(vectors[0], "a", 1) is first
    assert kept.of(vectors[1], "b", 1) is vectors[1] is not second  # and has to earn another


def test_a_slot_with_another_blend_is_quantised_anew(bank: Bank, rows: list[Row]) -> None:
    async def main() -> None:
        machine = ModelRunner(Classifier(bank), bank.arena.new_slots(1), int8=True)
        slot = machine.vectors[-1].vector
        with ThreadPoolExecutor(1) as thread:
            compute = ExecutorPool(machine, [ThreadTransport(machine, thread)])
            async with compute.unit() as unit:
                for name in ("angry", "polite"):
                    await unit.build("linear", {"base": 0.5, name: 0.5}, slot)
                    operand = [Vector(slot, name)] * len(rows)
                    cold, _ = await unit.forward(rows[:1], operand[:1])
                    for _ in range(-(-int8.WORTH_TOKENS // sum(len(row) for row in rows)) + 1):
                        hot, _ = await unit.forward(rows, operand)
                    expected = bank.arena.new_vector()
                    METHODS["linear"](bank.arena, {"base": 0.5, name: 0.5}, expected)
                    exact = machine.classifier.logits(expected, rows)
                    torch.testing.assert_close(logits_of(cold), exact[:1], rtol=0, atol=1e-6)
                    quantised = logits_of(hot)
                    assert (
                        not torch.equal(quantised, exact) and (quantised - exact).abs().max() < 0.05 * exact.abs().max()
                    )

    asyncio.run(main())


def test_a_service_with_int8_answers_nearly_the_same(serve: Callable[..., Service], spec: BankSpec) -> None:
    body = {"texts": ["they never answer. awful", "great, thanks"] * 200, "recipe": "angry@0.4"}
    exact, near = serve(spec), serve(spec, cpu_int8="on", workers=1)
    for _ in range(3):
        ours = near.client.post("/v1/predict", json=body).json()["predictions"]
    theirs = exact.client.post("/v1/predict", json=body).json()["predictions"]
    pairs = [(one["probabilities"], other["probabilities"]) for one, other in zip(ours, theirs, strict=True)]
    largest = max(abs(one[label] - other[label]) for one, other in pairs for label in one)
    assert 0 < largest < 0.03


def test_copies_are_let_go_where_memory_is_short_and_made_anew(bank: Bank) -> None:
    kept, fixed = copies(bank), Classifier(bank).fixed(bank.arena["angry"])
    assert isinstance(kept.of(fixed, "angry", int8.WORTH_TOKENS), Quantised)
    kept.clear()
    assert kept.of(fixed, "angry", 1) is fixed
    assert isinstance(kept.of(fixed, "angry", int8.WORTH_TOKENS), Quantised)
