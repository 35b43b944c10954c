"""`tween fetch`: for an init container or a job that fills a volume, which serve can then do without the hub."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from app.errors import BadBank
from app.settings import Settings


def add_fetch(command: argparse.ArgumentParser) -> None:
    """The options of `tween fetch`."""
    command.add_argument("--bank", type=Path, help="the bank file (TWEEN_BANK)")
    command.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    from app.models.bank import BankSpec
    from app.weights.arena import BASE

    settings = Settings.from_environment(os.environ, bank=options.bank)
    if settings.bank is None:
        raise BadBank("nothing to fetch: give a bank file by --bank")
    spec = BankSpec.from_toml(settings.bank)
    for member, source in {BASE: spec.base, **spec.variants}.items():
        print(member, source.folder(member), flush=True)
    return 0
