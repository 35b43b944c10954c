from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.models.bank import Bank
from app.models.classifier import Classifier
from app.models.tokenizer import TextTokenizer
from app.serving import build_policy
from app.serving.build_policy import BuildPolicy, Costs, measure
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chooser(clock: Clock) -> BuildPolicy:
    """A build costs as much as mixing 100 tokens of one variant."""
    return BuildPolicy(Costs(build=100e-6, token=1e-6), clock)


def wants(chooser: BuildPolicy, key: str, tokens: int, members: int = 2) -> bool:
    return chooser.pays(chooser.expect(key, tokens), members)


def test_the_first_recipe_of_a_service_is_built(chooser: BuildPolicy) -> None:
    assert wants(chooser, "a", tokens=20)


def test_where_every_request_brings_its_own_t_none_is_built(chooser: BuildPolicy) -> None:
    for i in range(200):
        last = wants(chooser, f"t{i}", tokens=20)
    assert not last and chooser.reuse < 0.01


def test_a_recipe_that_comes_again_is_built_once_it_has_paid_for_itself(chooser: BuildPolicy) -> None:
    for i in range(200):
        wants(chooser, f"t{i}", tokens=20)
    answers = [wants(chooser, "again", tokens=20) for _ in range(8)]
    assert answers == [False] * 5 + [True] * 3  # six times 20 tokens are the first to cost more than 100


def test_among_recipes_that_come_again_a_new_one_is_built_at_first_sight(chooser: BuildPolicy) -> None:
    for i in range(200):
        wants(chooser, f"t{i}", tokens=20)
    for i in range(200):
        wants(chooser, f"arm{i % 8}", tokens=20)
    assert wants(chooser, "arm9", tokens=20)


def test_more_members_make_a_build_pay_sooner(chooser: BuildPolicy) -> None:
    assert not chooser.pays(90, members=2)
    assert chooser.pays(90, members=3)


def test_one_large_request_pays_at_once(chooser: BuildPolicy) -> None:
    for i in range(200):
        wants(chooser, f"t{i}", tokens=20)
    assert wants(chooser, "large", tokens=5_000)


def test_heat_fades(chooser: BuildPolicy, clock: Clock) -> None:
    chooser.expect("a", 80)
    clock.now += build_policy.HALF_LIFE
    assert chooser.heat("a") == pytest.approx(40)
    assert chooser.heat("never seen") == 0


def test_memory_of_recipes_is_bounded(chooser: BuildPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_policy, "REMEMBERED", 10)
    for i in range(1000):
        chooser.expect(str(i), 5)
    assert [key for key in map(str, range(1000)) if chooser.heat(key)] == [str(i) for i in range(990, 1000)]


def test_build_costs_are_learnt(chooser: BuildPolicy) -> None:
    for _ in range(50):
        chooser.built(1.0)
    assert chooser.costs.build == pytest.approx(1.0, rel=1e-3)


def test_costs_are_measured_on_this_machine(bank: Bank) -> None:
    async def main() -> Costs:
        rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(["late order"] * 4)
        machine = ModelRunner(Classifier(bank), bank.arena.new_slots(1))
        with ThreadPoolExecutor(1) as thread:
            compute = ExecutorPool(machine, [ThreadTransport(machine, thread)])
            return await measure(compute, {"base": 0.5, "angry": 0.5}, machine.vectors[-1].vector, rows)

    costs = asyncio.run(main())
    assert 0 < costs.build < 1 and 0 < costs.token < 1
