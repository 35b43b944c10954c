"""Domain errors to HTTP: the one table, and the one shape, application/problem+json (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from app.errors import (
    AliasConflict,
    BadAlias,
    BadData,
    BadDeadline,
    BadExperiment,
    BadHeader,
    BadPrecondition,
    BadRecipe,
    BadSegments,
    BadTexts,
    BadUnit,
    BlendNotPublished,
    BodyTooLarge,
    CrossOrigin,
    DeadlinePassed,
    DeviceLost,
    Draining,
    ExperimentConflict,
    Forbidden,
    LimitReached,
    Loading,
    MemberBlend,
    NoKey,
    NotDone,
    NotFinite,
    OutOfMemory,
    Overloaded,
    PassFailed,
    PreconditionFailed,
    RedisUnavailable,
    SegmentsConflict,
    SpoolFull,
    TweenError,
    UnknownAlias,
    UnknownBlend,
    UnknownExperiment,
    UnknownHost,
    UnknownMetric,
    UnknownSegments,
    UnknownSweep,
    UnknownVariant,
    WorkerLost,
    WrongContentType,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

NOT_JSON = "the body is not JSON in UTF-8, or has an endless number"
FRAMEWORK_CANNOT_READ = "There was an error parsing the body"
"""What the framework says of such a body."""

SHAPES = {
    "string_type": "a text",
    "dict_type": "an object",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""What a value should be, in JSON's words, by the complaint that it is not."""

GONE = 499
"""Status of a request whose client hung up: it is counted and reaches no client. nginx calls it so."""

# Overload is 429 and never 503: one widely used client repeats a 503 at once and for ever.
STATUS: dict[type[TweenError], int] = {
    BadDeadline: 400,
    NoKey: 401,
    Forbidden: 403,
    CrossOrigin: 403,
    UnknownVariant: 404,
    UnknownBlend: 404,
    UnknownAlias: 404,
    UnknownSweep: 404,
    UnknownSegments: 404,
    BlendNotPublished: 404,
    MemberBlend: 409,
    AliasConflict: 409,
    NotDone: 409,
    UnknownExperiment: 404,
    ExperimentConflict: 409,
    SegmentsConflict: 409,
    PreconditionFailed: 412,
    BodyTooLarge: 413,
    WrongContentType: 415,
    UnknownHost: 421,
    BadData: 422,
    BadRecipe: 422,
    BadTexts: 422,
    BadAlias: 422,
    BadExperiment: 422,
    BadUnit: 422,
    BadHeader: 422,
    BadPrecondition: 422,
    UnknownMetric: 422,
    PassFailed: 422,  # other texts run on the same weights, so it is this text
    NotFinite: 422,
    BadSegments: 422,
    Overloaded: 429,
    LimitReached: 429,
    Draining: 503,
    Loading: 503,
    WorkerLost: 503,
    DeviceLost: 503,
    RedisUnavailable: 503,
    SpoolFull: 503,
    DeadlinePassed: 504,
    OutOfMemory: 507,  # no 503: the same text would not fit a moment later either
}


class Problem(BaseModel):
    """An error as RFC 9457 writes it."""

    type: str = Field("about:blank", examples=["urn:tween:unknown-variant"])
    title: str = Field(examples=["Unknown variant"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no variant 'finanse'; loaded: base, finance, reviews, service"])
    instance: str = Field(examples=["/v1/predict"])


def problem(request: Request, error: TweenError) -> JSONResponse:
    """The reply for a domain error."""
    name = type(error).__name__
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    headers = {}
    if isinstance(
        error, Overloaded | LimitReached | Draining | Loading | WorkerLost | DeviceLost | RedisUnavailable | SpoolFull
    ):
        headers["Retry-After"] = str(error.retry_after)
    body = Problem(
        type=f"urn:tween:{words.replace(' ', '-')}",
        title=words.capitalize(),
        status=STATUS[type(error)],
        detail=str(error),
        instance=reference(request.scope),
    )
    return _reply(body, headers)


def plain_problem(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The reply for what HTTP itself refuses: no such path, no such method."""
    title = HTTPStatus(status).phrase
    body = Problem(type="about:blank", title=title, status=status, detail=detail, instance=reference(request.scope))
    return _reply(body, headers or {})


def reference(scope: Scope) -> str:
    """A request's path as a URI writes it, which is also how logs show it: one word of ASCII, with nothing in it that
    a terminal, a page or a reader of lines could take for something else."""
    return quote(scope["path"], safe="/:@!$&'()*+,;=~")


def _reply(body: Problem, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse(body.model_dump(), body.status, headers, media_type=MEDIA_TYPE)


def reply_to(request: Request, error: Exception) -> JSONResponse | None:
    """The reply for what a handler may raise; None for what nobody expected."""
    if isinstance(error, TweenError):
        return problem(request, error)
    if isinstance(error, RequestValidationError):
        return plain_problem(request, *_sentence(error.errors()))
    if isinstance(error, HTTPException):
        return plain_problem(request, error.status_code, _detail(request, error), dict(error.headers or {}))
    return None


def unexpected(request: Request, error: Exception) -> JSONResponse:
    """The reply for what nobody expected; the log tells the rest."""
    log.error("unexpected %s at %s", type(error).__name__, reference(request.scope), exc_info=error)
    return plain_problem(request, 500, "something went wrong here; the log tells what")


def _detail(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is nothing at {reference(request.scope)}; /docs lists what is"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.method} does not work at {reference(request.scope)}; use {allowed}"
    if error.status_code == 400 and error.detail == FRAMEWORK_CANNOT_READ:
        return NOT_JSON
    return str(error.detail)


def install(app: FastAPI) -> None:
    """Give every error that a route may raise the shape above; `middleware.Unexpected` does so for all others."""

    async def expected(request: Request, error: Exception) -> JSONResponse:
        reply = reply_to(request, error)
        assert reply is not None
        return reply

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    for kind in (TweenError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(ClientDisconnect, gone)  # in the middle of the body: the reply reaches no client


def _sentence(errors: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """Status and one sentence for pydantic's first complaint, without a word of what the caller sent."""
    error = next((one for one in errors if one["type"] == "too_long"), errors[0])
    kind, message = str(error["type"]), str(error["msg"])
    where = [part for part in error["loc"] if part not in ("body", "query", "path")]
    if len(where) > 1 and where[-1] == "str" and kind == "string_type":
        # A recipe is a text, an object or a list of them, and there is a complaint about each of these ways.
        where = [part for part in where[:-1] if not str(part).startswith("union[")]
        ours = [one for one in errors if one["loc"][: len(where) + 1] == ("body", *where)]
        ways = dict.fromkeys(SHAPES[one["type"]] for one in ours if one["type"] in SHAPES)
        message = f"Input should be {' or '.join(ways)}"
    field = ".".join(str(part)[:60] for part in where)
    if kind == "too_long":
        place = ".".join(str(part)[:60] for part in where if "[" not in str(part))
        return 422, f"{place or 'the body'} has more than {error['ctx']['max_length']} entries; no more are read"
    if kind == "json_invalid":
        position = error["loc"][-1]
        return (
            400,
            f"the body is not JSON: {error.get('ctx', {}).get('error', message)} at character {position}",
        )
    if kind == "extra_forbidden":
        return 422, f"field {field!r} is unknown here; /docs lists the fields"
    if kind == "missing":
        return 422, f"field {field!r} is missing" if field else "the body is missing"
    if kind == "value_error":
        return 422, message.removeprefix("Value error, ")
    if not field and kind in SHAPES:
        return 422, f"the body should be {SHAPES[kind]} in JSON; /docs shows what is in it"
    message = message.replace("valid dictionary", "valid object").replace("valid tuple", "valid list")
    return 422, f"{field}: {message}" if field else message
