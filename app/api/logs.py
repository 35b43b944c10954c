"""Lines of the log, for people or for machines, each with the ids of the request that it belongs to and of its trace.

Nothing here knows what callers send: a line holds what the code says, and no texts.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

Format = Literal["human", "json"]

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered; empty outside of one."""


TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of its trace; empty where requests are not traced."""


class Human(logging.Formatter):
    """A line to read."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line, ids = super().format(record), f"{REQUEST_ID.get()} {TRACE_ID.get()}".strip()
        return f"{line} [{ids}]" if ids else line


class Json(logging.Formatter):
    """A line that is one JSON object; a traceback is a field of it."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            said["request_id"] = request_id
        if trace_id := TRACE_ID.get():
            said["trace_id"] = trace_id
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


FORMATTERS: dict[Format, type[logging.Formatter]] = {"human": Human, "json": Json}


def write_logs(level: str, kind: Format) -> None:
    """Have everything that this process logs from `level` on written to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[kind]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
