"""`tween sweep`: options in, a table and a sentence out, and a folder of results.

What computes is imported when it is needed, so that `tween --help` stays quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.sweep_options import Load, add_common, progress, question_of, variants_of
from app.errors import BadData

if TYPE_CHECKING:
    from app.sweep.jobs.sweep_store import SweepStore


def add_sweep(command: argparse.ArgumentParser) -> None:
    """The options of `tween sweep`."""
    command.add_argument(
        "data",
        nargs="+",
        metavar="DATA[:WEIGHT]",
        help="labelled texts that the blend is to serve, with the columns text and label: CSV, JSON lines or parquet",
    )
    command.add_argument(
        "--guard",
        action="append",
        default=[],
        metavar="DATA:MARGIN[:METRIC][:CONFIDENCE]",
        help="labelled texts on which it must not get worse than the base by more than a margin, such as "
        "general.csv:1pt (a point of accuracy, 90 %% sure), general.csv:1pt:0.95 or general.csv:0.02:loss; may be "
        "repeated",
    )
    command.add_argument(
        "--objective",
        default="loss",
        choices=("loss", "accuracy", "macro_f1", "ece", "brier", "cost", "worst_group"),
        help="what is made best (loss: log loss at the temperature that fits)",
    )
    command.add_argument(
        "--cost", metavar="ROWS", help="cost of each answer, a row per true label, such as '0,1,5;1,0,1;2,1,0'"
    )
    command.add_argument(
        "--rule",
        choices=("best", "nearest"),
        default="best",
        help="the best t, or the smallest one within a standard error of it, which stays nearest to the base",
    )
    command.add_argument(
        "--lambda",
        dest="penalty",
        default="0",
        metavar="NUMBER",
        help="minimise loss + lambda t^2 |delta|^2 instead, with this lambda, or one that 'folds' choose",
    )
    command.add_argument(
        "--ramp",
        action="store_true",
        help="also look for one t in the first layer and another in the last, and say what that gains",
    )
    command.add_argument(
        "--robustness",
        action="store_true",
        help="also perturb and attack texts of the first data set along t",
    )
    command.add_argument("--seed", type=int, default=0, help="of resamples and folds (0)")
    command.add_argument("--out", type=Path, help="folder of the results (sweep-LINE)")
    command.add_argument("--tensorboard", type=Path, metavar="DIR", help="also write event files for TensorBoard there")
    command.add_argument("--wandb", type=Path, metavar="DIR", help="also write an offline run for Weights & Biases")
    command.add_argument(
        "--server",
        metavar="URL",
        help="have a running service do it, and follow it from here, with the key in TWEEN_API_KEY if it asks for one",
    )
    command.add_argument(
        "--share",
        metavar="INDEX/COUNT",
        help="run only this share of the passes, into REDIS_URL; the last process collects all and reports",
    )
    add_common(command)


def run_sweep(options: argparse.Namespace, load: Load, store: Path, shared: Callable[[], SweepStore]) -> int:
    """Sweep, print the answer, write the folder."""
    from app.sweep.report import sweep_report, trackers

    if options.server:
        from app.cli.remote_sweep import run_there

        return run_there(options)
    from app.sweep.diagnostics.fgsm import FastGradient
    from app.sweep.diagnostics.robustness import TS, robustness
    from app.sweep.jobs.shard import Shard
    from app.sweep.layer_ramp import swept
    from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache, MemoryLogitStore
    from app.sweep.multi_variant import towards_the_best_mix

    provider = load(options)
    question = question_of(options, provider)
    variants, direction = variants_of(options, provider), None
    if options.share and len(variants) > 1:
        raise BadData("--share works along one line; name one --variant, or a --line")
    share = Shard(options.share, provider, shared()) if options.share else None
    if share is not None:
        print(f"{share.run(question)} chunks are run", flush=True)
        if not share.collects:
            return 0
    with progress("sweep") as on_progress:
        passes = LogitCache(share or provider, MemoryLogitStore() if share else FolderLogitStore(store), on_progress)
        if len(variants) > 1:
            line, direction = towards_the_best_mix(question, variants, passes)
            question = replace(question, line=line, squared_length=line.squared_length(provider.delta_products))
        found = swept(question, passes, provider.labels)
        found.direction = direction
        if options.robustness:
            ts = sorted({*TS, found.best.t})
            target = question.targets[0]
            found.robustness = robustness(question.line, target, ts, passes, question.seed, FastGradient(provider))
    folder = options.out or Path("sweep-" + found.end_name.replace("@", "-").replace("+", "-"))
    sweep_report.write(found, folder)
    print(
        f"\n{sweep_report.text_of(found)}\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}"
    )
    if options.tensorboard is not None:
        trackers.to_tensorboard(found, options.tensorboard)
    if options.wandb is not None:
        trackers.to_wandb(found, options.wandb)
    return 0
