"""Lines of the log, for people or for machines, each with the ids of the request that it belongs to and of its trace.

A line holds what the code says, and no texts. (`request_text_log.py` tells those, where an operator asks for it.) Names
and paths in it may be a caller's, so each line is escaped here, wherever it was written: no caller can end one and
begin another.

A thread writes the lines. Standard error may be a pipe that nobody reads any more, or a file on a full disk: a log that
waited for it would stand in the event loop, and the service with it. So what does not fit into a short line of waiting
ones is dropped, and how many were is said as soon as lines can be written again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

Format = Literal["human", "json"]

MOST_LINES = 5_000
"""Lines that may wait to be written."""
LAST_LINES_SECONDS = 1.0
"""How long the end of the process waits for what is still to be written."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered; empty outside of one."""


TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of its trace; empty where requests are not traced."""


UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, with which escape sequences begin; separators of lines; marks that turn the direction of writing;
and lone halves of characters."""
SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escaped(line: str) -> str:
    """A line that ends where it ends, and that a terminal shows as it is, whatever a caller has sent: what could be
    taken for something else is written as JSON writes it."""
    return UNSAFE.sub(lambda found: SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", line)


class Human(logging.Formatter):
    """A line to read. A traceback comes below it, and is indented: a line that begins with a time is a record."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        if ids := f"{REQUEST_ID.get()} {TRACE_ID.get()}".strip():
            line += f" [{ids}]"
        below = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n    ".join(escaped(line) for line in (line, *below))


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
        return escaped(json.dumps(said, ensure_ascii=False))


FORMATTERS: dict[Format, type[logging.Formatter]] = {"human": Human, "json": Json}


class Unhurried(logging.Handler):
    """Gives lines to a thread that writes them to a file; nobody who logs waits for that."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(MOST_LINES)
        self._dropped = 0
        threading.Thread(target=self._write_on, name="tween-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))  # here, where it is known whose request this is
        except queue.Full:
            self._dropped += 1
        except Exception:  # a line that cannot be formatted is logging's own to complain about
            self.handleError(record)

    def flush(self) -> None:
        """Wait until everything is written, but not for long. Called at the end of the process."""
        deadline = time.monotonic() + LAST_LINES_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _write_on(self) -> None:
        told = lost = 0
        while True:
            line = self._lines.get()
            missing = self._dropped - told + lost
            if missing:
                said = {"msg": f"{missing} lines were dropped, as nobody took them", "levelname": "WARNING"}
                line = f"{self.format(logging.makeLogRecord({'name': __name__, **said}))}\n{line}"
            if self._written(f"{line}\n".encode(errors="replace")):
                told, lost = told + missing - lost, 0
            else:
                lost += 1
            self._lines.task_done()

    def _written(self, data: bytes) -> bool:
        """Past Python's own buffer: a thread that held its lock for ever would be in the way of the process's end."""
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody reads, or the disk is full
            return False
        return True


def write_logs(level: str, kind: Format) -> logging.Handler:
    """Have everything that this process logs from `level` on written to standard error, by what is given back."""
    handler = Unhurried(sys.stderr.fileno())
    handler.setFormatter(FORMATTERS[kind]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    return handler
