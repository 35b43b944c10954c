"""The batcher on a real classifier: many callers, many blends, a full queue, callers who leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from app.errors import Overloaded
from app.models.bank import Bank
from app.models.classifier import Classifier, Mix
from app.models.operands import FixedOperands
from app.models.tokenizer import Row, TextTokenizer
from app.serving import coalescing
from app.serving.batcher import ENOUGH_TOKENS, FEW, TURNS, Batcher
from app.serving.blend_provider import Weights
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport, Vector, logits_of
from app.weights.arena import Vectors
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook

SLOTS = 64


class Watched(Classifier):
    """Notes how many rows each forward pass has; may be told to fail, and to take its time."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.sizes: list[int] = []
        self.fails = False
        self.seconds = 0.0

    def batch(self, rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor:
        self.sizes.append(len(rows))
        if self.fails:
            raise RuntimeError("out of memory")
        time.sleep(self.seconds)
        return super().batch(rows, weights)


@pytest.fixture(scope="module")
def slots(bank: Bank) -> Vectors:
    return bank.arena.new_slots(SLOTS)


@dataclass
class Scene:
    """A running batcher, the classifier that it ends in, and slots to build blends in."""

    batcher: Batcher
    classifier: Watched
    slots: list[Tensor]

    def weights(self, recipe: str, mixed: bool = False) -> Weights:
        """The weights of a recipe: built into a slot, or to be mixed."""
        arena = self.classifier.arena
        read = Cookbook(arena.variants).read(recipe)
        if mixed:
            return Weights("", read, Mix(arena.shares_of(read.weights)), "mixed", 0.0)
        slot = self.slots.pop()
        METHODS["linear"](arena, read.weights, slot)
        return Weights("", read, Vector(slot, read.text), "built", 0.0)


@pytest.fixture
def run(bank: Bank, slots: Vectors) -> Callable[..., None]:
    def run(
        scenario: Callable[[Scene], Awaitable[None]],
        tokens: int = 4096,
        rows: int = 1024,
        units: int = 1,
        wait: float = 9.0,
    ) -> None:
        async def main() -> None:
            classifier = Watched(bank)
            machine = ModelRunner(classifier, slots)
            with ThreadPoolExecutor(1) as thread:
                compute = ExecutorPool(machine, [ThreadTransport(machine, thread) for _ in range(units)])
                batcher = Batcher(compute, tokens, rows, wait)
                running = asyncio.create_task(batcher.run())
                await asyncio.wait_for(scenario(Scene(batcher, classifier, list(slots.rows))), 30)
                assert batcher.waiting_rows == 0 and compute.idle == units
                running.cancel()

        asyncio.run(main())

    return run


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode([f"{'late ' * (i % 9)} order {i}" for i in range(60)])


def test_every_caller_gets_the_logits_of_his_own_rows_and_recipe(run: Callable[..., None], rows: list[Row]) -> None:
    recipes = [f"angry@{i / 20}" for i in range(20)] + [f"polite@{i / 20}+angry@0.1" for i in range(20)]

    async def scenario(scene: Scene) -> None:
        calls = [(rows[i : i + 1 + i % 4], scene.weights(recipe, mixed=i % 3 > 0)) for i, recipe in enumerate(recipes)]
        batcher = scene.batcher
        results = await asyncio.gather(*(batcher.submit(*call) for call in calls))
        for (mine, _), recipe, result in zip(calls, recipes, results, strict=True):
            expected = scene.classifier.logits(scene.weights(recipe).operand.values, mine)
            torch.testing.assert_close(logits_of(result.logits), expected, rtol=0, atol=1e-5)
            assert result.queue_ms >= 0 and result.forward_ms > 0
        assert batcher.batches < len(calls) and batcher.rows_mixed and batcher.rows_on_vectors
        assert batcher.tokens == sum(len(row) for mine, _ in calls for row in mine)

    run(scenario)


def test_a_batch_keeps_to_its_token_budget(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.batcher.submit(rows, scene.weights("angry"))
        assert sum(scene.classifier.sizes) == len(rows) and max(scene.classifier.sizes) <= 16

    assert min(len(row) for row in rows) >= 4
    run(scenario, tokens=64)


def test_what_waits_is_shared_among_free_units(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.batcher.submit(rows, scene.weights("angry"))
        assert sum(scene.classifier.sizes) == len(rows) and max(scene.classifier.sizes) < 0.6 * len(rows)
        scene.classifier.sizes.clear()
        await scene.batcher.submit(rows[:3], scene.weights("angry"))
        assert scene.classifier.sizes == [3]  # too few to be worth splitting

    run(scenario, units=2)


def test_a_row_larger_than_the_budget_still_runs(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.batcher.submit(rows[:3], scene.weights("angry"))
        assert scene.classifier.sizes == [1, 1, 1]

    run(scenario, tokens=1)


def test_a_full_queue_refuses_and_what_waits_is_served(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        accepted = [asyncio.create_task(scene.batcher.submit(rows[:5], scene.weights("angry"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match="10 texts are waiting and 5 more do not fit in the queue of 12"
        ) as refusal:
            await scene.batcher.submit(rows[:5], scene.weights("angry"))
        assert refusal.value.retry_after >= 1
        assert all(len(scored.logits) == 5 for scored in await asyncio.gather(*accepted))
        await scene.batcher.submit(rows[:5], scene.weights("angry"))

    run(scenario, rows=12)


def test_a_storm_does_not_keep_batches_from_being_formed(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        weights, asked = scene.weights("angry"), []
        while not scene.classifier.sizes:  # every turn of the loop brings another caller
            asked.append(asyncio.create_task(scene.batcher.submit(rows[:1], weights)))
            await asyncio.sleep(0)
            assert len(asked) < 2_000
        assert scene.classifier.sizes[0] <= ENOUGH_TOKENS / len(rows[0]) + TURNS
        await asyncio.gather(*asked)

    run(scenario, rows=10**6)


def test_a_batch_waits_for_those_who_usually_come_back_at_once(
    run: Callable[..., None], rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "LEARNING", 1.0)

    async def scenario(scene: Scene) -> None:
        scene.classifier.seconds = 0.6
        weights = scene.weights("angry@0.5")

        async def caller(number: int) -> None:
            for _ in range(3):
                await scene.batcher.submit(rows[:1], weights)
                await asyncio.sleep(0.004 * number)  # the way there and back, one reply after the other

        await asyncio.gather(*(caller(number) for number in range(6)))
        assert scene.classifier.sizes == [6, 1, 6, 5]  # the first one who came back ran alone, and never again

    run(scenario)


def test_one_text_does_not_wait_for_somebodys_sixty(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        many = asyncio.create_task(scene.batcher.submit(rows, scene.weights("angry")))
        while not scene.classifier.sizes:
            await asyncio.sleep(0)
        await scene.batcher.submit(rows[:1], scene.weights("polite"))
        assert not many.done() and sum(scene.classifier.sizes) < len(rows)
        assert len((await many).logits) == sum(scene.classifier.sizes) - 1 == len(rows)

    run(scenario, tokens=64)


def test_who_would_wait_too_long_is_refused_at_once(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        weights = scene.weights("angry")
        await scene.batcher.submit(rows, weights)  # now it is known what a row takes
        accepted = asyncio.create_task(scene.batcher.submit(rows, weights))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"60 texts are waiting and the next would wait for \d+ ms"):
            await scene.batcher.submit(rows[:1], weights)
        assert len((await accepted).logits) == 60 and scene.batcher.refused == 1
        await scene.batcher.submit(rows[:1], weights)  # where nobody waits, nobody is refused

    run(scenario, wait=1e-9)


def test_rows_on_other_weights_count_for_who_would_wait_for_them(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        one, other, third = (scene.weights(recipe) for recipe in ("angry", "polite", "polite@0.5"))
        scene.classifier.seconds = 0.06
        for _ in range(FEW):  # now it is known what a row takes: a millisecond
            await scene.batcher.submit(rows, one)
        accepted = [asyncio.create_task(scene.batcher.submit(rows, weights)) for weights in (one, other)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"120 texts are waiting and the next would wait for 1\d\d ms"):
            await scene.batcher.submit(rows[:1], third)
        accepted.append(asyncio.create_task(scene.batcher.submit(rows[:1], one)))
        accepted.append(asyncio.create_task(scene.batcher.submit(rows[:1], third, follows=True)))
        assert [len(scored.logits) for scored in await asyncio.gather(*accepted)] == [60, 60, 1, 1]

    run(scenario, wait=0.1)


def test_rows_on_other_weights_wait_for_a_batch_of_a_storm_and_not_for_all(
    run: Callable[..., None], rows: list[Row]
) -> None:
    async def scenario(scene: Scene) -> None:
        storm, few = scene.weights("angry"), scene.weights("polite")
        many = asyncio.create_task(scene.batcher.submit(rows * 10, storm))
        one = asyncio.create_task(scene.batcher.submit(rows[:1], few))
        await one
        assert not many.done() and sum(len(row) for row in rows * 10) > 4 * ENOUGH_TOKENS
        assert scene.batcher.tokens <= 2 * ENOUGH_TOKENS  # one batch without it, and its own
        await many

    run(scenario)


def test_a_failed_callers_rows_wait_no_more(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.classifier.fails = True
        other = asyncio.create_task(scene.batcher.submit(rows, scene.weights("angry")))
        with pytest.raises(RuntimeError):
            await other
        assert scene.batcher.waiting_rows == 0 and scene.classifier.sizes == [8, 4, 2, 1, 1]

    run(scenario, tokens=64)


def test_rows_of_callers_who_left_are_not_run(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        callers = [asyncio.create_task(scene.batcher.submit(rows[:1], scene.weights("angry"))) for _ in range(10)]
        await asyncio.sleep(0)
        for caller in callers[1:]:
            caller.cancel()
        await callers[0]
        await scene.batcher.submit(rows[:1], scene.weights("angry"))
        assert sum(scene.classifier.sizes) == 2

    run(scenario)


def test_who_leaves_gives_his_place_to_somebody_else(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        weights = scene.weights("angry@0.4")
        stays, leaves = (asyncio.create_task(scene.batcher.submit(rows, weights)) for _ in range(2))
        await asyncio.sleep(0)
        assert scene.batcher.waiting_rows == 2 * len(rows)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert 0 < scene.batcher.waiting_rows <= len(rows)
        await stays
        assert scene.batcher.waiting_rows == 0

    run(scenario, tokens=1)


def test_a_failed_batch_fails_its_callers_and_the_next_one_runs(run: Callable[..., None], rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.classifier.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            await scene.batcher.submit(rows, scene.weights("angry"))
        scene.classifier.fails = False
        assert len((await scene.batcher.submit(rows[:2], scene.weights("angry"))).logits) == 2

    run(scenario, tokens=64)
