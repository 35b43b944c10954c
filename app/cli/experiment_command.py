"""`tween experiment`: experiments of a running service, from a shell or a pipeline."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from app.client_key import with_key
from app.errors import BadExperiment
from app.experiments.experiment import read_experiments

SERVER = "http://127.0.0.1:8000"
TIMEOUT = 30.0
"""Seconds; a start waits until all pods are warm, for five at most."""
PIECE = 64 * 1024
STATUS = {"start": "running", "pause": "paused", "stop": "stopped"}


def add_experiment(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="ACTION")
    apply = commands.add_parser("apply", help="do what a file of experiments says")
    apply.add_argument("file", type=Path, help="TOML, a table for each experiment")
    apply.set_defaults(act=_apply)
    commands.add_parser("list", help="name, status and arms of every experiment").set_defaults(act=_list)
    named = [commands.add_parser("show", help="all about one experiment, and who changed it")]
    named[0].set_defaults(act=_show)
    for action, status in STATUS.items():
        named.append(commands.add_parser(action, help=f"have it {status} on every pod"))
        named[-1].set_defaults(act=_set_status, status=status)
    named += [commands.add_parser("archive", help="put one that has stopped out of the way; its report stays")]
    named[-1].set_defaults(act=_archive)
    named += [commands.add_parser("delete", help="delete one that has stopped, and all that it has counted")]
    named[-1].set_defaults(act=_delete)
    erase = commands.add_parser("erase", help="forget a unit, in one experiment or in all of them")
    erase.add_argument("unit", help="the customer or conversation")
    erase.add_argument("--experiment", metavar="NAME", help="only there; without it, in all, archived ones too")
    erase.set_defaults(act=_erase)
    promote = commands.add_parser("promote", help="bring an arm behind an alias")
    promote.add_argument("--arm", required=True)
    promote.add_argument("--alias", default="prod")
    promote.add_argument("--guarded", action="store_true", help="step by step, back by itself if a guardrail fails")
    promote.add_argument("--step-seconds", type=float, default=3600, help="how long each step is watched (3600)")
    promote.add_argument(
        "--step-units", type=int, default=100, help="least units of each arm that close their window in each step (100)"
    )
    promote.add_argument("--force", action="store_true", help="even where the report speaks against the arm")
    promote.set_defaults(act=_promote)
    export = commands.add_parser("export", help="what each unit met and did, a row for each")
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="what kind of file (csv)")
    export.add_argument("--out", type=Path, metavar="FILE", help="where to; without it, csv is printed")
    export.set_defaults(act=_export)
    for command in (*named, promote, export):
        command.add_argument("name", help="the experiment")
    for command in commands.choices.values():
        command.add_argument("--server", default=SERVER, metavar="URL", help=f"a pod of the service ({SERVER})")
        command.add_argument("--actor", default=_me(), metavar="NAME", help="who does it, for the audit (you)")
    parser.set_defaults(run=lambda options: options.act(options))


def _apply(options: argparse.Namespace) -> int:
    definitions = read_experiments(options.file)
    for name, definition in definitions.items():
        body = definition.model_dump(mode="json", exclude_unset=True)
        print(_line(_ask(options, "PUT", quote(name), body)))
    return 0


def _list(options: argparse.Namespace) -> int:
    for experiment in _ask(options, "GET", "")["experiments"]:
        print(_line(experiment))
    return 0


def _show(options: argparse.Namespace) -> int:
    path = quote(options.name)
    found = {**_ask(options, "GET", path), "audit": _ask(options, "GET", f"{path}/audit")["audit"]}
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0


def _set_status(options: argparse.Namespace) -> int:
    print(_line(_ask(options, "POST", f"{quote(options.name)}/status", {"status": options.status})))
    return 0


def _archive(options: argparse.Namespace) -> int:
    print(_line(_ask(options, "POST", f"{quote(options.name)}/archive")))
    return 0


def _delete(options: argparse.Namespace) -> int:
    print(f"{_ask(options, 'DELETE', quote(options.name))['name']}: deleted")
    return 0


def _erase(options: argparse.Namespace) -> int:
    names = [options.experiment]
    if options.experiment is None:
        lists = [_ask(options, "GET", query)["experiments"] for query in ("", "?archived=true")]
        names = [experiment["name"] for found in lists for experiment in found]
    for name in names:
        reply = _ask(options, "DELETE", f"{quote(name)}/units/{quote(options.unit, safe='')}")
        still = "; its overrides name the unit still" if reply["named"] else ""
        print(f"{name}: {'erased' if reply['erased'] else 'not known'}{still}")
    return 0


def _promote(options: argparse.Namespace) -> int:
    body = {"arm": options.arm, "alias": options.alias, "force": options.force}
    steps = {"step_seconds": options.step_seconds, "step_units": options.step_units}
    plan = {"guarded": True, **steps} if options.guarded else {}
    reply = _ask(options, "POST", f"{quote(options.name)}/promote", {**body, **plan})
    how = f"by experiment {reply['rollout']}" if reply["rollout"] else "now"
    print(f"@{reply['alias']} -> {reply['recipe']}, {how}")
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.out is None and options.format != "csv":
        raise BadExperiment(f"{options.format} is nothing to print; name a file by --out")
    with _open(options, "GET", f"{quote(options.name)}/export?format={options.format}") as reply:
        pieces = _pieces(options, reply)
        if options.out is None:
            sys.stdout.buffer.writelines(pieces)
            sys.stdout.buffer.flush()
        else:
            _write(options.out, pieces)
            print(f"Written to {options.out}")
    return 0


def _pieces(options: argparse.Namespace, reply: IO[bytes]) -> Iterator[bytes]:
    """A reply, piece by piece. Raises `BadExperiment` where it breaks off."""
    while True:
        try:
            piece = reply.read(PIECE)
        except (OSError, HTTPException) as error:
            raise BadExperiment(f"{options.server} broke off: {error}") from None
        if not piece:
            return
        yield piece


def _write(file: Path, pieces: Iterator[bytes]) -> None:
    """Written beside its place and moved there whole, so that what breaks off leaves no half of a file."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as whole:
            whole.writelines(pieces)
        partial.replace(file)
    except OSError as error:
        raise BadExperiment(f"{file} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _line(experiment: dict[str, Any]) -> str:
    arms = ", ".join(
        f"{arm['name']} {arm['recipe']} {'shadow' if arm.get('shadow') else format(arm['share'], '.0%')}"
        for arm in experiment["definition"]["arms"]
    )
    place = f"version {experiment['version']}, phase {experiment['phase']}"
    return f"{experiment['name']}: {experiment['status']}, {place}: {arms}"


def _ask(options: argparse.Namespace, method: str, path: str, body: object = None) -> dict[str, Any]:
    """The reply of the service; raises as `_open` does."""
    with _open(options, method, path, body) as reply:
        try:
            found: dict[str, Any] = json.load(reply)
        except (OSError, HTTPException, ValueError) as error:
            raise BadExperiment(f"{options.server} gives no answer that can be read: {error}") from None
    return found


def _open(options: argparse.Namespace, method: str, path: str, body: object = None) -> IO[bytes]:
    """The reply of the service, to be read; raises `BadExperiment` with its sentence where it refuses."""
    url = f"{options.server.rstrip('/')}/v1/experiments{'' if path.startswith('?') or not path else '/'}{path}"
    headers = {"Content-Type": "application/json", "X-Tween-Actor": quote(options.actor, errors="replace")}
    data = None if body is None else json.dumps(body).encode()
    try:
        reply: IO[bytes] = urlopen(with_key(Request(url, data, headers, method=method)), timeout=TIMEOUT)
        return reply
    except HTTPError as refusal:
        with refusal:
            raise BadExperiment(_sentence(refusal)) from None
    except (URLError, OSError, HTTPException, ValueError) as error:
        raise BadExperiment(f"no service answers at {options.server}: {getattr(error, 'reason', error)}") from None


def _sentence(refusal: HTTPError) -> str:
    try:
        return str(json.load(refusal)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{refusal.url} answers {refusal.code}"


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user often has no name
        return "tween experiment"
