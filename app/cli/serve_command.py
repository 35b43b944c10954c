"""`tween serve`: a bank over HTTP, or the blends that others have put into Redis."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.bank_options import bank_spec
from app.errors import BadBank, BadSettings
from app.settings import Settings

if TYPE_CHECKING:
    from app.models.bank import BankSpec
    from app.models.bank_manifest import PublishedBank


def add_serve(command: argparse.ArgumentParser) -> None:
    """The options of `tween serve`."""
    command.add_argument("--base", help="folder or hub name (org/name@revision) of the base")
    command.add_argument(
        "--variant", action="append", default=[], metavar="NAME=SOURCE", help="a variant; may be repeated"
    )
    command.add_argument("--bank", type=Path, help="a bank file instead of --base and --variant (TWEEN_BANK)")
    command.add_argument(
        "--from-redis",
        nargs="?",
        const="",
        metavar="FINGERPRINT",
        help="serve blends that others put into REDIS_URL, without any member; by default of the bank served last",
    )
    add_address(command)
    command.set_defaults(run=_serve)


def add_address(command: argparse.ArgumentParser) -> None:
    """Where to listen."""
    command.add_argument("--host", help="address to listen on (TWEEN_HOST, 127.0.0.1)")
    command.add_argument("--port", type=int, help="port to listen on (TWEEN_PORT, 8000)")


def serve(settings: Settings, spec: BankSpec | PublishedBank) -> int:
    """Serve until a signal, or until the bank cannot be loaded."""
    from app.api.telemetry.logs import write_logs
    from app.main import create_app, create_server

    written = write_logs(settings.log_level, settings.log_format)
    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, spec, on_failure)
    server = create_server(settings, app)
    server.run()
    if failures:
        written.flush()  # this sentence is the last line
        print(f"tween: {failures[0]}", file=sys.stderr)
        return 2
    return 0


def _serve(options: argparse.Namespace) -> int:
    settings = Settings.from_environment(os.environ, host=options.host, port=options.port, bank=options.bank)
    return serve(
        settings, bank_spec(options, settings) if options.from_redis is None else _published(options, settings)
    )


def _published(options: argparse.Namespace, settings: Settings) -> PublishedBank:
    from app.models.bank_manifest import PublishedBank

    if options.base or options.variant or options.bank:
        raise BadBank("--from-redis serves what others have built; give no --bank, --base or --variant with it")
    if settings.redis_url is None:
        raise BadSettings("--from-redis needs REDIS_URL, the Redis of the pods that have the members")
    return PublishedBank(options.from_redis or None)
