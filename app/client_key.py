"""The key with which commands of `tween` call a service: what TWEEN_API_KEY says.

No option takes it, because whoever may list processes sees their command lines.
"""

from __future__ import annotations

import os
from urllib.request import Request

from app.errors import BadSettings

VARIABLE = "TWEEN_API_KEY"


def key_headers() -> dict[str, str]:
    """The header that carries the key; none where there is no key. Raises `BadSettings` for what no header can hold."""
    key = os.environ.get(VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadSettings(f"{VARIABLE} is no key: it has characters that no key has")
    return {"Authorization": f"Bearer {key}"} if key else {}


def with_key(request: Request) -> Request:
    """The request, with the key if there is one, and only for the server that is named: a redirect does not carry it.

    Raises as `key_headers` does.
    """
    for name, value in key_headers().items():
        request.add_unredirected_header(name, value)
    return request
