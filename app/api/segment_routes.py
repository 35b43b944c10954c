"""The t's by segment over HTTP: what `finance@auto` and `auto` go by, put live on every pod and taken away again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Response
from pydantic import BaseModel, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheEngine, TheExperiments, ThePredictor
from app.api.http_server.header_text import Actor
from app.api.schemas import REFUSALS, NameField
from app.api.versions import CONFLICTS, TAGGED, VERSIONED, IfVersion, tag
from app.errors import SegmentsConflict
from app.experiments.experiment_registry import KEPT_WARM, ExperimentRegistry
from app.segments.segment_registry import LiveTable
from app.segments.segment_selector import SegmentSelector
from app.segments.segment_table import SegmentTable, Setting
from app.serving.aliases import Aliases
from app.serving.engine import Engine
from app.weights.auto_recipe import automatic

router = APIRouter(
    route_class=BoundedRoute,
    prefix="/v1/segments",
    tags=["segments"],
    dependencies=[Depends(json_only)],
    responses={**REFUSALS, **CONFLICTS},
)


class SettingReply(BaseModel):
    variant: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of `auto`: what the t is of, a variant or `base`",
    )
    t: float
    temperature: float = Field(description="what logits are to be divided by at this t")
    interval: tuple[float, float] = Field(description="where t may lie (95 %)")
    texts: int = Field(description="labelled texts that told so")


class LiveReply(BaseModel):
    version: int
    changed: datetime
    by: str | None = Field(description="the name of the key that put it, or without keys the `X-Tween-Actor` header")


class SegmentsReply(BaseModel):
    variant: str = Field(description="a variant, or `auto`: the table across all of them")
    pooled: SettingReply = Field(description="for segments that are not among these")
    segments: dict[str, SettingReply]
    routed: list[str] = Field(description="segments that are told apart by a text's words, where none is named")
    fitted_on_this_bank: bool = Field(description="false: other weights were measured; fit them anew")
    live: LiveReply | None = Field(description="since when it is live; null: the bank file names it")
    shared: bool = Field(
        description="what is put live is seen by every pod on this Redis; false: by this process alone"
    )


class SegmentsList(BaseModel):
    segments: list[SegmentsReply]


class DeletedSegments(LiveReply):
    variant: str
    falls_back: bool = Field(description="the table of the bank file is gone by now; false: its recipe is a 404")


@router.get("")
@needs("predict")
async def list_segments(engine: TheEngine, predictor: ThePredictor) -> SegmentsList:
    """The t's by segment of every variant that has some, and across all of them."""
    tables = sorted(predictor.selector.tables.now.items())
    return SegmentsList(segments=[_reply(engine, predictor.selector, table) for _, table in tables])


@router.get("/{variant}", responses=VERSIONED)
@needs("predict")
async def get_segments(
    engine: TheEngine, predictor: ThePredictor, variant: NameField, response: Response
) -> SegmentsReply:
    """The t's by segment of a variant, or of `auto`. A table of the bank file has no version."""
    reply = _reply(engine, predictor.selector, predictor.selector.table(variant))
    if reply.live:
        tag(response, reply.live.version)
    return reply


@router.put(
    "/{variant}",
    responses={**VERSIONED, 201: {"description": "none was live before", "model": SegmentsReply, **TAGGED}},
)
@needs("manage")
async def put_segments(
    engine: TheEngine,
    predictor: ThePredictor,
    variant: NameField,
    table: Annotated[dict[str, Any], Body(description="segments.json, as `tween segments` writes it")],
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> SegmentsReply:
    """Put a table live on every pod, in place of the one that is live or in the bank file. Blends of its t's are made
    when they are first asked for."""
    replaced = await predictor.selector.tables.put(variant, table, version, by)
    response.status_code = 201 if replaced.created else 200
    tag(response, replaced.document.version)
    return _reply(engine, predictor.selector, predictor.selector.table(variant))


@router.delete("/{variant}", responses=VERSIONED)
@needs("manage")
async def delete_segments(
    engine: TheEngine,
    predictor: ThePredictor,
    experiments: TheExperiments,
    variant: NameField,
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> DeletedSegments:
    """Take the live table away: the one of the bank file is gone by again, where there is one. Where there is none, no
    alias and no experiment that is running or paused may need it."""
    falls_back = predictor.selector.tables.is_filed(variant)
    if not falls_back:
        _check_that_nobody_needs(variant, engine.aliases, experiments)
    deleted = await predictor.selector.tables.delete(variant, version, by)
    tag(response, deleted.version)
    return DeletedSegments(**_live(deleted).model_dump(), variant=variant, falls_back=falls_back)


def _check_that_nobody_needs(variant: str, aliases: Aliases, experiments: ExperimentRegistry) -> None:
    """Raises `SegmentsConflict` with the first thing that would answer 404 without the table."""
    needed: dict[str, object] = {f"alias {alias.name!r}": alias.recipe for alias in aliases.all()}
    for record in experiments.all():
        if record.status in KEPT_WARM:
            needed |= {f"arm {a.name!r} of experiment {record.name!r}": a.recipe for a in record.experiment.arms}
    for who, recipe in needed.items():
        auto = automatic(recipe)
        if auto and auto.table == variant:
            raise SegmentsConflict(f"{who} is {auto.text}, which needs the table, and the bank file has none")


def _reply(engine: Engine, selector: SegmentSelector, table: SegmentTable) -> SegmentsReply:
    tables = selector.tables
    live = tables.live(table.variant)
    return SegmentsReply(
        variant=table.variant,
        pooled=_setting(table.pooled),
        segments={name: _setting(setting) for name, setting in table.segments.items()},
        routed=list(table.router.segments) if table.router else [],
        fitted_on_this_bank=table.bank == engine.bank.fingerprint,
        live=_live(live) if live else None,
        shared=tables.shared,
    )


def _live(live: LiveTable) -> LiveReply:
    return LiveReply(version=live.version, changed=datetime.fromtimestamp(live.changed, UTC), by=live.by)


def _setting(setting: Setting) -> SettingReply:
    return SettingReply.model_validate(setting, from_attributes=True)
