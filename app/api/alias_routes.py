"""Aliases over HTTP: names that point at recipes and are moved in one step, on every pod."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheEngine, ThePredictor
from app.api.http_server.header_text import Actor
from app.api.schemas import REFUSALS, NameField, RecipeField
from app.api.versions import CONFLICTS, TAGGED, VERSIONED, BodyVersion, IfVersion, tag, with_body
from app.cluster.replicated import Change
from app.serving.alias_history import Alias, Version
from app.serving.aliases import Aliases

router = APIRouter(
    route_class=BoundedRoute,
    prefix="/v1/aliases",
    tags=["aliases"],
    dependencies=[Depends(json_only)],
    responses={**REFUSALS, **CONFLICTS},
)


class AliasRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipe: RecipeField
    version: BodyVersion = None


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


@router.get("/{name}", responses=VERSIONED)
@needs("predict")
async def get_alias(engine: TheEngine, name: NameField, response: Response) -> AliasReply:
    """What an alias points at, since when, and what it pointed at before."""
    alias = engine.aliases.get(name)
    tag(response, alias.version)
    return _alias(engine.aliases, alias)


@router.put("/{name}", responses={**VERSIONED, 201: {"description": "made now", "model": MoveReply, **TAGGED}})
@needs("manage")
async def put_alias(
    engine: TheEngine,
    predictor: ThePredictor,
    name: NameField,
    body: AliasRequest,
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> MoveReply:
    """Point an alias at a recipe, on every pod at once: all have the new blend in memory before traffic meets it. Of
    `auto` and `VARIANT@auto`, whose blends differ from text to text, they are made when they are first met."""
    predictor.check(body.recipe)
    move = await engine.aliases.move(name, body.recipe, with_body(version, body.version), by)
    response.status_code = 201 if move.created else 200
    return _move(engine.aliases, move, response)


@router.delete("/{name}", responses=VERSIONED)
@needs("manage")
async def delete_alias(
    engine: TheEngine, name: NameField, response: Response, version: IfVersion, by: Actor = None
) -> VersionReply:
    """Take an alias away. Its history is kept for a week: a rollback brings it back."""
    move = await engine.aliases.delete(name, version, by)
    tag(response, move.document.version)
    return _version(move.document.versions[-1])


@router.post("/{name}/rollback", responses=VERSIONED)
@needs("manage")
async def roll_back(
    engine: TheEngine, name: NameField, response: Response, version: IfVersion, by: Actor = None
) -> MoveReply:
    """Point an alias where it pointed before; again, one step further back. Every step is a new version."""
    return _move(engine.aliases, await engine.aliases.step_back(name, version, by), response)


def _version(version: Version) -> VersionReply:
    changed = datetime.fromtimestamp(version.changed, UTC)
    return VersionReply(version=version.number, recipe=version.recipe, changed=changed, by=version.by)


def _alias(aliases: Aliases, alias: Alias) -> AliasReply:
    now, *before = [_version(version) for version in reversed(alias.versions)]
    return AliasReply(
        **now.model_dump(), name=alias.name, key=aliases.key(alias), history=before, shared=aliases.shared
    )


def _move(aliases: Aliases, move: Change[Alias], response: Response) -> MoveReply:
    tag(response, move.document.version)
    return MoveReply(**_alias(aliases, move.document).model_dump(), pods_asked=move.asked, pods_warm=move.warm)
