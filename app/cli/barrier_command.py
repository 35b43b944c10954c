"""`tween barrier`: whether the line between two recipes can be blended at all."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from app.cli.bank_options import load_provider, logits_folder
from app.cli.sweep_options import add_common, columns_of, dataset_of_path, line_of, progress, variant_at_the_end


def add_barrier(command: argparse.ArgumentParser) -> None:
    """The options of `tween barrier`."""
    command.add_argument("data", metavar="DATA", help="texts, with or without labels: CSV, JSON lines or parquet")
    command.add_argument("--out", type=Path, help="write barrier.json there")
    command.add_argument(
        "--record",
        action="store_true",
        help="keep the verdict beside the variant, so that a service tells of it (only of a line from the base)",
    )
    add_common(command)
    command.set_defaults(run=_barrier)


def _barrier(options: argparse.Namespace) -> int:
    """Measure the barrier along a line, and print the verdict."""
    from app.models.variant_checks import Recorded, digest_of, record_barrier
    from app.sweep.diagnostics.barrier import barrier
    from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache

    provider = load_provider(options)
    line = line_of(options, provider)
    variant = variant_at_the_end(line) if options.record else None
    dataset = dataset_of_path(options.data, provider, columns_of(options), labelled=False)
    with progress("barrier") as on_progress:
        found = barrier(line, dataset, LogitCache(provider, FolderLogitStore(logits_folder()), on_progress))
    print(f"{'t':>5}  {'log loss':>8}  {'above':>6}  {'error':>7}  above")
    for at in found.steps:
        if abs(at.t * 10 - round(at.t * 10)) < 1e-6:
            print(
                f"{at.t:>5g}  {at.loss:>8.3f}  {at.loss_above:>+6.3f}  {100 * at.error:>5.1f} %  "
                f"{100 * at.error_above:+.1f} points"
            )
    print(f"\n{found.sentence}")
    if variant is not None:
        recorded = Recorded(digest_of(provider.bank.arena, variant), found.connected, found.sentence)
        print(f"Recorded in {record_barrier(provider.bank.folders[variant], recorded)}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "barrier.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return 0
