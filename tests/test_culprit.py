"""A text that the model fails on, logits that are no numbers, and a device that is lost: who is told what."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import log2
from pathlib import Path

import pytest
import torch
from conftest import Service, running
from redis import Redis
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.errors import DeviceLost, NotFinite, PassFailed
from app.models.bank import Bank, BankSpec
from app.models.checkpoint import Source
from app.models.classifier import Classifier, Mix
from app.models.operands import FixedOperands
from app.models.tokenizer import Row, TextTokenizer
from app.serving.background_inference import BackgroundInference
from app.serving.batcher import Batcher
from app.serving.blend_provider import Weights
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport, Vector, logits_of
from app.serving.memory_limits import did_not_fit
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.weights.recipe import Cookbook

POISON = Row([2, 10**6, 3], [0, 0, 0], truncated=False)
"""A token that the embedding has no row for: what such a tokenizer would give, had it not been refused."""


class Counting(Classifier):
    """Notes how many rows each pass has; may fail for all."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.sizes: list[int] = []
        self.error: Exception | None = None

    def batch(self, rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor:
        self.sizes.append(len(rows))
        if self.error is not None:
            raise self.error
        return super().batch(rows, weights)


class Scene:
    def __init__(self, bank: Bank, machine: ModelRunner, compute: ExecutorPool, batcher: Batcher) -> None:
        assert isinstance(machine.classifier, Counting)
        self.classifier, self.machine, self.compute, self.batcher = machine.classifier, machine, compute, batcher
        self.recipes = Cookbook(bank.variants)
        self.arena = bank.arena

    def weights(self, name: str) -> Weights:
        return Weights("", self.recipes.read(name), Vector(self.arena[name], name), "memory", 0.0)

    def mixed(self, recipe: str) -> Weights:
        read = self.recipes.read(recipe)
        return Weights("", read, Mix.of(read.weights, self.arena), "mixed", 0.0)


def with_a_batcher(bank: Bank, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        machine = ModelRunner(Counting(bank), bank.arena.new_slots(2))
        with ThreadPoolExecutor(1) as thread:
            compute = ExecutorPool(machine, [ThreadTransport(machine, thread)])
            batcher = Batcher(compute, 10**6, 10**6, 60.0)
            running = asyncio.create_task(batcher.run())
            try:
                await asyncio.wait_for(scenario(Scene(bank, machine, compute, batcher)), 60)
                assert batcher.waiting_rows == 0
                compute.give_back(await asyncio.wait_for(compute.take(), 10))
            finally:
                running.cancel()

    asyncio.run(main())


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    return TextTokenizer(bank.tokenizer, bank.config, 64).encode([f"late order {i}" for i in range(63)])


@pytest.mark.parametrize("mixed", [False, True])
def test_a_text_that_fails_fails_nobody_else(bank: Bank, rows: list[Row], mixed: bool) -> None:
    async def scenario(scene: Scene) -> None:
        weights = scene.mixed("angry@0.4") if mixed else scene.weights("angry")
        calls = [scene.batcher.submit([row], weights) for row in [*rows[:20], POISON, *rows[20:]]]
        results = await asyncio.gather(*calls, return_exceptions=True)
        culprit = results.pop(20)
        assert isinstance(culprit, PassFailed) and culprit.row == 0
        assert "the model fails on it (IndexError), alone too, and not on other texts; it has 3 tokens" == str(culprit)
        for row, scored in zip(rows, results, strict=True):
            alone = await scene.batcher.submit([row], weights)
            torch.testing.assert_close(logits_of(scored.logits), logits_of(alone.logits), rtol=0, atol=1e-5)
        passes = len(scene.classifier.sizes) - len(rows)
        assert passes <= 2 * log2(64) + 2  # the way down to it, what that left aside, and one plain row

    with_a_batcher(bank, scenario)


def test_a_text_that_fails_among_a_callers_is_named(bank: Bank, rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        with pytest.raises(PassFailed) as failed:
            await scene.batcher.submit([*rows[:5], POISON, *rows[5:]], scene.weights("angry"))
        assert failed.value.row == 5

    with_a_batcher(bank, scenario)


def test_many_texts_that_fail_cost_a_bounded_number_of_passes(bank: Bank, rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        weights = scene.weights("angry")
        calls = [scene.batcher.submit([row], weights) for row in [POISON] * 32 + rows[:32]]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, PassFailed) for one in results] == [True] * 32 + [False] * 32
        assert len(scene.classifier.sizes) <= 2 * 64 + 32

    with_a_batcher(bank, scenario)


def test_what_fails_every_text_is_not_tried_with_each(bank: Bank, rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.classifier.error = RuntimeError("broken")
        calls = [scene.batcher.submit([row], scene.weights("angry")) for row in rows]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in results} == {RuntimeError}
        assert len(scene.classifier.sizes) <= log2(64) + 2

    with_a_batcher(bank, scenario)


def test_weights_that_fail_every_text_fail_those_on_others_not(bank: Bank, rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        broken = Weights("", scene.recipes.read("base"), Vector(bank.arena["base"], "base"), "memory", 0.0)
        batch = scene.machine.classifier.batch

        def some(rows: Sequence[Row], weights: Sequence[FixedOperands | Mix]) -> Tensor:
            if any(isinstance(one, FixedOperands) and one.section == bank.arena["base"].data_ptr() for one in weights):
                raise RuntimeError("broken")
            return batch(rows, weights)

        scene.machine.classifier.batch = some  # type: ignore[method-assign]
        calls = [scene.batcher.submit([r], broken if i % 2 else scene.weights("angry")) for i, r in enumerate(rows[:8])]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, RuntimeError) for one in results] == [False, True] * 4

    with_a_batcher(bank, scenario)


def test_a_background_pass_names_the_text_that_fails(bank: Bank, rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        errands = BackgroundInference.__new__(BackgroundInference)  # what runs a piece needs nothing else
        operand = scene.weights("angry").operand
        async with scene.compute.unit() as unit:
            with pytest.raises(PassFailed, match="one of the texts: the model fails on it"):
                await errands._forward(unit, [*rows[:3], POISON, *rows[3:6]], operand)
            scene.classifier.error = RuntimeError("broken")
            scene.classifier.sizes.clear()
            with pytest.raises(RuntimeError, match="broken"):
                await errands._forward(unit, rows[:6], operand)
            assert scene.classifier.sizes == [6, 1]

    with_a_batcher(bank, scenario)


# -- a device that is lost -----------------------------------------------------------------------------


LOST = torch.AcceleratorError("CUDA error: device-side assert triggered")


def test_a_lost_device_is_not_tried_again(bank: Bank, rows: list[Row]) -> None:
    """CUDA is not in this build of torch, so that a plain operation fails there as it does in a lost context."""

    async def scenario(scene: Scene) -> None:
        told: list[Exception] = []
        scene.compute.on_loss = told.append
        scene.classifier.error, scene.machine.device = LOST, torch.device("cuda")
        calls = [scene.batcher.submit([row], scene.weights("angry")) for row in rows]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in results} == {DeviceLost}
        assert scene.classifier.sizes == [len(rows)] and len(told) == 1 and scene.compute.lost is told[0]

    with_a_batcher(bank, scenario)


def test_an_error_of_a_device_that_still_works_is_a_text_s(bank: Bank, rows: list[Row]) -> None:
    async def scenario(scene: Scene) -> None:
        scene.classifier.error = torch.AcceleratorError("CUDA error: invalid configuration argument")
        with pytest.raises(torch.AcceleratorError):
            await scene.batcher.submit(rows, scene.weights("angry"))
        assert scene.compute.lost is None

    with_a_batcher(bank, scenario)


def test_a_service_whose_device_is_lost_is_not_ready_and_ends(spec: BankSpec, redis_url: str) -> None:
    with running(spec, redis_url=redis_url, memory_tier_mib=16, prediction_cache=False) as service:
        compute = service.app.state.engine.compute
        machine = compute._lanes[0]._machine

        def lost(*arguments: object) -> Tensor:
            raise LOST

        machine.device, machine.classifier.batch = torch.device("cuda"), lost
        reply = service.client.post("/v1/predict", json={"texts": "ok", "recipe": "angry"})
        assert reply.status_code == 503 and reply.headers["retry-after"] and "is lost" in reply.json()["detail"]
        ready = service.client.get("/readyz")
        assert ready.status_code == 503 and ready.json()["type"] == "urn:tween:device-lost"
        assert [type(failure) for failure in service.failures] == [DeviceLost]


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (LOST, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
    ],
    ids=str,
)
def test_what_cuda_says_of_short_memory_is_understood(error: Exception, short: bool) -> None:
    assert did_not_fit(error) is short


# -- logits that are no numbers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overflowing(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> BankSpec:
    """A variant whose numbers are finite, and whose sums for one word are not."""
    folder = Path(shutil.copytree(folders, tmp_path_factory.mktemp("overflow") / "bank"))
    tensors = load_file(folder / "angry" / "model.safetensors")
    words = tensors["bert.embeddings.word_embeddings.weight"]
    number = json.loads((folder / "angry" / "tokenizer.json").read_text())["model"]["vocab"]["parcel"]
    words[number] = 3e38
    save_file(tensors, folder / "angry" / "model.safetensors", metadata={"format": "pt"})
    return BankSpec(Source(str(folder / "base")), {n: Source(str(folder / n)) for n in ("angry", "polite")})


@pytest.fixture(scope="module", params=[0, 1], ids=["thread", "worker"])
def service(request: pytest.FixtureRequest, overflowing: BankSpec, redis_url: str) -> object:
    with running(overflowing, redis_url=redis_url, memory_tier_mib=16, workers=request.param) as service:
        yield service


BAD, GOOD = "the parcel came late", "the refund came late"


@pytest.mark.parametrize("recipe", ["angry", "angry@0.5", "angry@0.3+polite@0.3"])
def test_logits_that_are_not_finite_are_no_answer_and_not_remembered(
    service: Service, redis: Redis, recipe: str
) -> None:
    for _ in range(2):
        reply = service.client.post("/v1/predict", json={"texts": [GOOD, BAD], "recipe": recipe})
        assert reply.status_code == 422, reply.text
        problem = reply.json()
        assert problem["type"] == "urn:tween:not-finite"
        assert "text 1: the blend angry" in problem["detail"] and "not finite" in problem["detail"]
    predictions = service.app.state.engine.predictions
    assert all(memoryview(known.logits).cast("f")[0] < 1e30 for known in predictions._near.values())
    assert service.client.post("/v1/predict", json={"texts": GOOD, "recipe": recipe}).status_code == 200


def test_a_text_without_a_finite_answer_fails_nobody_else(service: Service) -> None:
    async def scenario() -> list[int]:
        import httpx

        async with httpx.AsyncClient(base_url=service.client.base_url, timeout=30) as client:
            body = {"recipe": "angry@0.7", "cache": False}
            calls = [client.post("/v1/predict", json=body | {"texts": [BAD if i == 7 else GOOD]}) for i in range(16)]
            return [reply.status_code for reply in await asyncio.gather(*calls)]

    assert asyncio.run(scenario()) == [422 if i == 7 else 200 for i in range(16)]


def test_a_spectrum_with_an_end_that_is_not_finite_is_refused(service: Service) -> None:
    reply = service.client.post("/v1/spectrum", json={"texts": [BAD], "variant": "angry"})
    assert reply.status_code == 422 and "not finite" in reply.json()["detail"]


def test_a_sweep_over_texts_that_give_no_numbers_says_so(service: Service) -> None:
    texts = [f"{text} {i}" for i in range(20) for text in (GOOD, BAD)]
    data = [{"text": text, "label": "positive" if i % 2 else "negative"} for i, text in enumerate(texts)]
    reply = service.client.post("/v1/sweeps", json={"data": data, "variant": "angry"})
    assert reply.status_code == 202, reply.text
    place = f"/v1/sweeps/{reply.json()['id']}"
    for _ in range(600):
        state = service.client.get(place).json()
        if state["status"] in ("done", "failed"):
            break
        asyncio.run(asyncio.sleep(0.1))
    assert state["status"] == "failed" and "not finite" in state["error"]


def test_passes_of_a_sweep_are_stored_only_if_they_are_numbers(bank: Bank) -> None:
    class Broken:
        def key(self, recipe: object) -> str:
            return "x"

        def logits(self, texts: Sequence[str], recipe: object) -> object:
            return torch.full((len(texts), 3), float("nan")).numpy()

    store = MemoryLogitStore()
    passes = LogitCache(Broken(), store)  # type: ignore[arg-type]
    with pytest.raises(NotFinite, match="the blend angry@1 gives logits that are not finite"):
        passes.logits(["a", "b"], Cookbook(bank.variants).read("angry"))
    assert not store._logits
