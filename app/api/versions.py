"""Versions over HTTP, the same on every route: `ETag` in replies; `?version=`, `If-Match` and `If-None-Match: *` in
requests for a change. A mismatch is 409 for `?version=` and 412 for a header."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from pydantic import Field

from app.api.problems import Problem
from app.cluster.precondition import Precondition
from app.errors import BadPrecondition

LAST_VERSION = 2**53 - 1
"""The largest whole number that every reader of JSON holds."""
TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
TAGS = re.compile(rf"{TAG}(?:[ \t]*,[ \t]*{TAG})*")
OURS = re.compile(r'(?<!/)"([1-9][0-9]{0,15})"')
"""A version as `ETag` writes it. `If-Match` compares strongly, so a weak tag never matches."""

CONFLICTS: dict[int | str, dict[str, Any]] = {
    409: {"description": "it is at another version than `version`, or its state does not allow this", "model": Problem},
    412: {"description": "`If-Match` or `If-None-Match` does not hold", "model": Problem},
    503: {"description": "Redis does not answer, so pods cannot agree; or the bank is still loaded", "model": Problem},
}
TAGGED: dict[str, Any] = {
    "headers": {"ETag": {"description": "its version, for `If-Match`", "schema": {"type": "string", "example": '"3"'}}}
}
VERSIONED: dict[int | str, dict[str, Any]] = {200: TAGGED}

BodyVersion = Annotated[int | None, Field(ge=0, le=LAST_VERSION, description="the same as `?version=`")]


async def precondition_of(
    request: Request,
    version: Annotated[
        int | None, Query(ge=0, le=LAST_VERSION, description="only if it is at this version; 0: if it does not exist")
    ] = None,
    if_match: Annotated[
        str | None, Header(alias="If-Match", description="only if its `ETag` is among these; `*`: if it exists")
    ] = None,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="`*`: only if it does not exist")
    ] = None,
) -> Precondition:
    """What a change may start from. Raises `BadPrecondition`."""
    creates = if_none_match is not None
    if creates and _line(request, "If-None-Match") != "*":
        raise BadPrecondition("If-None-Match is `*` here, which is: only if it does not exist")
    if if_match is None:
        return Precondition(version, exists=False if creates else None)
    if creates:
        raise BadPrecondition("If-Match and If-None-Match contradict each other; send one of them")
    line = _line(request, "If-Match")
    if line == "*":
        return Precondition(version, exists=True)
    if not TAGS.fullmatch(line):
        raise BadPrecondition('If-Match is `*`, or one ETag or several, with quotation marks: "3"')
    return Precondition(version, frozenset(int(number) for number in OURS.findall(line)))


IfVersion = Annotated[Precondition, Depends(precondition_of)]


def with_body(condition: Precondition, version: int | None) -> Precondition:
    """The condition with the version that a body asks for. Raises `BadPrecondition`."""
    if version is None:
        return condition
    if condition.version not in (None, version):
        raise BadPrecondition(
            f"version is {condition.version} in the query and {version} in the body; send one of them"
        )
    return replace(condition, version=version)


def tag(response: Response, version: int) -> None:
    """Say which version a reply shows."""
    response.headers["ETag"] = f'"{version}"'


def _line(request: Request, name: str) -> str:
    """A header that may be sent in several lines, as one."""
    return ", ".join(request.headers.getlist(name)).strip()
