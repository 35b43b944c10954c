"""Sweeps over HTTP: order one, follow it, read what it found, call it off."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only, parse_json
from app.api.dependencies import TheEngine
from app.api.problems import Problem
from app.api.schemas import REFUSALS
from app.errors import BadData, NotDone, WrongContentType
from app.sweep.data.cv_splits import FOLDS
from app.sweep.data.dataset import NAMES
from app.sweep.jobs.sweep_manager import SweepManager
from app.sweep.jobs.sweep_process import PLOT, RAMP
from app.sweep.jobs.sweep_state import Status, SweepState
from app.sweep.metrics_of_t import CURVE_METRICS, METRICS
from app.sweep.report.sweep_report import HTML, JSON
from app.sweep.sweep_spec import CONFIDENCE, MOST_CONFIDENCE, GivenData, SweepOrder

CSV_TYPES = ("text/csv", "application/csv")
"""Not text/plain: any page may send that anywhere, without a preflight."""
NAME = "data"
"""What the one data set is called that has no name."""

router = APIRouter(route_class=BoundedRoute, prefix="/v1/sweeps", tags=["sweeps"], responses=REFUSALS)

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MOST_LABELS = 1_000
Costs = Annotated[list[float], Field(max_length=MOST_LABELS, fail_fast=True)]


def _say_what_data_are(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        index = next((part for e in error.errors() for part in e["loc"] if isinstance(part, int)), None)
        what = f"row {index + 1} is no object" if index is not None else "this is neither"
        raise ValueError(f"data is a list of objects with text and label, or the text of a CSV file; {what}") from None


Content = Annotated[
    Annotated[list[dict[str, Any]], Field(fail_fast=True)] | str,
    WrapValidator(_say_what_data_are),
    Field(
        description="labelled texts: rows with `text`, `label` (by name or number) and, if there is such a thing, "
        "`group` (a customer, say), `segment` and `time`; or a CSV file with such columns",
        examples=[[{"text": "The refund came within a day.", "label": "positive", "group": 17}]],
    ),
]


class DataSet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    data: Content
    role: Literal["target", "guard"] = Field(
        "target", description="a target is to be served best; a guard must not get worse than at t = 0 by its margin"
    )
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="how much a target counts")
    margin: float = Field(0.0, ge=0, allow_inf_nan=False, description="in the metric's unit; 0.01 is a point")
    metric: Literal[CURVE_METRICS] = Field("accuracy", description="what a guard is judged by")  # type: ignore[valid-type]
    confidence: float = Field(
        CONFIDENCE, ge=0.5, le=MOST_CONFIDENCE, description="how sure it must be that a guard keeps its margin"
    )


class SweepRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: Content | None = None
    datasets: list[DataSet] = Field(
        default_factory=list,
        max_length=32,
        fail_fast=True,
        description="several data sets, instead of or beside `data`",
    )
    variant: str | None = Field(None, description="the variant to move towards; needed if there are several")
    variants: list[str] = Field(
        default_factory=list, max_length=32, fail_fast=True, description="several, to find the best mix of"
    )
    line: str | None = Field(None, description="where to move instead: `airline..finance`, or to a recipe")
    objective: Literal[tuple(METRICS)] = Field("loss", description="what is made best")  # type: ignore[valid-type]
    rule: Literal["best", "nearest"] = Field(
        "best", description="the best t, or the smallest one within a standard error of it"
    )
    penalty: float | Literal["folds"] = Field(
        0.0, alias="lambda", description="minimise loss + lambda t^2 |delta|^2; `folds` choose it"
    )
    cost: Annotated[list[Costs], Field(max_length=MOST_LABELS, fail_fast=True)] | None = Field(
        None, description="cost of each answer, a row per true label"
    )
    grid: list[Unit] = Field(
        default_factory=list,
        max_length=101,
        fail_fast=True,
        description="run these t's, instead of five and what lies between",
    )
    ramp: bool = Field(
        False, description="also look for one t in the first layer and another in the last, and say what that gains"
    )
    folds: int = Field(FOLDS, ge=2, le=20, description="of the held-out estimate")
    robustness: bool = Field(False, description="also perturb texts of the first data set along t")
    seed: int = Field(0, ge=0, description="of resamples and folds")
    columns: dict[Literal[tuple(NAMES)], str] = Field(  # type: ignore[valid-type]
        default_factory=dict, fail_fast=True, description="names of the columns, where they are not found; `-`: none"
    )

    @field_validator("penalty", mode="before")
    @classmethod
    def _say_what_lambda_is(cls, value: Any) -> Any:
        if value == "folds":
            return value
        with suppress(TypeError, ValueError, OverflowError):
            if 0 <= float(value) < math.inf:
                return float(value)
        raise ValueError("lambda is a number from 0 up, or 'folds'")

    @model_validator(mode="after")
    def _data_and_one_way(self) -> SweepRequest:
        if self.data is None and not self.datasets:
            raise ValueError("there is no data: send labelled texts as `data`, or several `datasets`")
        if sum(map(bool, (self.variant, self.variants, self.line))) > 1:
            raise ValueError("variant, variants and line say the same thing; send one of them")
        return self

    @property
    def order(self) -> SweepOrder:
        alone = [] if self.data is None else [GivenData(NAME, self.data)]
        named = [GivenData(d.name, d.data, d.role, d.weight, d.margin, d.metric, d.confidence) for d in self.datasets]
        return SweepOrder(
            data=alone + named,
            variants=[self.variant] if self.variant else self.variants,
            line=self.line,
            objective=self.objective,
            rule=self.rule,
            penalty=self.penalty,
            cost=self.cost,
            grid=self.grid,
            ramp=self.ramp,
            folds=self.folds,
            robustness=self.robustness,
            seed=self.seed,
            columns=self.columns,
        )


class Figure(BaseModel):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class PointReply(BaseModel):
    """Scores of a data set (or of all targets together) at a t, at the temperature that fits there."""

    model_config = ConfigDict(extra="allow")

    t: float
    temperature: float
    data: str
    loss: Figure
    accuracy: Figure
    macro_f1: Figure
    ece: Figure


class BestReply(BaseModel):
    t: float
    interval: tuple[float, float] = Field(description="95 %; of what, `interval_is` says")
    interval_is: str | None = Field(
        None, description="`where the best t lies`, or, for objectives other than loss, of t's `not shown to be worse`"
    )
    temperature: float
    recipe: str = Field(examples=["finance@0.45"])


class MoreReply(BaseModel):
    t: float
    texts: int


class GuardReply(BaseModel):
    """What a guard's metric loses at the chosen t, and what its texts promise."""

    name: str
    metric: str
    margin: float
    confidence: float
    texts: int
    at_start: float
    at_chosen: float
    worse_by: Figure
    upper: float = Field(description="the upper confidence bound of `worse_by`, which keeps the margin")
    up_to: float = Field(description="the last t that is promised to keep the margin")
    more: MoreReply | None = Field(description="a better t, and about how many texts would promise it")


class BaselineReply(BaseModel):
    """What the label frequencies alone come to, without a look at the text."""

    model_config = ConfigDict(extra="allow")

    data: str
    loss: Figure
    accuracy: Figure


class RampReply(BaseModel):
    """The best t's in the first and in the last layer, of those ramps that were run."""

    first: Figure
    last: Figure
    recipe: str = Field(examples=["finance@0.2:0.8;temperature=1.3"])
    temperature: float
    gained: Figure = Field(description="by how much the objective is better than at the one t, on the same texts")
    error: float = Field(description="the paired standard error of that")
    held_out: float = Field(description="the same, where t's were chosen without the texts that judge them")
    missed: float = Field(description="how far the surface was off where it proposed a ramp, mean of a logit")
    blends: int
    better: bool = Field(description="clearly better than one t, so that `best.recipe` is this one")


class SweepBrief(BaseModel):
    id: str
    status: Status
    progress: float = Field(description="share of the texts that went through their blends, 1 when done")
    texts_done: int
    texts_expected: int
    created: datetime
    started: datetime | None
    ended: datetime | None
    shared: bool = Field(description="other pods know of it; false: Redis does not answer, and this pod alone knows")
    error: str | None = Field(description="why it failed")


class SweepReply(SweepBrief):
    curve: list[PointReply] | None
    best: BestReply | None
    ramp: RampReply | None = Field(None, description="where one was asked for")
    guards: list[GuardReply] | None = None
    baseline: list[BaselineReply] | None = None
    sentence: str | None = Field(description="what to serve, why, and what to expect of it")
    warnings: list[str]


class SweepList(BaseModel):
    sweeps: list[SweepBrief]


async def sweeps_of(request: Request, engine: TheEngine) -> SweepManager:
    """The sweeps of this app; raises `Loading` until the bank is there."""
    sweeps: SweepManager = request.app.state.sweeps
    return sweeps


TheSweeps = Annotated[SweepManager, Depends(sweeps_of)]


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema that needs no other place."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {name: _inlined(value, parts) for name, value in schema.items() if name != "$defs"}


SCHEMA = SweepRequest.model_json_schema()
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": _inlined(SCHEMA, SCHEMA.get("$defs", {}))},
        "text/csv": {"schema": {"type": "string"}, "example": "text,label\nThe refund came within a day.,positive\n"},
    },
}


@router.post("", status_code=202, openapi_extra={"requestBody": BODY})
@needs("manage")
async def order_sweep(sweeps: TheSweeps, request: Request, response: Response) -> SweepReply:
    """Have t chosen on labelled texts: JSON, or a CSV file and the rest in the query (`?variant=finance&folds=4`)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in CSV_TYPES:
        try:
            await json_only(request)
        except WrongContentType as error:
            raise WrongContentType(f"{error}, or CSV with text/csv") from None
    body = await request.body()
    state = await sweeps.submit(await asyncio.to_thread(_order, body, kind, request))
    response.headers["Location"] = f"{request.url.path}/{state.id}"
    return _reply(state)


@router.get("")
@needs("manage")
async def list_sweeps(sweeps: TheSweeps) -> SweepList:
    """The newest sweeps, on whichever pod."""
    return SweepList(sweeps=[SweepBrief(**_brief(state)) for state in await sweeps.all()])


@router.get("/{sweep}")
@needs("manage")
async def get_sweep(sweeps: TheSweeps, sweep: str) -> SweepReply:
    """How far a sweep is, and what it found."""
    return _reply(await sweeps.get(sweep))


@router.delete("/{sweep}")
@needs("manage")
async def cancel_sweep(sweeps: TheSweeps, sweep: str) -> SweepReply:
    """Call a sweep off. One that has ended stays as it is."""
    return _reply(await sweeps.cancel(sweep))


LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="the last event that was seen")]
After = Annotated[int, Query(ge=0, description="the same, for clients that cannot set headers")]


@router.get(
    "/{sweep}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "an event for every change, until the end"},
        204: {"description": "it has ended, and the caller has seen that"},
    },
)
@needs("manage")
async def follow_sweep(
    sweeps: TheSweeps, request: Request, sweep: str, last: LastEventId = None, after: After = 0
) -> Response:
    """Server-sent events, named by the status. Each tells all of `GET /v1/sweeps/{id}`, so whoever comes back with the
    last id that was seen has missed nothing; 204 if there is nothing more to come."""
    version = int(last) if last is not None and last.isdecimal() and len(last) < 16 else after
    state = await sweeps.get(sweep)
    if state.has_ended and state.version <= version:
        return Response(status_code=204)

    def is_leaving() -> bool:
        return bool(request.app.state.draining)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _events(sweeps, sweep, version, is_leaving), headers=headers, media_type="text/event-stream"
    )


@router.get(
    "/{sweep}/plot.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}}, 409: {"model": Problem}},
)
@needs("manage")
async def get_plot(sweeps: TheSweeps, sweep: str) -> Response:
    """Scores along t with their intervals, drawn."""
    return Response(await sweeps.file(sweep, PLOT), media_type="image/svg+xml")


@router.get(
    "/{sweep}/ramp.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}}, 409: {"model": Problem}},
)
@needs("manage")
async def get_ramp(sweeps: TheSweeps, sweep: str) -> Response:
    """What one t in the first layer and another in the last come to, drawn; 409 where no ramp was found."""
    state = await sweeps.get(sweep)
    if state.status == "done" and not (state.result or {}).get("ramp"):
        raise NotDone(f'sweep {sweep} found no ramp to draw: one is looked for where "ramp" is true, within its guards')
    return Response(await sweeps.file(sweep, RAMP), media_type="image/svg+xml")


@router.get(
    "/{sweep}/report", response_class=Response, responses={200: {"content": {"text/html": {}}}, 409: {"model": Problem}}
)
@needs("manage")
async def get_report(sweeps: TheSweeps, sweep: str) -> Response:
    """The report, one HTML page that needs no other."""
    return Response(await sweeps.file(sweep, HTML), media_type="text/html")


@router.get(
    "/{sweep}/results.json",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}, 409: {"model": Problem}},
)
@needs("manage")
async def get_results(sweeps: TheSweeps, sweep: str) -> Response:
    """All figures of the report."""
    return Response(await sweeps.file(sweep, JSON), media_type="application/json")


def _order(body: bytes, kind: str, request: Request) -> SweepOrder:
    """What the request asks. Raises what becomes a 400 or 422."""
    if kind not in CSV_TYPES:
        return parse_json(body, SweepRequest).order
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"the CSV is not UTF-8: {error.reason} at byte {error.start}") from None
    columns: dict[str, str] = {}
    asked: dict[str, Any] = {"data": text, "columns": columns}
    for name, value in request.query_params.multi_items():
        if name in ("variants", "grid"):
            asked.setdefault(name, []).extend(value.split(","))
        elif name in NAMES:
            columns[name] = value
        elif name in ("data", "columns"):
            raise BadData(f"{name} is no part of the query: the body is the data, and a column is text=NAME")
        else:
            asked[name] = value
    return parse_json(json.dumps(asked).encode(), SweepRequest).order


async def _events(sweeps: SweepManager, sweep: str, version: int, is_leaving: Callable[[], bool]) -> AsyncIterator[str]:
    async for state in sweeps.follow(sweep, version):
        if state is None:
            yield ": no news\n\n"
        else:
            yield f"id: {state.version}\nevent: {state.status}\ndata: {_reply(state).model_dump_json()}\n\n"
        if is_leaving():
            return


def _brief(state: SweepState) -> dict[str, Any]:
    times = {name: _moment(getattr(state, name)) for name in ("created", "started", "ended")}
    same = ("id", "status", "progress", "texts_done", "texts_expected", "shared", "error")
    return {**{name: getattr(state, name) for name in same}, **times}


def _reply(state: SweepState) -> SweepReply:
    found = state.result or {"curve": None, "best": None, "sentence": None, "warnings": []}
    return SweepReply(**_brief(state), **found)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
