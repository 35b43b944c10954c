"""`tween sweep-worker`: a process that runs passes of sweeps for services on the same Redis."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from app.cli.bank_options import load_provider
from app.errors import BadSettings
from app.settings import Settings


def add_sweep_worker(command: argparse.ArgumentParser) -> None:
    """The options of `tween sweep-worker`."""
    command.add_argument("--bank", type=Path, help="the bank file (TWEEN_BANK)")
    command.add_argument(
        "--idle", type=float, default=30, help="seconds after which a silent worker's part is another's"
    )
    command.set_defaults(run=_sweep_worker, base=None, variant=[])


def _sweep_worker(options: argparse.Namespace) -> int:
    import asyncio

    from app.api.telemetry.logs import write_logs

    settings = Settings.from_environment(os.environ, bank=options.bank)
    if settings.redis_url is None:
        raise BadSettings("a worker needs REDIS_URL, the Redis of the services that it works for")
    try:
        from app.sweep.jobs.taskiq_runner import work
    except ImportError:
        raise BadSettings("workers of sweeps need taskiq (pip install 'tween[taskiq]')") from None
    write_logs(settings.log_level, settings.log_format)
    provider = load_provider(options)
    asyncio.run(work(provider, settings.redis_url, settings.redis_namespace, settings.sweep_ttl_s, options.idle))
    return 0
