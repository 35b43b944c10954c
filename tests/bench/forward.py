"""Texts per second in process: ours, transformers, and two engines for frozen weights, each in a process of its own."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from app.demo import corpus
from app.models.bank import Bank, BankSpec, load_bank
from app.models.classifier import Classifier, Mix
from app.models.int8 import Quantised
from app.models.tokenizer import Row, TextTokenizer

ROUNDS = 3
TEXTS = 256
SIZES = (1, 8, 32)

Run = Callable[[Sequence[Row]], object]


def texts() -> list[str]:
    """A natural mix of 8 to 64 tokens: one, two or three of the demo's test texts at a time."""
    chooser = random.Random(7)
    pool = [example.text for name in (corpus.GENERAL, *corpus.DOMAINS) for example in corpus.read(name, "test")]
    return [" ".join(chooser.sample(pool, chooser.choice([1] * 7 + [2] * 2 + [3]))) for _ in range(TEXTS)]


def padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row.ids + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def transformers_eager(bank: Bank) -> Run:
    model = bank.bind(bank.arena["finance"].clone())

    def run(rows: Sequence[Row]) -> object:
        with torch.inference_mode():
            return model(**padded(rows)).logits

    return run


def ours(bank: Bank) -> Run:
    classifier, slot = Classifier(bank), bank.arena.new_vector()
    slot.copy_(bank.arena["finance"])
    return lambda rows: classifier.logits(slot, rows)


def ours_int8(bank: Bank) -> Run:
    assert bank.family is not None
    classifier, slot = Classifier(bank), bank.arena.new_vector()
    slot.copy_(bank.arena["finance"])
    with torch.inference_mode():
        quantised = Quantised(bank.arena.layout, slot, bank.family.large_blocks)
    return lambda rows: classifier.batch(rows, [quantised] * len(rows))


def ours_every_row_its_own_t(bank: Bank) -> Run:
    classifier = Classifier(bank)
    chooser = random.Random(8)

    def run(rows: Sequence[Row]) -> object:
        ts = [chooser.random() for _ in rows]
        return classifier.batch(rows, [Mix(bank.arena.shares_of({"base": 1 - t, "finance": t})) for t in ts])

    return run


def onnx_file(bank: Bank, folder: str) -> str:
    model = bank.bind(bank.arena["finance"].clone())
    inputs = padded(TextTokenizer(bank.tokenizer, bank.config, 512).encode(["a short text", "and another one"]))
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    path = f"{folder}/model.onnx"
    torch.onnx.export(
        model, tuple(inputs.values()), path, input_names=list(inputs), dynamic_axes=axes, dynamo=False, opset_version=17
    )
    return path


def onnx_runtime(bank: Bank) -> Run:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(onnx_file(bank, folder), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {name: tensor.numpy() for name, tensor in padded(rows).items()})


def openvino(bank: Bank) -> Run:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        compiled = openvino.Core().compile_model(onnx_file(bank, folder), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda rows: compiled({name: tensor.numpy() for name, tensor in padded(rows).items()})


WAYS: dict[str, tuple[Callable[[Bank], Run], bool]] = {
    "ours": (ours, False),
    "ours, int8": (ours_int8, False),
    "ours, every text its own t": (ours_every_row_its_own_t, False),
    "transformers, padded": (transformers_eager, False),
    "transformers, sorted by length": (transformers_eager, True),
    "ONNX Runtime (frozen)": (onnx_runtime, False),
    "ONNX Runtime (frozen), sorted": (onnx_runtime, True),
    "OpenVINO (frozen)": (openvino, False),
    "OpenVINO (frozen), sorted": (openvino, True),
}
"""How to make each way, and whether texts come sorted by length over the whole stream."""


def rates(file: Path) -> Iterator[tuple[str, list[float], list[float]]]:
    """For each way: median texts per second by batch size, and the spread (max / min) of each."""
    seen: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name in WAYS:
            command = [sys.executable, "-W", "ignore", "-m", "tests.bench.forward", str(file), name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            seen[name].append([float(rate) for rate in done.stdout.split()[-len(SIZES) :]])
    for name, rounds in seen.items():
        by_size = list(zip(*rounds, strict=True))
        yield name, [statistics.median(values) for values in by_size], [max(v) / min(v) for v in by_size]


def main(file: str, name: str) -> None:
    make, by_length = WAYS[name]
    bank = load_bank(BankSpec.from_toml(Path(file)), torch.device("cpu"))
    rows = TextTokenizer(bank.tokenizer, bank.config, 512).encode(texts())
    if by_length:
        rows.sort(key=len)
    run = make(bank)
    for size in SIZES:
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        for batch in batches:
            run(batch)
        started = time.perf_counter()
        for batch in batches:
            run(batch)
        print(len(rows) / (time.perf_counter() - started))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
