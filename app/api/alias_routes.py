"""Aliases over HTTP: names that point at recipes and are moved in one step, on every pod."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheEngine, ThePredictor
from app.api.http_server.header_text import Actor
from app.api.problems import Problem
from app.api.schemas import LAST_VERSION, REFUSALS, NameField, RecipeField
from app.cluster.replicated import Change
from app.serving.alias_history import Alias, Version
from app.serving.aliases import Aliases

CONFLICTS: dict[int | str, dict[str, Any]] = {
    409: {"description": "the alias is at another version, or has nothing to go back to", "model": Problem},
    503: {"description": "Redis does not answer, so pods cannot agree; or the bank is still loaded", "model": Problem},
}

router = APIRouter(
    route_class=BoundedRoute,
    prefix="/v1/aliases",
    tags=["aliases"],
    dependencies=[Depends(json_only)],
    responses={**REFUSALS, **CONFLICTS},
)

IfVersion = Annotated[int | None, Query(ge=0, le=LAST_VERSION, description="only if the alias is at this version")]


class AliasRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipe: RecipeField
    version: int | None = Field(
        None,
        ge=0,
        le=LAST_VERSION,
        description="move it only if it is at this version; 0: only if it does not exist yet",
    )


class VersionReply(BaseModel):
    version: int
    recipe: str | None = Field(description="canonical text; null: the alias was deleted then")
    changed: datetime
    by: str | None = Field(description="the name of the key that moved it, or without keys the `X-Tween-Actor` header")


class AliasReply(VersionReply):
    name: str
    key: str | None = Field(
        description="the blend that it points at; null: the bank here cannot make it, or each text has its own"
    )
    history: list[VersionReply] = Field(description="versions before this one, newest first; the last few are kept")
    shared: bool = Field(description="every pod on this Redis sees it; false: this process alone, as there is no Redis")


class MoveReply(AliasReply):
    pods_asked: int = Field(description="pods that were asked to have the new blend in memory before the move")
    pods_warm: int = Field(description="pods that had it by then; others warm up before they follow")


class AliasList(BaseModel):
    aliases: list[AliasReply]


@router.get("")
@needs("predict")
async def list_aliases(engine: TheEngine) -> AliasList:
    """Every alias and what it points at."""
    return AliasList(aliases=[_alias(engine.aliases, alias) for alias in engine.aliases.all()])


@router.get("/{name}")
@needs("predict")
async def get_alias(engine: TheEngine, name: NameField) -> AliasReply:
    """What an alias points at, since when, and what it pointed at before."""
    return _alias(engine.aliases, engine.aliases.get(name))


@router.put("/{name}", responses={201: {"description": "made now", "model": MoveReply}})
@needs("manage")
async def put_alias(
    engine: TheEngine,
    predictor: ThePredictor,
    name: NameField,
    body: AliasRequest,
    response: Response,
    by: Actor = None,
) -> MoveReply:
    """Point an alias at a recipe, on every pod at once: all have the new blend in memory before traffic meets it. Of
    `auto` and `VARIANT@auto`, whose blends differ from text to text, they are made when they are first met."""
    predictor.check(body.recipe)
    move = await engine.aliases.move(name, body.recipe, body.version, by)
    response.status_code = 201 if move.created else 200
    return _move(engine.aliases, move)


@router.delete("/{name}")
@needs("manage")
async def delete_alias(engine: TheEngine, name: NameField, version: IfVersion = None, by: Actor = None) -> VersionReply:
    """Take an alias away. Its history is kept for a week: a rollback brings it back."""
    move = await engine.aliases.delete(name, version, by)
    return _version(move.document.versions[-1])


@router.post("/{name}/rollback")
@needs("manage")
async def roll_back(engine: TheEngine, name: NameField, version: IfVersion = None, by: Actor = None) -> MoveReply:
    """Point an alias where it pointed before; again, one step further back. Every step is a new version."""
    return _move(engine.aliases, await engine.aliases.step_back(name, version, by))


def _version(version: Version) -> VersionReply:
    changed = datetime.fromtimestamp(version.changed, UTC)
    return VersionReply(version=version.number, recipe=version.recipe, changed=changed, by=version.by)


def _alias(aliases: Aliases, alias: Alias) -> AliasReply:
    now, *before = [_version(version) for version in reversed(alias.versions)]
    return AliasReply(
        **now.model_dump(), name=alias.name, key=aliases.key(alias), history=before, shared=aliases.shared
    )


def _move(aliases: Aliases, move: Change[Alias]) -> MoveReply:
    return MoveReply(**_alias(aliases, move.document).model_dump(), pods_asked=move.asked, pods_warm=move.warm)
