"""The batcher on a real classifier: many callers, many blends, a full queue, callers who leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from app.errors import Overloaded
from app.models.bank import Bank
from app.models.classifier import Classifier
from app.models.tokens import Row, TextEncoder
from app.serving.batcher import Batcher
from app.serving.blends import Weights
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook


class Watched(Classifier):
    """Notes how many rows each forward pass has; may be told to fail or to wait."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.sizes: list[int] = []
        self.fails = False

    def logits(self, vector: Tensor, rows: list[Row]) -> Tensor:  # type: ignore[override]
        self.sizes.append(len(rows))
        if self.fails:
            raise RuntimeError("out of memory")
        return super().logits(vector, rows)

    def mixed(self, weights: Tensor, rows: list[Row], slots: list[Tensor]) -> Tensor:  # type: ignore[override]
        self.sizes.append(len(rows))
        return super().mixed(weights, rows, slots)


def run(
    bank: Bank, scenario: Callable[[Batcher, Watched], Awaitable[None]], tokens: int = 4096, rows: int = 1024
) -> None:
    async def main() -> None:
        classifier = Watched(bank)
        with ThreadPoolExecutor(1) as compute:
            batcher = Batcher(classifier, 3, compute, tokens, rows)
            running = asyncio.create_task(batcher.run())
            await asyncio.wait_for(scenario(batcher, classifier), 30)
            assert batcher.waiting_rows == 0
            running.cancel()

    asyncio.run(main())


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    return TextEncoder(bank.tokenizer, bank.config, 64).encode([f"{'late ' * (i % 9)} order {i}" for i in range(60)])


def weights(bank: Bank, recipe: str, mixed: bool = False) -> Weights:
    """The weights of a recipe: built into a vector, or to be mixed."""
    read = Cookbook(bank.variants).read(recipe)
    if mixed:
        return Weights("", read, None, bank.arena.weights_of(read.weights), "mixed", 0.0)
    slot = bank.arena.new_vector()
    METHODS["linear"](bank.arena, read.weights, slot)
    return Weights("", read, slot, None, "built", 0.0)


def angry(bank: Bank) -> Weights:
    return weights(bank, "angry")


def test_every_caller_gets_the_logits_of_his_own_rows_and_recipe(bank: Bank, rows: list[Row]) -> None:
    recipes = [f"angry@{i / 20}" for i in range(20)] + [f"polite@{i / 20}+angry@0.1" for i in range(20)]
    calls = [(rows[i : i + 1 + i % 4], weights(bank, recipe, mixed=i % 3 > 0)) for i, recipe in enumerate(recipes)]

    async def scenario(batcher: Batcher, classifier: Watched) -> None:
        results = await asyncio.gather(*(batcher.submit(*call) for call in calls))
        for (mine, _), recipe, result in zip(calls, recipes, results, strict=True):
            vector = weights(bank, recipe).vector
            assert vector is not None
            torch.testing.assert_close(result.logits, Classifier(bank).logits(vector, mine), rtol=0, atol=1e-5)
            assert result.queue_ms >= 0 and result.forward_ms > 0
        assert batcher.batches < len(calls) and batcher.rows_mixed and batcher.rows_on_vectors
        assert batcher.tokens == sum(len(row) for mine, _ in calls for row in mine)

    run(bank, scenario)


def test_a_batch_keeps_to_its_token_budget(bank: Bank, rows: list[Row]) -> None:
    async def scenario(batcher: Batcher, classifier: Watched) -> None:
        await batcher.submit(rows, angry(bank))
        assert sum(classifier.sizes) == len(rows) and max(classifier.sizes) <= 16

    assert min(len(row) for row in rows) >= 4
    run(bank, scenario, tokens=64)


def test_a_row_larger_than_the_budget_still_runs(bank: Bank, rows: list[Row]) -> None:
    async def scenario(batcher: Batcher, classifier: Watched) -> None:
        await batcher.submit(rows[:3], angry(bank))
        assert classifier.sizes == [1, 1, 1]

    run(bank, scenario, tokens=1)


def test_a_full_queue_refuses_and_what_waits_is_served(bank: Bank, rows: list[Row]) -> None:
    async def scenario(batcher: Batcher, classifier: Watched) -> None:
        accepted = [asyncio.create_task(batcher.submit(rows[:5], angry(bank))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match="10 texts are waiting and 5 more do not fit in the queue of 12"
        ) as refusal:
            await batcher.submit(rows[:5], angry(bank))
        assert refusal.value.retry_after >= 1
        assert all(len(scored.logits) == 5 for scored in await asyncio.gather(*accepted))
        await batcher.submit(rows[:5], angry(bank))

    run(bank, scenario, rows=12)


def test_rows_of_callers_who_left_are_not_run(bank: Bank, rows: list[Row]) -> None:
    async def scenario(batcher: Batcher, classifier: Watched) -> None:
        callers = [asyncio.create_task(batcher.submit(rows[:1], angry(bank))) for _ in range(10)]
        await asyncio.sleep(0)
        for caller in callers[1:]:
            caller.cancel()
        await callers[0]
        await batcher.submit(rows[:1], angry(bank))
        assert sum(classifier.sizes) == 2

    run(bank, scenario)


def test_a_failed_batch_fails_its_callers_and_the_next_one_runs(bank: Bank, rows: list[Row]) -> None:
    async def scenario(batcher: Batcher, classifier: Watched) -> None:
        classifier.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.submit(rows, angry(bank))
        classifier.fails = False
        assert (await batcher.submit(rows[:2], angry(bank))).logits.shape == (2, 3)

    run(bank, scenario, tokens=64)
