"""/openapi.json as the service is: what refuses before any route is reached stands with every operation, and a refusal
is application/problem+json, which the framework writes as application/json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

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
    """Put the framework's specification right, once it is asked for."""
    generate = app.openapi

    def specification() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = generate()
            for operations in made["paths"].values():
                for operation in operations.values():
                    _correct(operation["responses"])
        return generate()

    app.openapi = specification  # type: ignore[method-assign]  # as the framework documents it


def _correct(responses: dict[str, Any]) -> None:
    for status, description in EVERYWHERE.items():
        responses.setdefault(str(status), {"description": description})
    for code in responses:
        if int(code) >= 400:
            responses[code]["content"] = {MEDIA_TYPE: {"schema": PROBLEM}}
