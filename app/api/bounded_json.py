"""The one reader of JSON that callers send: how deep, how wide and how much it may be, before anything looks inside.

A few MiB of JSON can be a hundred times as much in memory: `[],` is three bytes, the list 56, and a complaint about it
hundreds. So values are counted before a body is parsed, depth and fields before it is validated; that lists are no
longer than they may be, and that the first complaint of a list is the only one, stands at the fields of the models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.api.problems import NOT_JSON
from app.errors import WrongContentType

Parsed = TypeVar("Parsed", bound=BaseModel)

MOST_ENTRIES = 10_000
"""Of any list that has an entry for each text or outcome; settings may ask for less."""
MOST_DEPTH = 32
"""Lists and objects inside each other; what the service understands has eight."""
MOST_FIELDS = 2_000
"""Of one object: twice what the largest table of segments has."""
MOST_VALUES = 200_000
BYTES_A_VALUE = 8
"""A body may have MOST_VALUES, and a longer one a value for so many bytes: rows of labelled texts have fewer."""
MARKS_A_STEP = 1_000
SOME_MARKS = re.compile(
    rb'(?:(?:[^"\[{,:]++|"(?:[^"\\]++|\\.)*+"?)*+[\[{,:]){%d}+' % MARKS_A_STEP,
    re.DOTALL,
)
"""So many of what begins values and names, outside of strings. Possessive, so that nothing is read twice and nothing
is kept: also where the last quote is missing."""

NESTED = f"the body is nested more than {MOST_DEPTH} levels deep"


def read_bounded(content: bytes) -> Any:
    """What a JSON body says. Raises `HTTPException` for one beyond the bounds, `ValueError` for what is no JSON."""
    most = max(MOST_VALUES, len(content) // BYTES_A_VALUE)
    if len(content) > most and _has_more_values(content, most):
        raise HTTPException(413, f"the body has more than {most} values and names; send less in one call")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise HTTPException(400, NESTED) from None
    _check_shape(value)
    return value


def _has_more_values(content: bytes, most: int) -> bool:
    """Counts in steps, and no further than needed."""
    seen = end = 0
    while seen <= most and (some := SOME_MARKS.match(content, end)):
        seen, end = seen + MARKS_A_STEP, some.end()
    return seen > most


def _check_shape(value: object) -> None:
    """Level by level, without recursion."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                if len(one) > MOST_FIELDS:
                    raise HTTPException(
                        413, f"an object in the body has {len(one)} fields; at most {MOST_FIELDS} are read"
                    )
                inner += [part for part in one.values() if isinstance(part, dict | list)]
            elif isinstance(one, list):
                inner += [part for part in one if isinstance(part, dict | list)]
        if not inner:
            return
        level = inner
    raise HTTPException(400, NESTED)


class BoundedRoute(APIRoute):
    """A route of the framework whose body is read here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_Bounded(request.scope, request.receive))

        return bounded


class _Bounded(Request):
    async def json(self) -> Any:
        return read_bounded(await self.body())


async def json_only(request: Request) -> None:
    """Refuses a body that does not say that it is JSON, such as curl's default."""
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    has_body = "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
    if has_body and request.method in ("POST", "PUT", "PATCH"):
        shown = repr(given[:80]) if given else "none"
        raise WrongContentType(f"the Content-Type is {shown}; send JSON with Content-Type: application/json")


async def read_json(request: Request, model: type[Parsed]) -> Parsed:
    """The body as the framework would read it, with the errors that it would raise."""
    await json_only(request)
    return parse_json(await request.body(), model)


def parse_json(content: bytes, model: type[Parsed]) -> Parsed:
    """A body as the framework would read it, with the errors that it would raise."""
    try:
        return model.model_validate(read_bounded(content) if content else None)
    except json.JSONDecodeError as error:
        complaint = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "", "ctx": {"error": error.msg}}
        raise RequestValidationError([complaint]) from None
    except ValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
            if content
            else [{"type": "missing", "loc": ("body",), "msg": "Field required"}]
        ) from None
    except ValueError:
        raise HTTPException(400, NOT_JSON) from None


def write_json(reply: BaseModel) -> Response:
    return Response(reply.__pydantic_serializer__.to_json(reply), media_type="application/json")
