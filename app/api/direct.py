"""The shortest way to handlers that many thousands of requests take.

The framework routes a request, resolves dependencies and validates the reply: 85 us, several times what the service
itself does for a remembered prediction. A handler that is named here reads the request and writes the reply by itself.
It is a route of the framework too, which is where /docs has it from and where other methods are refused.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.bounded_json import read_bounded
from app.api.problems import NOT_JSON, reply_to
from app.errors import WrongContentType

Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=BaseModel)


def answering(found: str) -> ASGIApp:
    """The application whose handler is that of `scope[found]`."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            reply = await scope[found].handler(request)
        except ClientDisconnect:
            return  # in the middle of the body; nobody is there to be answered
        except Exception as error:
            known = reply_to(request, error)
            if known is None:
                raise
            reply = known
        await reply(scope, receive, send)

    return answer


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


async def read_json(request: Request, model: type[Body]) -> Body:
    """The body as the framework would read it, with the errors that it would raise."""
    await json_only(request)
    return parse_json(await request.body(), model)


def parse_json(content: bytes, model: type[Body]) -> Body:
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
