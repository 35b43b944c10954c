"""The bank that a command's options name, and what a command that serves nobody loads of it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import BadBank
from app.settings import Settings

if TYPE_CHECKING:
    from app.models.bank import BankSpec
    from app.sweep.logits.local_provider import LocalProvider


def bank_spec(options: argparse.Namespace, settings: Settings) -> BankSpec:
    """The bank of --base and --variant, or of a bank file. Raises `BadBank`."""
    from app.models.bank import BankSpec

    if options.base and options.bank:
        raise BadBank("give either --bank or --base and --variant, not both")
    if options.base:
        return BankSpec.from_options(options.base, options.variant)
    if options.variant:
        raise BadBank("--variant needs --base")
    if settings.bank is None:
        raise BadBank("nothing to serve: give --base FOLDER --variant NAME=FOLDER, or a bank file by --bank")
    return BankSpec.from_toml(settings.bank)


def load_provider(options: argparse.Namespace) -> LocalProvider:
    """The bank for a command that needs logits and serves nobody."""
    import transformers

    from app.bootstrap import storage
    from app.sweep.logits.local_provider import LocalProvider

    settings = Settings.from_environment(os.environ, bank=options.bank)
    if not options.base:
        # Beside a bank file, --variant says where to go and not what to load.
        options = argparse.Namespace(base=None, bank=options.bank, variant=[])
    transformers.logging.set_verbosity_error()
    return LocalProvider.load(bank_spec(options, settings), *storage(settings), settings.max_tokens)


def logits_folder() -> Path:
    """Where logits are kept from one run to the next."""
    from app.demo.build import cache_folder

    return cache_folder() / "logits"
