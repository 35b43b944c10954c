"""Text in headers that callers send: who is met, and who acts.

A header is bytes, and clients differ in which of them they can send. So its value is always percent-decoded, and what
comes of it must be UTF-8: `客户-1` is sent as these letters in UTF-8 or as `%E5%AE%A2%E6%88%B7-1`, and means the same
as in a JSON body. A `%` is written `%25`, blanks at either end are written `%20`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Header, Request

from app.errors import BadHeader
from app.names import nfc

ACTOR_HEADER, FROM_HEADER = "X-Tween-Actor", "From"
MAX_ACTOR = 200
STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def header_text(name: str, value: str) -> str:
    """What a header says, from its value as the framework gives it: its bytes as Latin-1. Raises `BadHeader`."""
    raw = value.encode("latin-1")
    if STRAY_PERCENT.search(raw):
        raise BadHeader(f"{name} has a % that no two hex digits follow; it is percent-decoded, so write % as %25")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadHeader(f"{name} is not UTF-8; send its text in UTF-8, or percent-encoded from it") from None


Said = Annotated[
    str | None,
    Header(alias=ACTOR_HEADER, description="who does it, where there are no keys: UTF-8, percent-encoding is decoded"),
]
Sender = Annotated[str | None, Header(alias=FROM_HEADER, description=f"the same, where there is no {ACTOR_HEADER}")]


async def actor_of(request: Request, said: Said = None, sender: Sender = None) -> str | None:
    """The name of the caller's key, or where there are no keys, who they say they are. Raises `BadHeader`."""
    if hasattr(request.state, "actor"):
        return str(request.state.actor)
    name, value = (ACTOR_HEADER, said) if said is not None else (FROM_HEADER, sender)
    return None if value is None else _actor(name, header_text(name, value))


Actor = Annotated[str | None, Depends(actor_of)]


def _actor(header: str, text: str) -> str:
    if len(text) > MAX_ACTOR:
        raise BadHeader(f"{header} has {len(text)} characters; at most {MAX_ACTOR} characters are kept")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp") for character in text):
        raise BadHeader(f"{header} holds characters that cannot be seen, such as line breaks")
    return nfc(text)
