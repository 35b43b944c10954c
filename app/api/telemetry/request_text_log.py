"""A line of the log for each request with texts, which shows them: for whoever looks for a fault, and has said so.

Installed only where TWEEN_LOG_TEXTS is on, within what refuses callers without a key and bodies that are too large.
Texts are cut short, and stand in one line as JSON, so that none of them can pass itself off as a line of its own.
"""

from __future__ import annotations

import json
import logging

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.bounded_json import read_bounded
from app.api.problems import reference

log = logging.getLogger("tween.texts")

MOST_TEXTS = 8
"""Texts of a request that are shown."""
MOST_CHARACTERS = 200
"""Of each text, or of each half of a pair."""


class RequestTextLog:
    """Tells the texts of requests and what became of them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        status = "not answered"

        async def read() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, read, noted)
        except Exception:
            status = "failed"  # what is around this answers with a 500
            raise
        finally:
            texts = texts_of(bytes(body))
            if texts:
                shown = json.dumps([shortened(text) for text in texts[:MOST_TEXTS]])
                log.info("%s %s, %s, %d texts: %s", scope["method"], reference(scope), status, len(texts), shown)


def texts_of(body: bytes) -> list[object]:
    """The texts of a JSON body, right or wrong; none if it has no such field or cannot be read."""
    try:
        texts = read_bounded(body)["texts"]
    except (HTTPException, ValueError, KeyError, TypeError, IndexError):
        return []
    return texts if isinstance(texts, list) else [texts]


def shortened(text: object) -> str | list[str]:
    """A text as it is shown. A pair stays a pair; of what is no text, the kind is."""
    if isinstance(text, list) and len(text) == 2:
        return [_cut(part) for part in text]
    return _cut(text)


def _cut(text: object) -> str:
    if not isinstance(text, str):
        return f"({type(text).__name__})"
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}... ({len(text)} characters)"
