"""What a t that runs over the layers gains on one t: `python -m tests.bench.ramps DATA` for a folder of domains.

Both are chosen on validation texts, and judged on test texts by true passes at the temperature from validation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from app.demo.build import cache_folder
from app.models.bank import BankSpec
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.logits.line import Line
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache
from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.sweep.run import run_sweep
from app.sweep.sweep_spec import SweepSpec
from app.weights.recipe import MICRO, Recipe
from tests.bench.choosing_t import Case, cases
from tests.bench.domains import bank_of


def tested(case: Case, recipe: Recipe, passes: LogitCache) -> float:
    """Log loss on the test texts."""
    pool = WeightedPool.of(case.test)
    logits = np.concatenate([passes.logits(data.texts, recipe) for data in case.test])
    return float(METRICS["loss"].of(ScoredTexts(logits * MICRO / recipe.temperature, pool.labels), pool.weights))


def main(data: Path) -> None:
    provider = LocalProvider.load(BankSpec.from_toml(bank_of(data)), torch.device("cpu"), torch.float32, max_tokens=128)
    read, store = provider.cookbook.read, FolderLogitStore(cache_folder() / "logits")
    print("| variant | texts | passes | one t | best ramp | gained (95 %) | held out | recommended ", end="")
    print("| test loss, one t | test loss, ramp |")
    print("|---" * 10 + "|")
    for case in tqdm(list(cases(data, provider.labels)), unit="case"):
        passes = LogitCache(provider, store)
        line = Line.read(case.variant, provider.cookbook)
        spec = SweepSpec(line, case.validation, [1.0] * len(case.validation), 0.0, ramp=True)
        found = run_sweep(spec, provider.facts, passes)
        ramp, gained = found.ramp, found.ramp.gained
        one = read(f"{found.chosen.recipe};temperature={found.chosen.temperature:.3g}")
        row = [
            case.variant,
            case.mix,
            str(found.passes),
            f"{found.best.t:g}",
            f"{ramp.first.value:g} to {ramp.last.value:g}",
            f"{gained.value:+.4f} ({gained.low:+.4f} to {gained.high:+.4f})",
            f"{ramp.held_out:+.4f}",
            "the ramp" if ramp.better else "one t",
            *(f"{tested(case, recipe, LogitCache(provider, store)):.4f}" for recipe in (one, read(ramp.recipe))),
        ]
        tqdm.write(f"| {' | '.join(row)} |", file=sys.stdout)
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python -m tests.bench.ramps DATA")
    main(Path(sys.argv[1]))
