"""What a t by segment gains: `python -m tests.bench.segments DATA [VARIANT ...]` for a folder of domains.

The segments are the domains (see `domains.py`), all counted alike. One t, t's by segment, router and gain of entropies
are fitted on validation texts and judged on test texts; "guessed" never sees the segment of a test text. What the same
fit gains on the test texts themselves tells how much of a gain this bank has to give.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from app.demo.build import cache_folder
from app.models.bank import BankSpec
from app.search.by_segment import Gain, gains_of
from app.search.curve import Curve
from app.search.dataset import Columns, dataset_of
from app.search.line import Line
from app.search.local import LocalProvider
from app.search.passes import FolderStore, Passes
from app.search.segmented import METHODS, Segmented
from tests.bench.choosing_t import MOST_TEST_TEXTS
from tests.bench.domains import bank_of, domains_of, read

DRAWS, SEED = 2000, 0
HINDSIGHT = {"hindsight": "t by declared segment, fitted on the test texts: out of reach"}


def segmented(data: Path, split: str, line: Line, provider: LocalProvider) -> Segmented:
    """All domains' texts of a split, each domain a segment."""
    datasets = []
    for domain in domains_of(data):
        examples = read(data, domain, split)[: MOST_TEST_TEXTS if split == "test" else None]
        rows = ((f"text {i}", {"text": e.text, "label": e.label}) for i, e in enumerate(examples))
        datasets.append(dataset_of(domain, rows, provider.labels, Columns()))
    passes = Passes(provider, FolderStore(cache_folder() / "logits"))
    return Segmented(datasets, [1.0] * len(datasets), Curve(line, [d.texts for d in datasets], passes))


def main(data: Path, variants: list[str]) -> None:
    provider = LocalProvider.load(BankSpec.from_toml(bank_of(data)), torch.device("cpu"), torch.float32, max_tokens=128)
    print("| variant | choice of t | t | log loss | accuracy | loss gained (95 %) | points gained (95 %) |")
    print("|---" * 7 + "|")
    for variant in variants or provider.cookbook.variants:
        line = Line.read(variant, provider.cookbook)
        chooses, judges = (segmented(data, split, line, provider) for split in ("validation", "test"))
        (fitted,), (hindsight,) = (d.fit([np.ones(len(d.pool), dtype=bool)]) for d in (chooses, judges))
        log_p = {name: judges.log_probabilities(s) for name, s in chooses.settings(fitted, judges).items()}
        log_p["hindsight"] = judges.log_probabilities(judges.settings(hindsight, judges)["segment"])
        everything = np.ones(len(judges.pool), dtype=bool)
        gains = gains_of(judges, log_p, everything, DRAWS, SEED)
        by_name = ", ".join(f"{n} {t:.2f}" for n, t in zip(chooses.names, fitted.by_segment.t, strict=True))
        right = float(judges.pool.weights @ chooses.routed_rightly(fitted, judges))
        notes = {
            "one t": f"{fitted.t:.2f}",
            "segment": by_name,
            "router": f"mixed; {100 * right:.1f} % of segments right",
            "entropy": f"gain {fitted.entropy.gain:.2f}, offset {fitted.entropy.offset:.2f}",
        }
        for name, gain in gains.items():
            print(f"| {variant} | {(METHODS | HINDSIGHT)[name]} | {notes.get(name, '')} | {_row(gain)} |", flush=True)
        for k, name in enumerate(judges.names):
            own = gains_of(judges, log_p, judges.segments == k, DRAWS, SEED)["segment"]
            print(f"| {variant} | {METHODS['segment']}, on {name} alone | | {_row(own)} |", flush=True)


def _row(gain: Gain) -> str:
    loss, points = gain.loss_gained, gain.accuracy_gained
    return (
        f"{gain.loss:.3f} | {100 * gain.accuracy:.1f} % | {loss.value:+.3f} ({loss.low:+.3f} to {loss.high:+.3f}) | "
        f"{100 * points.value:+.1f} ({100 * points.low:+.1f} to {100 * points.high:+.1f})"
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("python -m tests.bench.segments DATA [VARIANT ...]")
    main(Path(sys.argv[1]), sys.argv[2:])
