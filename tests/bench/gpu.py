"""Blends and forward passes on an accelerator; needs only torch, transformers and safetensors.

    python -m tests.bench.gpu                      a GPU, bfloat16, as large as BERT-base
    python -m tests.bench.gpu --device cpu --dtype float32 --layers 2 --rounds 3

The members have random weights: what is measured is time, and that packed, mixed and transformers' logits agree.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent.parent))

import pico  # noqa: E402

from app.models.bank import Bank, BankSpec, load_bank  # noqa: E402
from app.models.checkpoint import Source  # noqa: E402
from app.models.classifier import Classifier, Mix  # noqa: E402
from app.models.cuda_graphs import CudaGraphs, Recorder, shape_for  # noqa: E402
from app.models.tokenizer import Row  # noqa: E402
from app.weights.methods import METHODS  # noqa: E402

SIZES = (1, 32, 256)
RECIPES = 8


def make_bank(folder: Path, layers: int, device: torch.device, dtype: torch.dtype) -> Bank:
    """A base and a variant of BERT-base's width, random and near each other."""
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers, num_labels=3)
    model = BertForSequenceClassification(config)
    for name in ("base", "variant"):
        model.save_pretrained(folder / name)
        pico.tokenizer().save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 5e-4)
    spec = BankSpec(Source(str(folder / "base")), {"variant": Source(str(folder / "variant"))})
    return load_bank(spec, device, dtype)


def rows(count: int, seed: int = 7) -> list[Row]:
    """Texts of 8 to 64 tokens, mean about 23."""
    chooser = random.Random(seed)
    lengths = [min(64, 8 + int(chooser.expovariate(1 / 15))) for _ in range(count)]
    return [Row([chooser.randrange(1_000, 30_000) for _ in range(n)], [0] * n, False) for n in lengths]


def median(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Seconds of a run, with the device's queue empty before and after; two runs before do not count."""
    times = []
    for number in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def print_blends(bank: Bank, device: torch.device, rounds: int) -> None:
    arena = bank.arena
    copied, slot = arena.new_slots(2).rows
    states = [arena.layout.views(arena[name]) for name in arena.names]

    def loop() -> list[torch.Tensor]:
        return [0.6 * one + 0.4 * states[1][name] for name, one in states[0].items()]

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "copy of one row": (lambda: copied.copy_(arena["variant"]), 2),
        "ours": (lambda: METHODS["linear"](arena, {"base": 0.6, "variant": 0.4}, slot), 3),
        "loop over tensors": (loop, 3),
    }
    print(f"\n| one blend, {arena.row_bytes / 1e6:.0f} MB | ms | GB/s moved |\n|---|---|---|")
    for name, (run, moved) in ways.items():
        seconds = median(run, device, rounds)
        print(f"| {name} | {seconds * 1e3:.3f} | {moved * arena.row_bytes / seconds / 1e9:.0f} |")


def print_forward(bank: Bank, device: torch.device, rounds: int, recorder: Recorder | None) -> None:
    classifier, arena = Classifier(bank), bank.arena
    slots = arena.new_slots(RECIPES).rows
    for number, slot in enumerate(slots):
        METHODS["linear"](arena, {"base": 1 - number / RECIPES, "variant": number / RECIPES}, slot)
    fixed = [classifier.fixed(slot) for slot in slots]
    model = bank.bind(slots[3])

    def transformers(batch: list[Row]) -> torch.Tensor:
        with torch.inference_mode():
            return classifier._padded(model, batch).float().cpu()

    def own(batch: list[Row]) -> list[Mix]:
        return [Mix((1 - i / 1_000, i / 1_000)) for i in range(1, len(batch) + 1)]

    ways: dict[str, Callable[[list[Row]], torch.Tensor]] = {
        "one recipe": lambda batch: classifier.batch(batch, [fixed[3]] * len(batch)),
        f"{RECIPES} recipes": lambda batch: classifier.batch(batch, [fixed[i % RECIPES] for i in range(len(batch))]),
        "every text its own t": lambda batch: classifier.batch(batch, own(batch)),
        "transformers, padded": transformers,
    }
    print(f"\n| texts per second | {' | '.join(map(str, SIZES))} |\n|---|{'---|' * len(SIZES)}")
    batches = {size: rows(size) for size in SIZES}

    def print_rates(name: str, run: Callable[[list[Row]], torch.Tensor], sizes: Sequence[int] = SIZES) -> None:
        rates = {size: f"{size / median(partial(run, batches[size]), device, rounds):.0f}" for size in sizes}
        print(f"| {name} | {' | '.join(rates.get(size, '-') for size in SIZES)} |")

    for name, run in ways.items():
        print_rates(name, run)
    other, share = rows(32, seed=8), 3 / RECIPES
    expected, mixes = transformers(other), [Mix((1 - share, share))] * len(other)
    checked = {"packed": classifier.batch(other, [fixed[3]] * 32), "mixed": classifier.batch(other, mixes)}
    if recorder is not None:
        recording = Classifier(bank)
        recordings = recording.record(recorder)
        small = [size for size in SIZES if shape_for([len(row) for row in batches[size]])]
        print_rates("one recipe, recorded", lambda batch: recording.batch(batch, [fixed[3]] * len(batch)), small)
        print_rates("every text its own t, recorded", lambda batch: recording.batch(batch, own(batch)), small)
        assert recordings.replayed >= 2 * rounds * len(small), "passes were not replayed; the log says why"
        # Other rows in the shape of those that were recorded.
        assert shape_for([len(row) for row in other]) == shape_for([len(row) for row in batches[32]])
        checked["replayed"] = recording.batch(other, [fixed[3]] * 32)
        checked["replayed mixed"] = recording.batch(other, mixes)
    for name, logits in checked.items():
        print(f"\nlargest difference of {name} logits from transformers: {(logits - expected).abs().max():.2e}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{shown}, torch {torch.__version__}, {options.dtype}, {options.layers} layers x 768")
    with tempfile.TemporaryDirectory() as folder:
        bank = make_bank(Path(folder), options.layers, device, getattr(torch, options.dtype))
        print_blends(bank, device, options.rounds)
        recorder = CudaGraphs(device) if device.type == "cuda" else None
        print_forward(bank, device, options.rounds, recorder)


if __name__ == "__main__":
    main()
