"""Live: the process answers. Ready: the bank is loaded and requests will be served."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from app.api.auth.roles import needs
from app.api.dependencies import TheEngine
from app.api.problems import Problem
from app.errors import Draining


class Live(BaseModel):
    status: Literal["live"] = "live"


class Ready(BaseModel):
    """`redis` is `degraded` while Redis does not answer: predictions go on, blends are rebuilt."""

    status: Literal["ready"] = "ready"
    redis: Literal["ok", "degraded", "none"]
    fingerprint: str
    warnings: dict[str, list[str]] = Field(description="by variant, what is doubtful about it; GET /v1/bank tells more")


router = APIRouter(tags=["probes"])


@router.get("/livez")
@needs(None)
async def live() -> Live:
    """Whether the process answers at all."""
    return Live()


@router.get(
    "/readyz", responses={503: {"model": Problem, "description": "still loading, told to leave, or the GPU is lost"}}
)
@needs(None)
async def ready(request: Request, engine: TheEngine) -> Ready:
    """Whether requests will be served."""
    if request.app.state.draining:
        raise Draining("this pod was told to leave: it serves what comes, but send it nothing more")
    if engine.compute.lost is not None:
        raise engine.compute.lost
    return Ready(
        redis=await engine.blends.shared_state(),
        fingerprint=engine.bank.fingerprint,
        warnings=engine.bank.warnings,
    )


@router.get("/", include_in_schema=False)
@needs(None)
async def home() -> RedirectResponse:
    """The first thing that somebody types."""
    return RedirectResponse("docs")
