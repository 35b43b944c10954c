"""/openapi.json as the service is: what refuses before any route is reached stands with every operation, and a refusal
is application/problem+json, which the framework writes as application/json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.api.problems import MEDIA_TYPE, plain_problem

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

    async def other_method(request: Request, error: Exception) -> JSONResponse:
        """The framework names the methods of one route, where a path may have several."""
        path = request.url.path
        allowed = ", ".join(_methods(specification(), path)) or _headers(error).get("Allow", "another method")
        detail = f"{request.method} does not work at {path}; use {allowed}"
        return plain_problem(request, 405, detail, {"Allow": allowed})

    app.openapi = specification  # type: ignore[method-assign]  # as the framework documents it
    app.add_exception_handler(405, other_method)


def _methods(specification: dict[str, Any], path: str) -> list[str]:
    """Of every route at a path."""
    return sorted(
        method.upper()
        for template, operations in specification["paths"].items()
        if compile_path(template)[0].fullmatch(path)
        for method in operations
    )


def _headers(error: Exception) -> Mapping[str, str]:
    return (error.headers if isinstance(error, HTTPException) else None) or {}


def _correct(responses: dict[str, Any]) -> None:
    for status, description in EVERYWHERE.items():
        responses.setdefault(str(status), {"description": description})
    for code in responses:
        if int(code) >= 400:
            responses[code]["content"] = {MEDIA_TYPE: {"schema": PROBLEM}}
