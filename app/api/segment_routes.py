"""The t's by segment over HTTP: what `finance@auto` goes by."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.api.direct import json_only
from app.api.native import REFUSALS
from app.api.probes import TheEngine
from app.serving.engine import Engine
from app.serving.segment_table import SegmentTable, Setting

router = APIRouter(prefix="/v1/segments", tags=["segments"], dependencies=[Depends(json_only)], responses=REFUSALS)


class SettingReply(BaseModel):
    t: float
    temperature: float = Field(description="what logits are to be divided by at this t")
    interval: tuple[float, float] = Field(description="where t may lie (95 %)")
    texts: int = Field(description="labelled texts that told so")


class EntropyReply(BaseModel):
    gain: float = Field(description="of the difference of the ends' entropies: 1 in DaWin; at 0 it counts for nothing")
    offset: float


class SegmentsReply(BaseModel):
    variant: str
    pooled: SettingReply = Field(description="for segments that are not among these")
    segments: dict[str, SettingReply]
    routed: list[str] = Field(description="segments that are told apart by a text's words, where none is named")
    entropy: EntropyReply | None = Field(description="what `@auto:entropy` goes by")
    fitted_on_this_bank: bool = Field(description="false: other weights were measured; fit them anew")


class SegmentsList(BaseModel):
    segments: list[SegmentsReply]


@router.get("")
async def list_segments(engine: TheEngine) -> SegmentsList:
    """The t's by segment of every variant that has some."""
    return SegmentsList(segments=[_reply(engine, table) for _, table in sorted(engine.adaptive.tables.items())])


@router.get("/{variant}")
async def get_segments(engine: TheEngine, variant: str) -> SegmentsReply:
    """The t's by segment of a variant."""
    return _reply(engine, engine.adaptive.table(variant))


def _reply(engine: Engine, table: SegmentTable) -> SegmentsReply:
    entropy = table.entropy
    return SegmentsReply(
        variant=table.variant,
        pooled=_setting(table.pooled),
        segments={name: _setting(setting) for name, setting in table.segments.items()},
        routed=list(table.router.segments) if table.router else [],
        entropy=EntropyReply(gain=entropy.gain, offset=entropy.offset) if entropy else None,
        fitted_on_this_bank=table.bank == engine.bank.fingerprint,
    )


def _setting(setting: Setting) -> SettingReply:
    return SettingReply.model_validate(setting, from_attributes=True)
