"""/openapi.json as the service is: what refuses before any route is reached stands with every operation, and a refusal
is application/problem+json, which the framework writes as application/json."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app.api.problems import MEDIA_TYPE

PROBLEM = {"$ref": "#/components/schemas/Problem"}
EVERYWHERE = {
    400: "this is not HTTP, or the body is not JSON",
    408: "headers or body did not arrive in time",
    413: "the body is too large",
    431: "the headers are too large",
    503: "the bank is still being loaded",
}
"""What a connection, the limit of a body and the start of a service refuse, whatever is asked."""


def install(app: FastAPI) -> None:
    """Put the framework's specification right, and answer with it: both made once, when it is first asked for."""
    generate = app.openapi

    def specification() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = generate()
            for operations in made["paths"].values():
                for operation in operations.values():
                    _correct(operation["responses"])
        return generate()

    @cache
    def written() -> bytes:
        return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    async def document(request: Request) -> Response:
        return Response(written(), media_type="application/json")

    app.openapi = specification  # type: ignore[method-assign]  # as the framework documents it
    url = app.openapi_url
    assert url is not None
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != url]
    app.add_route(url, document, include_in_schema=False)


def _correct(responses: dict[str, Any]) -> None:
    for status, description in EVERYWHERE.items():
        responses.setdefault(str(status), {"description": description})
    for code in responses:
        if int(code) >= 400:
            responses[code]["content"] = {MEDIA_TYPE: {"schema": PROBLEM}}
