"""`tween demo`: the demo bank, made the first time, then served."""

from __future__ import annotations

import argparse
import os

from app.cli.serve_command import add_address, serve
from app.settings import Settings

HELLO = """
The demo will answer on {url} in a moment (documentation: {url}/docs). For example:

  curl {url}/v1/predict -H 'Content-Type: application/json' \\
    -d '{{"texts": "Order intake fell by 8 percent in the third quarter.", "recipe": "finance@0.4"}}'
"""


def add_demo(command: argparse.ArgumentParser) -> None:
    """The options of `tween demo`."""
    command.add_argument("--rebuild", action="store_true", help="train the demo bank anew")
    command.add_argument("--only-build", action="store_true", help="do not serve it")
    command.add_argument("--table", action="store_true", help="print its scores along t instead of serving it")
    add_address(command)
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from app.demo.build import demo_bank
    from app.demo.table import print_table
    from app.models.bank import BankSpec

    settings = Settings.from_environment(os.environ, host=options.host, port=options.port)
    file = demo_bank(rebuild=options.rebuild)
    if options.table:
        print_table(file)
        return 0
    if options.only_build:
        print(file)
        return 0
    print(HELLO.format(url=f"http://{settings.host}:{settings.port}"), flush=True)
    return serve(settings, BankSpec.from_toml(file))
