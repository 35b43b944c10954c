"""`tween segments`: labelled texts of several segments in; tables, a sentence and a folder out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from app.cli.bank_options import load_provider, logits_folder
from app.cli.sweep_options import Load, add_common, columns_of, dataset_of_path, line_of, progress, variants_of, weighed
from app.errors import BadData
from app.weights.arena import BASE

if TYPE_CHECKING:
    from app.segments.fit.evaluate_gain import SegmentFindings
    from app.segments.fit.fit_one_line import SegmentTexts
    from app.segments.segment_table import SegmentTable
    from app.sweep.logits.local_provider import LocalProvider
    from app.sweep.logits.logit_curve import LogitCurve

More = Sequence[tuple[str, str]]
"""Texts without labels, with their segments."""


def add_segments(command: argparse.ArgumentParser) -> None:
    """The options of `tween segments`."""
    command.add_argument(
        "data",
        nargs="+",
        metavar="DATA[:WEIGHT]",
        help="labelled texts with a column of segments; several files without one are a segment each",
    )
    command.add_argument(
        "--unlabelled",
        action="append",
        default=[],
        metavar="DATA",
        help="more texts with their segments, from which the router learns; may be repeated",
    )
    command.add_argument("--seed", type=int, default=0, help="of resamples and folds (0)")
    command.add_argument("--out", type=Path, help="folder of the results (segments-VARIANT, or segments-auto)")
    command.add_argument(
        "--put",
        metavar="URL",
        help="put the table live on that service, with the key in TWEEN_API_KEY if it asks for one",
    )
    add_common(
        command,
        variant="the variant whose t is chosen for each segment, or several, of which each segment gets one (all); "
        "beside --base, NAME=SOURCE",
    )
    command.set_defaults(run=lambda options: run_segments(options, load_provider, logits_folder()))


def run_segments(options: argparse.Namespace, load: Load, store: Path) -> int:
    """Fit, judge on held-out texts, print the answer, write the folder."""
    from app.segments.fit.fit_one_line import SegmentTexts
    from app.segments.fit.segments_report import text_of, write
    from app.sweep.logits.line import Line
    from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache
    from app.sweep.logits.logit_curve import LogitCurve

    provider = load(options)
    variants = variants_to_choose_from(options, provider)
    columns = columns_of(options)
    pairs = [weighed(text) for text in options.data]
    datasets = [dataset_of_path(path, provider, columns) for path, _ in pairs]
    more = [
        (text, unlabelled.segment_names[segment])
        for unlabelled in (dataset_of_path(path, provider, columns, labelled=False) for path in options.unlabelled)
        if unlabelled.segments is not None
        for text, segment in zip(unlabelled.texts, unlabelled.segments, strict=True)
    ]
    texts = SegmentTexts(datasets, [share for _, share in pairs])
    with progress("segments") as on_progress:
        passes = LogitCache(provider, FolderLogitStore(store), on_progress)
        curves = {
            variant: LogitCurve(Line.read(variant, provider.cookbook), [dataset.texts for dataset in datasets], passes)
            for variant in variants
        }
    table, found = (_along_one if len(curves) == 1 else _across)(
        texts, curves, provider.bank.fingerprint, more, options.seed
    )
    folder = options.out or Path(f"segments-{table.variant}")
    write(found, table, folder)
    print(f"\n{text_of(found, table)}\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    if options.put:
        print(f"Live at {options.put}, version {put_live(options.put, table)}")
    return 0


def variants_to_choose_from(options: argparse.Namespace, provider: LocalProvider) -> list[str]:
    """Those that --variant names, else all of the bank; or the one that --line leads to.

    Raises `BadData` or `UnknownVariant`.
    """
    from app.sweep.data.dataset import check_labels

    check_labels(provider.bank.problem_type)
    loaded = provider.cookbook.variants
    if options.line is not None or len(loaded) < 2:
        line = line_of(options, provider)
        names = [line.end_name]
        if line.start_name != BASE:
            raise BadData(f"t's by segment are of a line from the base, and {line.text} is none; name a --variant")
    else:
        names = variants_of(options) or list(loaded)
    for name in names:
        provider.cookbook.read(name)
        if name not in loaded:
            raise BadData(f"t's by segment are of variants, and {name!r} is none; loaded: {', '.join(loaded)}")
    return names


def _along_one(
    texts: SegmentTexts, curves: dict[str, LogitCurve], bank: str, more: More, seed: int
) -> tuple[SegmentTable, SegmentFindings]:
    from app.segments.fit.evaluate_gain import fit_table, judged
    from app.segments.fit.fit_one_line import Segmented

    ((variant, curve),) = curves.items()
    data = Segmented(texts, curve)
    return fit_table(data, variant, bank, more), judged(data, curve.line.text, more, seed=seed)


def _across(
    texts: SegmentTexts, curves: dict[str, LogitCurve], bank: str, more: More, seed: int
) -> tuple[SegmentTable, SegmentFindings]:
    from app.segments.fit.evaluate_gain import judged
    from app.segments.fit.fit_across_variants import AcrossVariants

    data = AcrossVariants(texts, curves)
    (fitted,) = data.fit([texts.everything], more)
    found = judged(data, ", ".join(curve.line.text for curve in curves.values()), more, seed=seed)
    return data.table(fitted, bank), replace(found, wanted=data.wanted(fitted))


def put_live(server: str, table: SegmentTable) -> int:
    """Have every pod of a service go by the table: its version there. Raises `BadData` with the service's sentence."""
    from app.cli.remote_sweep import call

    reply = call(f"{server.rstrip('/')}/v1/segments/{quote(table.variant, safe='')}", table.document(), "PUT")
    return int(reply["live"]["version"])
