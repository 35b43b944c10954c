"""`tween sweep --server URL`: the same sweep, run by a service that holds the bank, and followed from here."""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from app.cli.sweep_options import progress
from app.client_key import with_key
from app.errors import BadData
from app.sweep.data.dataset import kept_rows
from app.sweep.sweep_spec import SweepOrder

FILES = {"results.json": "results.json", "report": "report.html", "plot.svg": "curve.svg"}
"""What is fetched, and the file that it becomes."""
RAMP = {"ramp.svg": "ramp.svg"}
"""The same, where a ramp was found."""
TIMEOUT = 60.0
PATIENCE_SECONDS = 60.0
"""For which a service that broke off is called again."""


def run_there(options: argparse.Namespace, order: SweepOrder) -> int:
    """Order, follow, fetch, print. Ctrl-C calls the sweep off."""
    server = options.server.rstrip("/")
    ordered = call(f"{server}/v1/sweeps", _asked(order))
    url = f"{server}/v1/sweeps/{ordered['id']}"
    print(f"sweep {ordered['id']} at {server}", flush=True)
    try:
        with progress("sweep") as on_progress:
            for state in _states(url):
                on_progress(state["texts_done"], state["texts_expected"])
    except KeyboardInterrupt:
        call(url, method="DELETE")
        raise
    if state["status"] != "done":
        raise BadData(f"the sweep is {state['status']}{': ' + state['error'] if state['error'] else ''}")
    folder = options.out or Path("sweep-" + state["best"]["recipe"].partition("@")[0])
    folder.mkdir(parents=True, exist_ok=True)
    files = FILES | (RAMP if state["ramp"] else {})
    for name, file in files.items():
        (folder / file).write_bytes(_fetch(f"{url}/{name}"))
    warnings = [f"Note: {warning}." for warning in state["warnings"]]
    print("\n".join(["", state["sentence"], *warnings, f"Written to {folder}: {', '.join(sorted(files.values()))}"]))
    return 0


def _asked(order: SweepOrder) -> dict[str, Any]:
    """The order as the service reads it."""
    body = order.values
    body["lambda"], body["datasets"] = body.pop("penalty"), body.pop("data")
    for given, data in zip(order.data, body["datasets"], strict=True):
        data["data"] = [dict(row) for _, row in kept_rows(given.name, given.rows, order.where)]
        del data["content"]
    del body["where"]
    return body


def _states(url: str) -> Iterator[dict[str, Any]]:
    """What the service tells of a sweep until it has ended; where it breaks off, it is asked to go on."""
    last, heard = "0", time.monotonic()
    while True:
        try:
            request = urllib.request.Request(f"{url}/events", headers={"Last-Event-ID": last})
            with urllib.request.urlopen(with_key(request), timeout=TIMEOUT) as events:
                for line in events:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    heard = time.monotonic()
                    if name == "id":
                        last = value
                    elif name == "data":
                        state = json.loads(value)
                        yield state
                        if state["ended"]:
                            return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise _refusal(url, error) from None
        except (OSError, HTTPException) as error:
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise BadData(f"{url} does not answer any more: {error}") from None
        time.sleep(0.5)


def call(url: str, body: object = None, method: str | None = None) -> Any:
    """What a service replies, as JSON. Raises `BadData` with its own sentence."""
    return json.loads(_fetch(url, None if body is None else json.dumps(body, default=str).encode(), method))


def _fetch(url: str, body: bytes | None = None, method: str | None = None) -> bytes:
    """The body of a reply. Raises `BadData` with the service's own sentence."""
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(with_key(request), timeout=TIMEOUT) as reply:
            content: bytes = reply.read()
            return content
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from None
    except (OSError, ValueError, HTTPException) as error:
        raise BadData(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


def _refusal(url: str, error: urllib.error.HTTPError) -> BadData:
    try:
        return BadData(str(json.load(error)["detail"]))
    except (ValueError, KeyError, TypeError):
        return BadData(f"{url} answers {error.code} {error.reason}")
