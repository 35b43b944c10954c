"""Blends: build, list, download and delete finished weights."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheEngine
from app.api.problems import Problem
from app.api.schemas import REFUSALS, RecipeField
from app.serving.blend_provider import Cached


class BlendRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipe: RecipeField


class BlendReply(BaseModel):
    key: str
    recipe: str
    source: Literal["memory", "redis", "built"]
    milliseconds: float = Field(description="what fetching or building it took")
    bytes: int
    tiers: list[str] = Field(description="where it lies now: `memory`, and `redis` if it took the blend")


class CachedReply(BaseModel):
    key: str
    recipe: str
    bytes: int
    tiers: list[str]
    hits: int = Field(description="times this process found it in memory")
    age: float = Field(description="seconds since it was built")
    in_use: int = Field(description="requests that use it now")
    costs: dict[str, float] = Field(
        description="milliseconds that each way took where this process went it: `build`, `fetch`, `write`",
        examples=[{"build": 7.1, "write": 160.3}],
    )


class CachedList(BaseModel):
    blends: list[CachedReply]
    tiers: dict[str, dict[str, int]] = Field(description="counters of this process, by tier")


class DeletedBlendReply(BaseModel):
    key: str
    tiers: list[str] = Field(description="the tiers that held it")


router = APIRouter(route_class=BoundedRoute, prefix="/v1", dependencies=[Depends(json_only)], responses=REFUSALS)


@router.post("/blends", tags=["blends"], responses={201: {"description": "built now", "model": BlendReply}})
@needs("manage")
async def build_blend(engine: TheEngine, body: BlendRequest, response: Response) -> BlendReply:
    """Build or fetch a blend now, so that the first request finds it, and put it into Redis, where pods without the
    members find it. 201 if it was built, 200 if it was there."""
    recipe = engine.cookbook.read(body.recipe)
    async with engine.blends.publish(recipe) as weights:
        response.status_code = 201 if weights.source == "built" else 200
        return BlendReply(
            key=weights.key,
            recipe=recipe.blend.text,
            source=weights.source,  # type: ignore[arg-type]  # a tier's name; pydantic checks it
            milliseconds=weights.milliseconds,
            bytes=engine.bank.arena.row_bytes,
            tiers=await engine.blends.tiers(weights.key) or ["memory"],
        )


@router.get("/blends", tags=["blends"])
@needs("predict")
async def list_blends(engine: TheEngine) -> CachedList:
    """Every blend that lies in a tier."""
    cached = await engine.blends.cached()
    return CachedList(blends=[_cached(blend) for blend in cached], tiers=engine.blends.counters())


@router.get("/blends/{key}", tags=["blends"])
@needs("predict")
async def get_blend(engine: TheEngine, key: str) -> CachedReply:
    """One cached blend."""
    return _cached(await engine.blends.find(key))


@router.get(
    "/blends/{key}/weights",
    tags=["blends"],
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "a safetensors file"}},
)
@needs("manage")
async def get_weights(
    engine: TheEngine,
    key: str,
    temperature: Annotated[float, Query(description="divide the layer that gives the logits by it")] = 1.0,
) -> StreamingResponse:
    """The blend as a safetensors file; beside the base's config.json, `from_pretrained` loads it.

    A recipe's temperature is no part of its blend: name it here to have it in the file."""
    length, pieces = await engine.weights_file(key, temperature)
    headers = {"Content-Length": str(length), "Content-Disposition": 'attachment; filename="model.safetensors"'}
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


@router.delete(
    "/blends/{key}",
    tags=["blends"],
    responses={409: {"model": Problem, "description": "it is a member of the bank, which stays loaded"}},
)
@needs("manage")
async def delete_blend(engine: TheEngine, key: str) -> DeletedBlendReply:
    """Take a blend out of every tier. A request that uses it now still finishes."""
    return DeletedBlendReply(key=key, tiers=await engine.blends.delete(key))


def _cached(blend: Cached) -> CachedReply:
    return CachedReply.model_validate(blend, from_attributes=True)
