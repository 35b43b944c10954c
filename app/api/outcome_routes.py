"""What units did, told over HTTP; and what an experiment knows, to take away."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, FailFast, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheExperiments
from app.api.schemas import REFUSALS, NameField
from app.errors import ExperimentConflict
from app.experiments.assignment import check_unit
from app.experiments.events.event import Outcome, outcome_id
from app.experiments.events.event_ledger import EventLedger
from app.experiments.events.export_rows import FORMATS
from app.experiments.events.null_ledger import NullLedger
from app.experiments.events.unmet_units import WHY

MOST_OUTCOMES = 10_000
"""In one call."""
LARGEST = 1e9
"""Squares of values are added up; those of larger ones would swallow the others."""

router = APIRouter(
    route_class=BoundedRoute,
    prefix="/v1/experiments",
    tags=["experiments"],
    dependencies=[Depends(json_only)],
    responses=REFUSALS,
)


async def ledger_of(request: Request, experiments: TheExperiments) -> EventLedger | NullLedger:
    """The ledger of this app; raises `Loading` until the bank is there."""
    ledger: EventLedger | NullLedger = request.app.state.ledger
    return ledger


TheLedger = Annotated[EventLedger | NullLedger, Depends(ledger_of)]


class OutcomeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    unit: str = Field(description="who did it, as in `predict`; may be told before the unit has been met")
    metric: NameField = Field(max_length=256, description="a metric of the experiment", examples=["bought"])
    value: float = Field(1.0, ge=-LARGEST, le=LARGEST, allow_inf_nan=False, description="binary: above 0 is yes")
    id: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="the same id of a unit and metric counts once; without one, each post",
    )
    at: float | None = Field(
        None, ge=0, le=1e11, allow_inf_nan=False, description="when, seconds since 1970; by default now"
    )


class AcceptedReply(BaseModel):
    accepted: int = Field(
        description="outcomes that are on disk here, and will be counted once or told of as `uncounted`"
    )
    dropped: int = Field(0, description="outcomes that were not taken, as their unit was not met")
    why: list[str] = Field(default_factory=list, description="why, a sentence for each reason")


@router.post("/{name}/outcomes", status_code=202)
@needs("predict")
async def post_outcomes(
    experiments: TheExperiments,
    ledger: TheLedger,
    request: Request,
    name: NameField,
    body: Annotated[
        list[OutcomeBody],
        FailFast(),
        Body(
            max_length=MOST_OUTCOMES,
            examples=[[{"unit": "customer-1", "metric": "bought", "value": 1, "id": "order-77"}]],
        ),
    ],
) -> AcceptedReply:
    """Tell what units did. An answer of 202 is a promise that each one `accepted` is counted once, or told of by the
    report under `uncounted`, with the reason."""
    record = experiments.get(name)
    if record.archived is not None:
        raise ExperimentConflict(f"experiment {record.name!r} is archived, so nothing is counted any more")
    now = time.time()
    for one in body:
        check_unit(one.unit)
    outcomes = [
        Outcome(
            id=uuid.uuid4().hex if one.id is None else outcome_id(one.unit, one.metric, one.id),
            experiment=name,
            unit=one.unit,
            metric=one.metric,
            value=one.value,
            at=now if one.at is None else one.at,
        )
        for one in body
    ]
    who: str | None = getattr(request.state, "actor", None)
    taken = await ledger.record(name, record.experiment, outcomes, who)
    why = [f"{count} outcomes: {WHY[reason]}" for reason, count in sorted(taken.dropped.items())]
    return AcceptedReply(accepted=len(taken.outcomes), dropped=taken.dropped.total(), why=why)


@router.get(
    "/{name}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {media: {} for _, media in FORMATS.values()}, "description": "a row for each unit"}},
)
@needs("manage")
async def export(
    experiments: TheExperiments,
    ledger: TheLedger,
    name: NameField,
    format: Annotated[Literal["csv", "parquet"], Query(description="what kind of file")] = "csv",
) -> StreamingResponse:
    """A row for each unit and phase: arm, first exposure, exposures, propensity, covariate, and each metric's value."""
    write, media = FORMATS[format]
    pieces = write(ledger.records(name), experiments.get(name).experiment)
    first = await anext(pieces)  # what goes wrong at once is a problem and not half a file
    # RFC 6266: a name in any script is percent-encoded UTF-8
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}.{format}"}
    return StreamingResponse(_after(first, pieces), media_type=media, headers=headers)


async def _after(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece
