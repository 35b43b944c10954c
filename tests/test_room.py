"""Memory that is truly short: limits on real processes, which make real allocations fail."""

from __future__ import annotations

import asyncio
import logging
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pico
import pytest
import torch
from conftest import Service

from app.errors import OutOfMemory, WorkerLost
from app.models.bank import Bank, BankSpec, load_bank
from app.models.classifier import Classifier
from app.models.tokenizer import Row, TextTokenizer
from app.serving.batcher import Batcher
from app.serving.blend_provider import Weights
from app.serving.executor import ExecutorPool, ModelRunner, Vector
from app.serving.memory_limits import MIB, TokenBudget, memory_left, room_for_slots
from app.serving.worker_process import ProcessTransport
from app.weights.recipe import Cookbook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of another process")

NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def limit(pid: int, room: int) -> None:
    """Let a process take so many more bytes than it has."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    size = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize:"))
    resource.prlimit(pid, resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))


def pid_of(lane: ProcessTransport) -> int:
    assert lane._process is not None and lane._process.pid is not None
    return lane._process.pid


class Scene:
    """A batcher on one worker whose memory can be limited."""

    def __init__(self, bank: Bank, batcher: Batcher, lane: ProcessTransport) -> None:
        self.batcher = batcher
        self.lane = lane
        recipe = Cookbook(bank.variants).read("angry")
        self.weights = Weights("", recipe, Vector(bank.arena["angry"], "angry"), "memory", 0.0)


def with_a_worker(bank: Bank, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        classifier, slots = Classifier(bank), bank.arena.new_slots(2)
        lane = ProcessTransport(classifier, slots, threads=1)
        await lane.start()
        compute = ExecutorPool(ModelRunner(classifier, slots), [lane])
        batcher = Batcher(compute, 10**6, 10**6, 60.0)
        running = asyncio.create_task(batcher.run())
        try:
            await asyncio.wait_for(scenario(Scene(bank, batcher, lane)), 60)
            assert compute.idle == 1
        finally:
            running.cancel()
            await compute.close()

    asyncio.run(main())


@pytest.fixture(scope="module")
def row(bank: Bank) -> Row:
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode(["late order " * 40])[0]


def test_a_batch_that_does_not_fit_runs_in_halves_and_the_next_ones_are_smaller(
    bank: Bank, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(scene: Scene) -> None:
        batcher = scene.batcher
        expected = (await batcher.submit([row], scene.weights)).logits * 2000
        limit(pid_of(scene.lane), 24 * MIB)  # one product of the whole takes twice that
        scored = await batcher.submit([row] * 2000, scene.weights)
        for got, wanted in zip(scored.logits, expected, strict=True):
            assert memoryview(got).cast("f").tolist() == pytest.approx(memoryview(wanted).cast("f").tolist(), abs=1e-5)
        assert batcher.out_of_memory > 0 and batcher.budget.tokens < 2000 * len(row)
        first = batcher.sizes.sum
        await batcher.submit([row] * 200, scene.weights)
        assert batcher.sizes.sum == first + 200 and scene.lane.restarts == 0

    with caplog.at_level(logging.WARNING):
        with_a_worker(bank, scenario)
    told = [record.getMessage() for record in caplog.records if "memory was too short" in record.getMessage()]
    assert 1 <= len(told) <= 20 and "for now batches have at most" in told[-1]


def test_a_text_that_does_not_fit_alone_harms_nobody_else(tmp_path: Path, row: Row) -> None:
    # An architecture that reads texts of any length; attention takes 4 bytes for each pair of tokens, several times.
    bank = load_bank(BankSpec.from_toml(pico.write_bank(tmp_path, "deberta-v2") / "bank.toml"), torch.device("cpu"))
    giant = Row([5] * 3_000, [0] * 3_000, truncated=False)

    async def scenario(scene: Scene) -> None:
        await scene.batcher.submit([row], scene.weights)
        limit(pid_of(scene.lane), 32 * MIB)
        calls = [scene.batcher.submit([one], scene.weights) for one in [row] * 5 + [giant] + [row] * 5]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one).__name__ for one in results] == ["RowLogits"] * 5 + ["OutOfMemory"] + ["RowLogits"] * 5
        assert isinstance(results[5], OutOfMemory) and "a text of 3000 tokens" in str(results[5])
        assert scene.batcher.waiting_rows == 0 and scene.lane.restarts == 0

    with_a_worker(bank, scenario)


def test_what_is_as_large_as_something_that_did_not_fit_is_not_tried(bank: Bank, row: Row) -> None:
    async def scenario(scene: Scene) -> None:
        forward, tried = scene.lane.call, []

        async def too_short_for_five(name: str, rows: list[Row], *arguments: object) -> object:
            tried.append(len(rows))
            if len(rows) > 4:
                raise OutOfMemory("memory is too short")
            return await forward(name, rows, *arguments)

        scene.lane.call = too_short_for_five  # type: ignore[method-assign]
        await scene.batcher.submit([row] * 64, scene.weights)
        assert tried == [64, 32, 16, 8] + [4] * 16

    with_a_worker(bank, scenario)


def test_what_ends_two_workers_makes_the_next_batches_smaller(bank: Bank, row: Row) -> None:
    async def scenario(scene: Scene) -> None:
        async def dies(name: str, *arguments: object) -> object:
            raise WorkerLost("two worker processes died")

        scene.lane.call = dies  # type: ignore[method-assign]
        with pytest.raises(WorkerLost):
            await scene.batcher.submit([row] * 100, scene.weights)
        assert scene.batcher.budget.tokens == 100 * len(row) // 2

    with_a_worker(bank, scenario)


def test_a_service_whose_memory_is_short_answers_all_the_same(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec, workers=1, batch_tokens=10**6, max_texts=1000, queue_rows=1000)
    body = {"texts": ["late order " * 40] * 1000, "recipe": "angry"}
    healthy = service.client.post("/v1/predict", json=body | {"texts": body["texts"][:1]}).json()["predictions"]
    lane = service.app.state.engine.compute._lanes[0]
    limit(pid_of(lane), 8 * MIB)  # one product of the whole takes three times that
    reply = service.client.post("/v1/predict", json=body)
    resource.prlimit(pid_of(lane), resource.RLIMIT_AS, NO_LIMIT)
    assert reply.status_code == 200, reply.text
    assert [p["probability"] for p in reply.json()["predictions"]] == pytest.approx([healthy[0]["probability"]] * 1000)
    metrics = dict(line.rsplit(" ", 1) for line in service.client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(metrics["tween_out_of_memory_total"]) > 0
    assert float(metrics["tween_batch_token_limit"]) < 1000 * 64


def test_a_budget_is_halved_at_once_and_doubled_every_minute() -> None:
    now = 0.0
    budget = TokenBudget(4096, least=64, clock=lambda: now)
    assert budget.did_not_fit(4000) and budget.tokens == 2000
    assert budget.did_not_fit(2000) and budget.tokens == 1000
    assert not budget.did_not_fit(3000) and budget.tokens == 1000  # a batch that had begun before
    now = 59.0
    assert budget.tokens == 1000
    now = 61.0
    assert budget.tokens == 2000
    assert budget.did_not_fit(1900) and budget.tokens == 950
    now = 1e6
    assert budget.tokens == 4096
    assert budget.did_not_fit(5) and budget.tokens == 64
    assert not budget.did_not_fit(5)


SHORT = """
import logging, sys
sys.path.insert(0, "tests")
import test_room
from app.bootstrap import slots_that_fit
from app.models.bank import BankSpec, load_bank
from app.settings import Settings
from pathlib import Path
import os, torch

logging.basicConfig(format="%(message)s", stream=sys.stdout)
bank = load_bank(BankSpec.from_toml(Path(sys.argv[1])), torch.device("cpu"))
test_room.limit(os.getpid(), int(sys.argv[2]))
slots, asked = slots_that_fit(Settings(memory_tier_mib=256), bank)
print(len(slots.rows), asked, bank.arena.row_bytes)
"""


def slots_within(folders: Path, room: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", SHORT, str(folders / "bank.toml"), str(room)]
    return subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300)


def test_slots_that_do_not_fit_are_not_taken_and_it_is_said(folders: Path) -> None:
    done = slots_within(folders, 80 * MIB)
    assert done.returncode == 0, done.stderr
    *_, told, counts = done.stdout.splitlines()
    taken, asked, size = map(int, counts.split())
    assert 2 < taken < asked and 16 * MIB < taken * size <= 80 * MIB
    assert told == f"memory has room for {taken} blends, where TWEEN_MEMORY_TIER_MIB=256 asks for {asked}"


def test_without_room_for_two_blends_there_is_a_sentence(folders: Path) -> None:
    done = slots_within(folders, 0)
    assert done.returncode == 1 and "BadBank: no memory is left for two blends of 0 MiB each" in done.stderr


def test_slots_within_a_service_are_told_in_its_metrics(serve: Callable[..., Service], spec: BankSpec) -> None:
    text = serve(spec, memory_tier_mib=16).client.get("/metrics").text
    slots = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("tween_slots{")}
    assert slots['tween_slots{state="asked"}'] == slots['tween_slots{state="all"}'] != "0.0"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000000", "memory.current": "900000", "memory.stat": "anon 5\ninactive_file 300000"}, 400_000),
        (
            {
                "memory/memory.limit_in_bytes": "1000000",
                "memory/memory.usage_in_bytes": "900000",
                "memory/memory.stat": "cache 5\ntotal_inactive_file 100000",
            },
            200_000,
        ),
        ({"memory.max": "max", "memory.current": "900000", "memory.stat": "inactive_file 1"}, None),
        ({}, None),
    ],
    ids=["version 2", "version 1", "no limit", "no groups"],
)
def test_a_container_s_limit_bounds_the_memory(
    tmp_path: Path, bank: Bank, files: dict[str, str], left: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = memory_left(bank.device, tmp_path)
    assert found == left if left is not None else found is not None and found > 10 * MIB
    room = room_for_slots(bank.device, tmp_path)
    assert room is not None and (room == left // 2 if left is not None else room <= found)
