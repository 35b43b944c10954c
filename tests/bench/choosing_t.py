"""How well t is chosen: `python -m tests.bench.choosing_t DATA` for a folder of domains (see `domains.py`).

A base and a variant per domain are fine-tuned from the demo's encoder and kept in the user's cache folder. For every
variant, t and T are chosen on validation texts, of its own domain and of own and general in equal parts, and judged on
test texts: how much worse than the best t of a grid of 0.1 is the recommended one, and does the interval from 200
labels, drawn five times, hold the t that is best on the test texts?
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from app.demo.build import cache_folder
from app.models.bank import BankSpec
from app.sweep.build_result import findings
from app.sweep.choose_t import Rule
from app.sweep.data.dataset import Columns, Dataset, dataset_of
from app.sweep.logits.line import Line
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache, MemoryLogitStore
from app.sweep.logits.logit_curve import GRID, LogitCurve
from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.sweep.one_line import sweep
from app.sweep.scorer import Scorer
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import SweepSpec
from app.weights.recipe import Recipe
from tests.bench.domains import GENERAL, bank_of, domains_of, read

LABELS_DRAWN = 200
SEEDS = range(5)
MOST_TEST_TEXTS = 1000
RULES: tuple[Rule, ...] = ("nearest", "best")


class Recorded:
    """A provider that runs each text through each blend once, whichever data set it is in."""

    def __init__(self, provider: LocalProvider) -> None:
        self._provider = provider
        self._logits: dict[tuple[Recipe, str], NDArray[np.float32]] = {}

    def key(self, recipe: Recipe) -> str:
        return self._provider.key(recipe)

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        missing = [text for text in texts if (recipe, text) not in self._logits]
        if missing:
            made = self._provider.logits(missing, recipe)
            self._logits |= {(recipe, text): row for text, row in zip(missing, made, strict=True)}
        return np.stack([self._logits[recipe, text] for text in texts])


@dataclass
class Case:
    """A variant and a mix of texts: what chooses, and what judges."""

    variant: str
    mix: str
    validation: list[Dataset]
    test: list[Dataset]


def cases(data: Path, labels: list[str]) -> Iterator[Case]:
    """Every variant on its own texts, and on these and general ones in equal parts."""

    def dataset(domain: str, split: str) -> Dataset:
        examples = read(data, domain, split)
        if split == "test":
            examples = examples[:MOST_TEST_TEXTS]
        rows = ((f"text {i}", {"text": e.text, "label": e.label}) for i, e in enumerate(examples))
        return dataset_of(f"{domain} {split}", rows, labels, Columns())

    general = [dataset(GENERAL, split) for split in ("validation", "test")]
    for variant in domains_of(data)[1:]:
        own = [dataset(variant, split) for split in ("validation", "test")]
        yield Case(variant, "own", own[:1], own[1:])
        yield Case(variant, "own + general", [own[0], general[0]], [own[1], general[1]])


def drawn(datasets: list[Dataset], total: int, seed: int) -> list[Dataset]:
    """As many texts in all, the same number from each data set."""
    rng = np.random.default_rng(seed)
    made = []
    for data in datasets:
        rows = np.sort(rng.permutation(len(data))[: total // len(datasets)])
        made.append(data.subset(rows))
    return made


def asked(line: Line, targets: list[Dataset], rule: Rule = "nearest") -> SweepSpec:
    return SweepSpec(line, targets, [1.0] * len(targets), 0.0, rule=rule)


def chosen(line: Line, targets: list[Dataset], passes: LogitCache, rule: Rule) -> tuple[SweepResult, LogitCurve]:
    spec = asked(line, targets, rule)
    curve, choice = sweep(spec, passes)
    return findings(spec, curve, choice, passes, ["0", "1", "2"]), curve


def tested(curve: LogitCurve, spec: SweepSpec, t: float, temperature: float) -> float:
    """Log loss on the test texts."""
    logits = np.concatenate([curve.logits(d, np.array([t]))[0] for d in range(len(spec.targets))])
    return float(METRICS["loss"].of(ScoredTexts(logits / temperature, spec.pool.labels), spec.pool.weights))


def main(data: Path) -> None:
    provider = LocalProvider.load(BankSpec.from_toml(bank_of(data)), torch.device("cpu"), torch.float32, max_tokens=128)
    recorded, store = Recorded(provider), FolderLogitStore(cache_folder() / "logits")
    norms = dict(zip(provider.cookbook.variants, provider.bank.delta_norms, strict=True))
    print("| variant | texts | labels | passes | t (nearest) | loss | t (best) | loss | best grid t | loss", end="")
    print(" | excess, nearest / best | 200 labels, 5 draws: t | intervals that hold the test optimum |")
    print("|---" * 13 + "|")
    held, excesses = [], {rule: [] for rule in RULES}
    for case in tqdm(list(cases(data, provider.labels)), unit="case"):
        line = Line.read(case.variant, provider.cookbook)
        test_spec = asked(line, case.test)
        test = LogitCurve(line, [d.texts for d in case.test], LogitCache(provider, store))
        judge = Scorer(test, test_spec)
        optimum = float(judge.ts[judge.scores().argmin()])
        found = {}
        for rule in RULES:
            passes = LogitCache(recorded, store)
            found[rule], curve = chosen(line, case.validation, passes, rule)
        temperature = dict(zip(*_temperatures(curve, asked(line, case.validation)), strict=True))
        losses = {t: tested(test, test_spec, t, temperature[t]) for t in GRID}
        best_t = min(losses, key=losses.__getitem__)
        mine = {rule: tested(test, test_spec, f.best.t, f.best.temperature) for rule, f in found.items()}
        for rule in RULES:
            excesses[rule].append(mine[rule] / losses[best_t] - 1)
        draws = [
            chosen(line, drawn(case.validation, LABELS_DRAWN, s), LogitCache(recorded, MemoryLogitStore()), "nearest")[
                0
            ]
            for s in SEEDS
        ]
        held.append(sum(f.best.interval[0] <= optimum <= f.best.interval[1] for f in draws))
        row = [
            case.variant,
            case.mix,
            str(sum(map(len, case.validation))),
            str(found["nearest"].passes),
            *(cell for rule in RULES for cell in (f"{found[rule].best.t:.2f}", f"{mine[rule]:.4f}")),
            f"{best_t:.1f}",
            f"{losses[best_t]:.4f}",
            " / ".join(f"{100 * excesses[rule][-1]:+.2f} %" for rule in RULES),
            ", ".join(f"{f.best.t:.2f}" for f in draws),
            f"{held[-1]} of {len(draws)} ({optimum:.2f})",
        ]
        print("| " + " | ".join(row) + " |", flush=True)
    print(f"\nDeltas' lengths: {', '.join(f'{name} {norm:.2f}' for name, norm in norms.items())}")
    for rule in RULES:
        print(f"Largest excess over the best grid t, {rule}: {100 * max(excesses[rule]):+.2f} %")
    print(f"Intervals from {LABELS_DRAWN} labels that hold the test optimum: {sum(held)} of {len(held) * len(SEEDS)}")


def _temperatures(curve: LogitCurve, spec: SweepSpec) -> tuple[list[float], list[float]]:
    """The temperature that the validation texts ask for at every t of the grid."""
    judge = Scorer(curve, spec)
    at = [int(np.abs(judge.ts - t).argmin()) for t in GRID]
    return list(GRID), [float(1 / judge.beta[position]) for position in at]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python -m tests.bench.choosing_t DATA, a folder of <domain>/{train,validation,test}.csv")
    main(Path(sys.argv[1]))
