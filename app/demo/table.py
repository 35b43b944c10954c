"""The demo bank's scores along t on its held-out texts, as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.demo import corpus
from app.models.bank import BankSpec, load_bank
from app.models.classifier import Classifier
from app.models.tokenizer import TextTokenizer
from app.sweep.metrics_of_t import Scores, scores
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook

GRID = [step / 10 for step in range(11)]


def scores_along_t(file: Path, grid: Sequence[float] = GRID) -> dict[str, dict[float, dict[str, Scores]]]:
    """For each variant and each t: scores on its own test texts, on general ones, and on both together."""
    bank = load_bank(BankSpec.from_toml(file), torch.device("cpu"))
    classifier = Classifier(bank)
    encoder = TextTokenizer(bank.tokenizer, bank.config, max_tokens=128)
    cookbook = Cookbook(bank.variants)
    slot = bank.arena.new_vector()
    general = corpus.read(corpus.GENERAL, "test")
    result: dict[str, dict[float, dict[str, Scores]]] = {}
    for variant in bank.variants:
        own = corpus.read(variant, "test")
        rows = encoder.encode([e.text for e in own + general])
        labels = torch.tensor([e.label for e in own + general])
        result[variant] = {}
        for t in grid:
            METHODS["linear"](bank.arena, cookbook.read({"variant": variant, "t": t}).weights, slot)
            logits = torch.cat([classifier.logits(slot, rows[i : i + 256]) for i in range(0, len(rows), 256)])
            result[variant][t] = {
                "own": _part(logits, labels, slice(0, len(own))),
                "general": _part(logits, labels, slice(len(own), None)),
                "both": _part(logits, labels, slice(None)),
            }
    return result


def _part(logits: Tensor, labels: Tensor, part: slice) -> Scores:
    return scores(logits[part].numpy(), labels[part].numpy())


def print_table(file: Path) -> None:
    """Print accuracy on own and general texts, and all scores on both together, along t, in Markdown."""
    for variant, along in scores_along_t(file).items():
        print(f"\n**{variant}** (own = {variant} test texts, both = own and general test texts together)\n")
        print("| t | accuracy own | accuracy general | accuracy both | macro-F1 both | log loss both | ECE both |")
        print("|---|---|---|---|---|---|---|")
        best = {name: _best(along, name) for name in ("accuracy", "macro_f1", "log_loss", "calibration_error")}
        for t, parts in along.items():
            both = [
                _cell(getattr(parts["both"], name), 1 if name in PERCENT else 3, name in PERCENT, best[name] == t)
                for name in best
            ]
            own, general = (_cell(parts[part].accuracy, 1, True, False) for part in ("own", "general"))
            print(f"| {t:g} | {own} | {general} | {' | '.join(both)} |")


PERCENT = ("accuracy", "macro_f1", "calibration_error")


def _best(along: dict[float, dict[str, Scores]], name: str) -> float:
    choose = max if name in ("accuracy", "macro_f1") else min
    return choose(along, key=lambda t: getattr(along[t]["both"], name))


def _cell(value: float, digits: int, percent: bool, bold: bool) -> str:
    text = f"{100 * value:.{digits}f}" if percent else f"{value:.{digits}f}"
    return f"**{text}**" if bold else text
