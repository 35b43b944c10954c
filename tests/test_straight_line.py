"""One request, one straight line: the files of `app/` that a prediction crosses, traced on a real application."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from test_layering import EVERYBODY

from app.main import create_app
from app.models.bank import BankSpec
from app.settings import Settings

APP = str(Path(__file__).parent.parent / "app") + "/"
MIDDLEWARE = (f"{APP}api/http_server/", f"{APP}api/telemetry/")
MOST_FILES = 20
MOST_CHANGES = 15
ROUTE, REPLY = "predict_plainly", "write_json"
TRIES = 8
"""Requests that are traced; a loop in the background may tick during one of them."""


class Trace:
    """Functions of `app/` that a request calls, from its route to the written reply, in order, by file.

    What a reader does not follow is no call: operators such as `len(row)`, properties, comprehensions, and a coroutine
    that goes on. Middleware surrounds every route alike and is left out.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._begun: set[int] = set()
        self._frames: list[FrameType] = []  # held, so that no other frame gets the id of one that has ended

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event != "call" or not file.startswith(APP) or file.startswith(MIDDLEWARE) or id(frame) in self._begun:
            return
        self._begun.add(id(frame))
        self._frames.append(frame)
        if not self.calls and name != ROUTE:
            return
        if not name.startswith(("<", "__")) and not is_property(frame):
            self.calls.append(f"{file.removeprefix(APP)}:{name}")

    @property
    def line(self) -> list[str]:
        """The files, up to the written reply."""
        end = max(index for index, call in enumerate(self.calls) if call.endswith(f":{REPLY}"))
        return [call.partition(":")[0] for call in self.calls[: end + 1]]

    @property
    def files(self) -> set[str]:
        return set(self.line)

    @property
    def rooms(self) -> list[str]:
        """Rooms in the order in which the request enters them. A file that every room may know is none."""
        rooms = [file.partition("/")[0].removesuffix(".py") for file in self.line]
        rooms = [room for room in rooms if room not in EVERYBODY]
        return [room for before, room in zip([None, *rooms], rooms, strict=False) if room != before]


def is_property(frame: FrameType) -> bool:
    *owners, name = frame.f_code.co_qualname.split(".")
    holder: Any = sys.modules[frame.f_globals["__name__"]]
    for owner in owners:
        holder = getattr(holder, owner, None)
    return isinstance(getattr(holder, name, None), property)


async def traced(app: Any, text: str) -> Trace:
    """The calls of one request, from the ASGI application to its reply."""
    body = json.dumps({"texts": text, "recipe": "angry@0.4"}).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "raw_path": b"/v1/predict", "headers": headers}
    scope |= {"query_string": b"", "scheme": "http", "http_version": "1.1", "client": None, "server": None}
    scope |= {"asgi": {"version": "3.0"}, "root_path": "", "state": {}}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    trace = Trace()
    sys.setprofile(trace)
    try:
        await asyncio.create_task(app(scope, receive, send))
    finally:
        sys.setprofile(None)
    assert sent[0]["status"] == 200, sent
    return trace


async def straightest(spec: BankSpec) -> Trace:
    app = create_app(Settings(workers=0, memory_tier_mib=16), spec, lambda error: None)
    async with app.router.lifespan_context(app):
        while app.state.engine is None:
            await asyncio.sleep(0.05)
        await app.state.engine.blends.keep(app.state.engine.cookbook.read("angry@0.4"))
        traces = [await traced(app, f"text number {number}") for number in range(TRIES + 1)][1:]
    return min(traces, key=lambda trace: (len(trace.files), len(trace.rooms)))


def test_one_prediction_is_a_straight_line(spec: BankSpec) -> None:
    trace = asyncio.run(straightest(spec))
    assert len(trace.files) <= MOST_FILES, sorted(trace.files)
    assert len(trace.rooms) - 1 <= MOST_CHANGES, trace.rooms
