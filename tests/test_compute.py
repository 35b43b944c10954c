"""Units of compute: threads and worker processes give the same answers, and a worker may die."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pico
import pytest
import torch
from conftest import Service
from servers import until

from app.errors import WorkerLost
from app.models.bank import Bank, BankSpec, load_bank
from app.models.classifier import Classifier, Mix
from app.models.tokenizer import Row, TextTokenizer
from app.serving import executor as compute_module
from app.serving import worker_process
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport, Vector, WorkerTransport, logits_of
from app.serving.worker_process import ProcessTransport
from app.weights.arena import Vectors
from app.weights.methods import METHODS

WEIGHTS = {"base": 0.6, "angry": 0.4}


@pytest.fixture(scope="module", params=["bert", "deberta-v2", "modernbert"])
def any_bank(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    folders = pico.write_bank(tmp_path_factory.mktemp(request.param), request.param)
    return load_bank(BankSpec.from_toml(folders / "bank.toml"), torch.device("cpu"))


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    texts = ["late order", "they never answer. awful", "thanks, great!", "it was fine and we order again"]
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode(texts)


def with_workers(bank: Bank, count: int, scenario: Callable[[ExecutorPool, Vectors], Awaitable[None]]) -> None:
    async def main() -> None:
        classifier, slots = Classifier(bank), bank.arena.new_slots(2)
        lanes = [ProcessTransport(classifier, slots, threads=1) for _ in range(count)]
        await asyncio.gather(*(lane.start() for lane in lanes))
        compute = ExecutorPool(ModelRunner(classifier, slots), lanes)
        try:
            await asyncio.wait_for(scenario(compute, slots), 60)
        finally:
            await compute.close()

    asyncio.run(main())


def lane_of(compute: ExecutorPool) -> ProcessTransport:
    lane = compute._lanes[0]
    assert isinstance(lane, ProcessTransport)
    return lane


def pid_of(lane: ProcessTransport) -> int:
    assert lane._process is not None and lane._process.pid is not None
    return lane._process.pid


def test_a_worker_builds_and_runs_as_this_process_does(any_bank: Bank, rows: list[Row]) -> None:
    classifier = Classifier(any_bank)

    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        slot = slots.rows[1]
        weights: list[Vector | Mix] = [
            Vector(v, "") for v in (slot, any_bank.arena["polite"], slot, any_bank.arena["base"])
        ]
        if compute.mixes:
            weights[2] = Mix((0.2, 0.3, 0.5))
        async with compute.unit() as unit:
            assert await unit.build("linear", WEIGHTS, slot) > 0
            logits, seconds = await unit.forward(rows, weights)
        expected = any_bank.arena.new_vector()
        METHODS["linear"](any_bank.arena, WEIGHTS, expected)
        assert torch.equal(slot, expected) and seconds > 0
        here = classifier.batch(
            rows, [one if isinstance(one, Mix) else classifier.fixed(one.values) for one in weights]
        )
        torch.testing.assert_close(logits_of(logits), here, rtol=0, atol=1e-6)

    with_workers(any_bank, 1, scenario)


def test_units_work_at_the_same_time(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        assert compute.units == compute.idle == 2
        async with compute.unit() as one, compute.unit() as other:
            assert one is not other and compute.idle == 0
            third = asyncio.create_task(compute.take())
            both = await asyncio.gather(
                *(unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * 4) for unit in (one, other))
            )
            assert not third.done()
        assert both[0][0] == both[1][0]
        compute.give_back(await third)

    with_workers(bank, 2, scenario)


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_that_is_killed_is_replaced_and_asked_again(bank: Bank, rows: list[Row], busy: bool) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        lane = lane_of(compute)
        first = pid_of(lane)
        async with compute.unit() as unit:
            if busy:
                os.kill(first, signal.SIGSTOP)
                asyncio.get_running_loop().call_later(0.2, os.kill, first, signal.SIGKILL)
            else:
                os.kill(first, signal.SIGKILL)
            logits, _ = await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * len(rows))
        torch.testing.assert_close(
            logits_of(logits), Classifier(bank).logits(bank.arena["angry"], rows), rtol=0, atol=1e-6
        )
        assert compute.restarts == 1 and pid_of(lane) != first

    with_workers(bank, 1, scenario)


@pytest.mark.parametrize("times", [1, 2000], ids=["little", "more than a pipe takes"])
def test_a_worker_that_hangs_is_ended_and_another_one_asked(
    bank: Bank, rows: list[Row], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(worker_process, "HANG_SECONDS", 2.0)

    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        lane = lane_of(compute)
        first = pid_of(lane)
        os.kill(first, signal.SIGSTOP)
        async with compute.unit() as unit:
            answer = asyncio.create_task(unit.forward(rows * times, [Vector(bank.arena["angry"], "angry")] * 4 * times))
            turns = 0
            while not answer.done():
                await asyncio.sleep(0.01)
                turns += 1
        assert turns > 50, "the service went on meanwhile"
        assert len((await answer)[0]) == 4 * times
        assert compute.restarts == 1 and pid_of(lane) != first
        until(lambda: not Path(f"/proc/{first}").exists())

    with_workers(bank, 1, scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_takes_nothing_of_the_small_shared_memory_of_a_container(bank: Bank) -> None:
    """Its pages are anonymous; what torch sends on its own way lies in /dev/shm, of which a container has 64 MiB."""

    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        async with compute.unit() as unit:
            await unit.build("linear", WEIGHTS, slots.rows[0])  # by now it has received whatever it was given
        mapped = Path(f"/proc/{pid_of(lane_of(compute))}/maps").read_text(encoding="utf-8")
        assert "memfd:tween" in mapped and "/torch_" not in mapped

    with_workers(bank, 1, scenario)


class Doomed(ProcessTransport):
    """Its workers die as soon as they start."""

    async def start(self) -> None:
        await super().start()
        os.kill(pid_of(self), signal.SIGKILL)


def test_what_kills_two_workers_is_refused(bank: Bank, rows: list[Row]) -> None:
    async def main() -> None:
        classifier, slots = Classifier(bank), bank.arena.new_slots(2)
        lane = Doomed(classifier, slots, threads=1)
        await lane.start()
        compute = ExecutorPool(ModelRunner(classifier, slots), [lane])
        async with compute.unit() as unit:
            with pytest.raises(WorkerLost, match="two worker processes died or hung"):
                await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * len(rows))
        await compute.close()

    asyncio.run(main())


def test_an_error_in_a_worker_is_the_caller_s_and_the_worker_lives(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        first = pid_of(lane_of(compute))
        async with compute.unit() as unit:
            with pytest.raises(RuntimeError, match="a worker failed: KeyError: 'no such method'"):
                await unit.build("no such method", WEIGHTS, slots.rows[0])
            assert (await unit.build("linear", WEIGHTS, slots.rows[0])) > 0
        assert pid_of(lane_of(compute)) == first and compute.restarts == 0

    with_workers(bank, 1, scenario)


def test_an_answer_to_a_caller_who_left_is_given_to_nobody_else(bank: Bank, rows: list[Row]) -> None:
    async def scenario(compute: ExecutorPool, slots: Vectors) -> None:
        async with compute.unit() as unit:
            gone = asyncio.create_task(unit.forward(rows * 50, [Vector(bank.arena["polite"], "polite")] * 200))
            await asyncio.sleep(0)
            gone.cancel()
            logits, _ = await unit.forward(rows, [Vector(bank.arena["angry"], "angry")] * len(rows))
        torch.testing.assert_close(
            logits_of(logits), Classifier(bank).logits(bank.arena["angry"], rows), rtol=0, atol=1e-6
        )

    with_workers(bank, 1, scenario)


def test_a_thread_answers_as_well(bank: Bank, rows: list[Row]) -> None:
    async def main() -> None:
        machine = ModelRunner(Classifier(bank), bank.arena.new_slots(2))
        with ThreadPoolExecutor(1) as thread:
            lanes: list[WorkerTransport] = [ThreadTransport(machine, thread)]
            compute = ExecutorPool(machine, lanes)
            async with compute.unit() as unit:
                slot = machine.vectors[-1].vector
                await unit.build("linear", WEIGHTS, slot)
                logits, _ = await unit.forward(rows, [Vector(slot, "")] * len(rows))
            torch.testing.assert_close(logits_of(logits), machine.classifier.logits(slot, rows), rtol=0, atol=1e-6)
            await compute.close()

    asyncio.run(main())


def test_a_service_with_workers_answers_as_one_without_while_workers_are_killed(
    serve: Callable[..., Service], spec: BankSpec, redis: object
) -> None:
    bodies = [{"texts": ["late order", "ok"], "recipe": f"angry@{i / 100}"} for i in range(1, 100)]
    alone, many = serve(spec, workers=0), serve(spec, workers=2)
    lanes = many.app.state.engine.compute._lanes
    for i, body in enumerate(bodies):
        if i in (20, 50, 51):
            os.kill(next(pid_of(lane) for lane in lanes if lane._process is not None), signal.SIGKILL)
        replies = [service.client.post("/v1/predict", json=body) for service in (alone, many)]
        assert [reply.status_code for reply in replies] == [200, 200], replies[1].text
        one, other = (reply.json()["predictions"] for reply in replies)
        assert [p["label"] for p in one] == [p["label"] for p in other]
        assert one[0]["probability"] == pytest.approx(other[0]["probability"], abs=1e-5)
    metrics = many.client.get("/metrics").text.splitlines()
    restarts = next(line for line in metrics if line.startswith("tween_worker_restarts_total "))
    assert float(restarts.split()[1]) >= 2


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_container_s_limit_bounds_the_cores(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert compute_module._container_limit(tmp_path) == cores
    assert compute_module.usable_cores() >= 1
