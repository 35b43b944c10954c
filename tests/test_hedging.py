"""Workers that are stopped by a real SIGSTOP, beside others that go on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import Service
from test_compute import pid_of, with_workers

from app.models.bank import Bank, BankSpec
from app.models.classifier import Classifier
from app.models.tokenizer import Row, TextTokenizer
from app.serving.executor import Executor, ExecutorPool, Vector, logits_of
from app.serving.hedging import FEW, Usual, first_answer
from app.serving.worker_process import HANG_SECONDS, ProcessTransport
from app.weights.arena import Vectors
from app.weights.methods import METHODS

SOON = HANG_SECONDS / 2
"""A stopped worker would hold its callers for twice as long."""
WEIGHTS = {"base": 0.6, "angry": 0.4}


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode(["late order", "thanks, great!"])


def worker(unit: Executor) -> int:
    assert isinstance(unit.lane, ProcessTransport)
    return pid_of(unit.lane)


async def warm(compute: ExecutorPool, bank: Bank, rows: list[Row], slots: Vectors) -> None:
    """What is usual is known."""
    async with compute.unit() as unit:
        for _ in range(FEW):
            await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 2)
            await unit.build("linear", WEIGHTS, slots.rows[0])


def test_a_pass_on_a_stopped_worker_is_answered_by_another_one(bank: Bank, rows: list[Row]) -> None:
    expected = {name: Classifier(bank).logits(bank.arena[name], rows) for name in ("angry", "polite")}

    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        await warm(compute, bank, rows, slots)
        begun = time.monotonic()
        async with compute.unit() as unit:
            stopped = worker(unit)
            os.kill(stopped, signal.SIGSTOP)
            logits, _ = await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 2)
            assert worker(unit) != stopped, "the caller now holds the one that answered"
            assert compute.idle == 0
        torch.testing.assert_close(logits_of(logits), expected["angry"], rtol=0, atol=1e-6)
        assert compute.hedged == 1 and compute.idle == 1 and time.monotonic() - begun < SOON

        async with compute.unit() as unit:  # the stopped one is nobody's
            await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 2)
        assert compute.hedged == 1

        os.kill(stopped, signal.SIGCONT)
        while compute.idle < 2:
            await asyncio.sleep(0.01)
        units = [await compute.take(), await compute.take()]
        assert stopped in map(worker, units) and compute.restarts == 0
        for unit in units:  # its late answer was dropped
            logits, _ = await unit.forward(rows, [Vector(bank.arena["polite"], "polite")] * 2)
            torch.testing.assert_close(logits_of(logits), expected["polite"], rtol=0, atol=1e-6)

    with_workers(bank, 2, scenario)


def test_a_pass_waits_for_a_unit_if_all_are_busy(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        await warm(compute, bank, rows, slots)
        busy = await compute.take()
        async with compute.unit() as unit:
            os.kill(worker(unit), signal.SIGSTOP)
            answer = asyncio.create_task(unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 2))
            await asyncio.sleep(1.5)
            assert not answer.done()
            compute.give_back(busy)
            assert len((await answer)[0]) == 2

    with_workers(bank, 2, scenario)


def test_who_stops_waiting_leaves_no_unit_behind(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        await warm(compute, bank, rows, slots)
        units = [await compute.take(), await compute.take()]
        stopped = [worker(unit) for unit in units]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        compute.give_back(units[0])
        answer = asyncio.create_task(units[1].forward(rows, [Vector(bank.arena["angry"], "angry")] * 2))
        while compute.idle:  # until the other one is asked, too
            await asyncio.sleep(0.01)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        compute.give_back(units[1])
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        while compute.idle < 2:
            await asyncio.sleep(0.01)
        for unit in [await compute.take(), await compute.take()]:
            assert len((await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 2))[0]) == 2

    with_workers(bank, 2, scenario)


def test_a_stopped_worker_that_builds_is_replaced_and_never_goes_on(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        await warm(compute, bank, rows, slots)
        slot, expected = slots.rows[1], bank.arena.new_vector()
        METHODS["linear"](bank.arena, WEIGHTS, expected)
        begun = time.monotonic()
        async with compute.unit() as unit:
            stopped = worker(unit)
            os.kill(stopped, signal.SIGSTOP)
            assert await unit.build("linear", WEIGHTS, slot) > 0
            assert worker(unit) != stopped
        assert torch.equal(slot, expected)
        assert compute.restarts == 1 and time.monotonic() - begun < HANG_SECONDS
        with pytest.raises(ProcessLookupError):
            while True:
                os.kill(stopped, 0)
                await asyncio.sleep(0.01)

    with_workers(bank, 2, scenario)


def test_a_lone_worker_is_waited_for(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        await warm(compute, bank, rows, slots)
        async with compute.unit() as unit:
            stopped = worker(unit)
            os.kill(stopped, signal.SIGSTOP)
            answer = asyncio.create_task(unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 2))
            await asyncio.sleep(1.5)
            assert not answer.done()
            os.kill(stopped, signal.SIGCONT)
            assert len((await answer)[0]) == 2
        assert compute.hedged == 0 and compute.restarts == 0

    with_workers(bank, 1, scenario)


def test_callers_hardly_notice_a_worker_that_is_stopped(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec, workers=2, redis_blends="never")

    def ask(number: int) -> float:
        begun = time.monotonic()
        body = {"texts": f"late order {number}", "recipe": "angry@0.4"}
        assert service.client.post("/v1/predict", json=body).status_code == 200
        return time.monotonic() - begun

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(ask, range(40)))
        stopped = pid_of(service.app.state.engine.compute._lanes[0])
        os.kill(stopped, signal.SIGSTOP)
        try:
            assert max(callers.map(ask, range(40, 120))) < SOON
        finally:
            os.kill(stopped, signal.SIGCONT)
    metrics = service.client.get("/metrics").text
    assert "tween_hedged_passes_total 1.0" in metrics and "tween_worker_restarts_total 0.0" in metrics


def test_patience_is_ten_times_what_is_usual_and_has_a_floor() -> None:
    usual = Usual()
    assert usual.patience() is None
    for seconds in (2.0, 0.2, 0.2, 0.2):
        usual.note(seconds, size=2)
    assert usual.patience(size=4) == pytest.approx(4.0)
    assert usual.patience(size=1) == pytest.approx(1.0)
    for _ in range(20):
        usual.note(1e-4)
    assert usual.patience() == 0.5


def test_a_call_that_fails_is_an_answer_only_if_all_fail() -> None:
    async def after(seconds: float, fails: bool) -> str:
        await asyncio.sleep(seconds)
        if fails:
            raise OSError("lost")
        return "answer"

    async def first_of(*calls: Awaitable[str]) -> str:
        return (await first_answer([asyncio.ensure_future(call) for call in calls])).result()  # type: ignore[misc]

    assert asyncio.run(first_of(after(0.2, False), after(0.0, True))) == "answer"
    with pytest.raises(OSError, match="lost"):
        asyncio.run(first_of(after(0.0, True), after(0.1, True)))
