"""What a t, or a variant and a t, by segment gains: `python -m tests.bench.segments DATA [VARIANT ...]`.

DATA is a folder of domains (see `domains.py`), which are the segments, all counted alike. One t, t's by segment
and the router are fitted on validation texts and judged on test texts; "guessed" never sees the segment
of a test text. What the same fit gains on the test texts themselves tells how much of a gain this bank has to give. The
rows `auto` are across the variants, and the second table holds them against each variant's own best t.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.demo.build import cache_folder
from app.models.bank import BankSpec
from app.segments.fit import fit_across_variants, fit_one_line
from app.segments.fit.evaluate_gain import Gain, gains_of
from app.segments.fit.fit_across_variants import AcrossVariants
from app.segments.fit.fit_one_line import Segmented, SegmentTexts
from app.sweep.data.dataset import Columns, dataset_of
from app.sweep.logits.line import Line
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache
from app.sweep.logits.logit_curve import LogitCurve
from tests.bench.choosing_t import MOST_TEST_TEXTS
from tests.bench.domains import bank_of, domains_of, read

DRAWS, SEED = 2000, 0
LogP = dict[str, NDArray[np.float64]]
TITLES = {
    **fit_one_line.METHODS,
    **fit_across_variants.METHODS,
    "segment": "by declared segment",
    "router": "by guessed segment",
    "hedge": "by guessed segment, t times how likely its variant is",
    "hindsight": "by declared segment, fitted on the test texts: out of reach",
}


def texts_of(data: Path, split: str, labels: list[str]) -> SegmentTexts:
    """All domains' texts of a split, each domain a segment."""
    datasets = []
    for domain in domains_of(data):
        examples = read(data, domain, split)[: MOST_TEST_TEXTS if split == "test" else None]
        rows = ((f"text {i}", {"text": e.text, "label": e.label}) for i, e in enumerate(examples))
        datasets.append(dataset_of(domain, rows, labels, Columns()))
    return SegmentTexts(datasets, [1.0] * len(datasets))


def main(data: Path, variants: list[str]) -> None:
    provider = LocalProvider.load(BankSpec.from_toml(bank_of(data)), torch.device("cpu"), torch.float32, max_tokens=128)
    passes = LogitCache(provider, FolderLogitStore(cache_folder() / "logits"))
    variants = variants or list(provider.cookbook.variants)
    chooses, judges = (texts_of(data, split, provider.labels) for split in ("validation", "test"))

    def curve(variant: str, texts: SegmentTexts) -> LogitCurve:
        return LogitCurve(Line.read(variant, provider.cookbook), [dataset.texts for dataset in texts.datasets], passes)

    print("| variant | choice | t | log loss | accuracy | loss gained (95 %) | points gained (95 %) |")
    print("|---" * 7 + "|")
    singles: LogP = {}
    for variant in variants:
        line, test = (Segmented(texts, curve(variant, texts)) for texts in (chooses, judges))
        title, singles[title] = along_one(variant, line, test)
    if len(variants) > 1:
        lines, tests = (AcrossVariants(texts, {v: curve(v, texts) for v in variants}) for texts in (chooses, judges))
        answers = across_all(lines, tests)
        print(f"\n| `auto` gains on | choice | all | {' | '.join(judges.names)} |")
        print("|---" * (3 + len(judges.names)) + "|")
        for title, one in singles.items():
            for choice in ("segment", "router"):
                print(f"| {title} | {TITLES[choice]} | {_against(one, answers[choice], judges)} |", flush=True)


def along_one(variant: str, line: Segmented, test: Segmented) -> tuple[str, NDArray[np.float64]]:
    """Print a variant's rows; its best t, and the answers there."""
    (fitted,), (hindsight,) = (each.fit([each.texts.everything]) for each in (line, test))
    log_p = line.answers(fitted, test) | {"hindsight": test.answers(hindsight, test)["segment"]}
    by_name = (f"{n} {t:.2f}" for n, t in zip(line.texts.names, fitted.by_segment.t, strict=True))
    notes = {
        "one t": f"{fitted.t:.2f}",
        "segment": ", ".join(by_name),
        "router": _rightly(line.texts.routed_rightly(fitted.router, test.texts), test.texts),
    }
    _print(variant, log_p, notes, test.texts, ["segment"])
    return f"{variant} {fitted.t:.2f}", log_p["one t"]


def across_all(lines: AcrossVariants, tests: AcrossVariants) -> LogP:
    """Print the rows across all variants; the answers."""
    (fitted,), (hindsight,) = (each.fit([each.texts.everything]) for each in (lines, tests))
    members, t, temperature = lines.settings(fitted, tests)["router"]
    of_member = lines.texts.likely(fitted.router, tests.texts) @ np.eye(len(lines.names))[fitted.members]
    log_p = lines.answers(fitted, tests) | {
        "hedge": tests.log_probabilities((members, t * of_member.max(axis=1), temperature)),
        "hindsight": tests.answers(hindsight, tests)["segment"],
    }
    by_name = (
        f"{name}: {lines.names[member]} {t:.2f}"
        for name, member, t in zip(lines.texts.names, fitted.members, fitted.t, strict=True)
    )
    notes = {
        "one recipe": f"{lines.names[fitted.one.member]} {fitted.one.t:.2f}",
        "segment": ", ".join(by_name),
        "router": _rightly(lines.texts.routed_rightly(fitted.router, tests.texts), tests.texts),
    }
    _print("auto", log_p, notes, tests.texts, ["segment", "router"])
    return log_p


def _print(variant: str, log_p: LogP, notes: dict[str, str], texts: SegmentTexts, alone: list[str]) -> None:
    """A row for each choice, and for some of them one for each segment."""
    for name, gain in gains_of(texts, log_p, texts.everything, DRAWS, SEED).items():
        print(f"| {variant} | {TITLES[name]} | {notes.get(name, '')} | {_row(gain)} |", flush=True)
    for segment, inside in _segments(texts):
        gains = gains_of(texts, log_p, inside, DRAWS, SEED)
        for name in alone:
            print(f"| {variant} | {TITLES[name]}, on {segment} alone | | {_row(gains[name])} |", flush=True)


def _against(one: NDArray[np.float64], other: NDArray[np.float64], texts: SegmentTexts) -> str:
    """Loss gained on all texts, and on each segment alone."""
    cells = []
    for inside in (texts.everything, *(part for _, part in _segments(texts))):
        gained = gains_of(texts, {"one": one, "other": other}, inside, DRAWS, SEED)["other"].loss_gained
        cells.append(f"{gained.value:+.3f} ({gained.low:+.3f} to {gained.high:+.3f})")
    return " | ".join(cells)


def _segments(texts: SegmentTexts) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    return ((name, texts.segments == k) for k, name in enumerate(texts.names))


def _rightly(right: NDArray[np.bool_], texts: SegmentTexts) -> str:
    return f"mixed; {100 * float(texts.pool.weights @ right):.1f} % of segments right"


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
