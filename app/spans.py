"""What a request spends its time on, told to whoever traces it.

Rooms that do the work know nothing of traces: they say what began and ended when, and where nobody traces the request,
that is one look at a variable.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import NamedTuple

MOST = 200
"""Parts of a request that are told: a call may have 512 recipes, and a task that it leaves behind may live for long."""


class Span(NamedTuple):
    """A part of a request; seconds as `time.perf_counter` gives them."""

    name: str
    start: float
    end: float


SPANS: ContextVar[list[Span] | None] = ContextVar("spans", default=None)
"""Where parts of the request that is being answered are collected; None if nobody wants to know."""


def spent(name: str, start: float, end: float | None = None) -> None:
    """Say what took from `start` until `end`, by default now."""
    spans = SPANS.get()
    if spans is not None and len(spans) < MOST:
        spans.append(Span(name, start, time.perf_counter() if end is None else end))
