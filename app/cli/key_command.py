"""`tween key new`: an API key, and its entry for the file of TWEEN_API_KEYS."""

from __future__ import annotations

import argparse


def add_key(command: argparse.ArgumentParser) -> None:
    """The actions of `tween key`."""
    actions = command.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="print a new key, once, and the entry for the file of TWEEN_API_KEYS")
    new.add_argument("name", help="whose it is; several keys may have one name")
    new.add_argument("--role", choices=("predict", "manage"), default="predict", help="what it may do (predict)")
    new.set_defaults(run=_new_key)


def _new_key(options: argparse.Namespace) -> int:
    from app.api.auth.api_keys import new_key

    key, entry = new_key(options.name, options.role)
    print(f"The key, which is shown this once:\n\n  {key}\n")
    print(f"Its entry in the file of TWEEN_API_KEYS:\n\n{entry}", end="")
    return 0
