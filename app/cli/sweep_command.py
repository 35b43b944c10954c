"""`tween sweep`: options in, a table and a sentence out, and a folder of results.

What computes is imported when it is needed, so that `tween --help` stays quick.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.bank_options import load_provider, logits_folder
from app.cli.sweep_options import add_common, order_of, progress
from app.errors import BadData, BadSettings
from app.settings import Settings

if TYPE_CHECKING:
    from app.sweep.jobs.shard import Shard
    from app.sweep.jobs.sweep_store import SweepStore
    from app.sweep.logits.local_provider import LocalProvider
    from app.sweep.sweep_result import SweepResult
    from app.sweep.sweep_spec import BankFacts, SweepSpec


def add_sweep(command: argparse.ArgumentParser) -> None:
    """The options of `tween sweep`."""
    _add_choice(command)
    _add_places(command)
    add_common(command)
    command.set_defaults(run=_sweep)


def _add_choice(command: argparse.ArgumentParser) -> None:
    """What is asked."""
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


def _add_places(command: argparse.ArgumentParser) -> None:
    """Where it is run and where the results go."""
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


def _sweep(options: argparse.Namespace) -> int:
    """Sweep here or have a service do it, print the answer, write the folder."""
    order = order_of(options)
    if options.server:
        from app.cli.remote_sweep import run_there

        return run_there(options, order)
    from app.sweep.jobs.shard import Shard
    from app.sweep.sweep_spec import spec_from

    provider = load_provider(options)
    bank = provider.facts
    spec = spec_from(order, bank)
    for dataset in spec.datasets:
        columns = ", ".join(f"{role} from {column!r}" for role, column in dataset.columns.items())
        print(f"{dataset.name}: {len(dataset)} texts; {columns}")
    if options.share and spec.mixed:
        raise BadData("--share works along one line; name one --variant, or a --line")
    shard = Shard(options.share, provider, _shared_store()) if options.share else None
    if shard is not None:
        print(f"{shard.run(spec)} chunks are run", flush=True)
        if not shard.collects:
            return 0
    _write(options, _found(spec, bank, provider, shard))
    return 0


def _found(spec: SweepSpec, bank: BankFacts, provider: LocalProvider, shard: Shard | None) -> SweepResult:
    from app.sweep.diagnostics.fgsm import FastGradient
    from app.sweep.logits.logit_cache import FolderLogitStore, LogitCache, MemoryLogitStore
    from app.sweep.run import run_sweep

    store = MemoryLogitStore() if shard else FolderLogitStore(logits_folder())
    with progress("sweep") as on_progress:
        return run_sweep(spec, bank, LogitCache(shard or provider, store, on_progress), FastGradient(provider))


def _write(options: argparse.Namespace, found: SweepResult) -> None:
    from app.sweep.report import sweep_report, trackers

    folder = options.out or Path("sweep-" + found.end_name.replace("@", "-").replace("+", "-"))
    sweep_report.write(found, folder)
    print(
        f"\n{sweep_report.text_of(found)}\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}"
    )
    if options.tensorboard is not None:
        trackers.to_tensorboard(found, options.tensorboard)
    if options.wandb is not None:
        trackers.to_wandb(found, options.wandb)


def _shared_store() -> SweepStore:
    """Where processes that share a sweep keep their logits."""
    from app.cluster.redis_client import connect
    from app.cluster.redis_url import RedisUrl
    from app.sweep.jobs.sweep_store import SweepStore

    settings = Settings.from_environment(os.environ)
    if settings.redis_url is None:
        raise BadSettings("--share needs REDIS_URL, where the processes meet")
    return SweepStore(connect(RedisUrl.parse(settings.redis_url)), settings.redis_namespace, settings.sweep_ttl_s)
