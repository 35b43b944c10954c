"""Experiments over HTTP: define, start, pause and stop them, on every pod; see who changed what, and who meets what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheExperiments, ThePredictor
from app.api.http_server.header_text import Actor
from app.api.outcome_routes import TheLedger
from app.api.schemas import REFUSALS, NameField
from app.api.versions import CONFLICTS, TAGGED, VERSIONED, BodyVersion, IfVersion, tag, with_body
from app.cluster.replicated import Change
from app.errors import BadExperiment
from app.experiments.assignment import check_unit
from app.experiments.experiment import Experiment, Status
from app.experiments.experiment_registry import ExperimentRegistry
from app.experiments.record import Record
from app.experiments.rollout import Rollout, RolloutPlan
from app.experiments.rollouts import Rollouts

router = APIRouter(
    route_class=BoundedRoute,
    prefix="/v1/experiments",
    tags=["experiments"],
    dependencies=[Depends(json_only)],
    responses={**REFUSALS, **CONFLICTS},
)

UnitPath = Annotated[str, Path(description="the customer or conversation", examples=["customer-1"])]


async def rollouts_of(experiments: TheExperiments, request: Request) -> Rollouts:
    """Who promotes arms."""
    rollouts: Rollouts = request.app.state.rollouts
    return rollouts


TheRollouts = Annotated[Rollouts, Depends(rollouts_of)]


class StatusRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["running", "paused", "stopped"]
    version: BodyVersion = None


class PhaseReply(BaseModel):
    number: int
    began: datetime | None = Field(description="null: it has not been running yet")
    shares: dict[str, float]
    left_out: dict[str, str] = Field(description="bandit: arms that get no new units, as a guardrail failed, and which")


class ExperimentReply(BaseModel):
    name: str
    version: int
    status: Status
    phase: int
    phases: list[PhaseReply]
    definition: Experiment = Field(description="as it is now, every recipe in canonical text")
    changed: datetime
    by: str | None = Field(description="whose key changed it last, or without keys the `X-Tween-Actor` header")
    rollout: Rollout | None = Field(
        None, exclude_if=lambda value: value is None, description="of what the service makes to promote an arm"
    )
    waits_for: list[str] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of a rollout under way, asked for by name: what its next step still needs",
    )
    archived: datetime | None = Field(None, exclude_if=lambda value: value is None, description="when it was archived")
    served: bool = Field(description="units meet this version on the pod that answers")
    shared: bool = Field(description="every pod on this Redis sees it; false: this process alone, as there is no Redis")


class ChangeReply(ExperimentReply):
    pods_asked: int = Field(description="pods that were asked to have the arms' blends in memory before it")
    pods_warm: int = Field(description="pods that had all of them by then; others warm up before they follow")


class ExperimentList(BaseModel):
    experiments: list[ExperimentReply]


class DeletedExperimentReply(BaseModel):
    name: str = Field(examples=["tone"])
    version: int = Field(examples=[4], description="of the deletion; the next experiment of this name goes on from it")


class ErasedReply(BaseModel):
    erased: bool = Field(examples=[True], description="false: nothing was known of it")
    named: bool = Field(
        examples=[False], description="`overrides` name it still, which are part of the definition: change that"
    )


class EntryReply(BaseModel):
    version: int
    at: datetime
    by: str | None
    action: str = Field(examples=["started"])
    changes: dict[str, tuple[Any, Any]] = Field(
        description="by field: before and after", examples=[{"coverage": [0.1, 0.5]}]
    )


class AuditReply(BaseModel):
    name: str
    audit: list[EntryReply] = Field(description="newest first; the last 200 are kept")


class AssignmentReply(BaseModel):
    experiment: str
    unit: str | None
    arm: str
    recipe: str
    phase: int
    propensity: float = Field(description="the probability with which the lot gives this arm; 1: none was drawn")
    reason: str = Field(description="why; only `assigned` counts as an exposure")


class PromotionRequest(RolloutPlan):
    """`steps`, `step_seconds` and `step_units` matter where it is `guarded`."""

    arm: NameField = Field(examples=["firm"])
    alias: NameField = Field(examples=["prod"])
    guarded: bool = Field(False, description="step by step, and back by itself if a guardrail fails")
    force: bool = Field(False, description="even where the report speaks against the arm; the audit says so")


class PromotionReply(BaseModel):
    alias: str
    recipe: str = Field(description="what it points at, or is to point at in the end")
    rollout: str | None = Field(description="the experiment that brings it there step by step; null: it points there")


@router.get("")
@needs("predict")
async def list_experiments(
    experiments: TheExperiments,
    archived: Annotated[bool, Query(description="those that were archived, instead of the others")] = False,
) -> ExperimentList:
    """Every experiment that was not archived, or every one that was."""
    found = [record for record in experiments.all() if (record.archived is not None) == archived]
    return ExperimentList(experiments=[_reply(experiments, record) for record in found])


@router.get("/{name}", responses=VERSIONED)
@needs("predict")
async def get_experiment(
    experiments: TheExperiments, rollouts: TheRollouts, name: NameField, response: Response
) -> ExperimentReply:
    """What an experiment is now; of a rollout under way, also what it waits for."""
    record = experiments.get(name)
    tag(response, record.version)
    going = record.rollout is not None and record.rollout.outcome == "going"
    return _reply(experiments, record, await rollouts.waits_for(record) if going else None)


@router.put("/{name}", responses={**VERSIONED, 201: {"description": "made now", "model": ChangeReply, **TAGGED}})
@needs("manage")
async def put_experiment(
    predictor: ThePredictor,
    experiments: TheExperiments,
    name: NameField,
    body: Experiment,
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> ChangeReply:
    """Make an experiment or give it another definition, on every pod. A body without `status` leaves that as it is."""
    for arm in body.arms:
        predictor.check(arm.recipe)
    change = await experiments.define(name, body, version, by)
    response.status_code = 201 if change.created else 200
    return _changed(experiments, change, response)


@router.post("/{name}/status", responses=VERSIONED)
@needs("manage")
async def set_status(
    experiments: TheExperiments,
    name: NameField,
    body: StatusRequest,
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> ChangeReply:
    """Start, pause or stop it, on every pod. Before it starts, all have the arms' blends in memory."""
    change = await experiments.set_status(name, body.status, with_body(version, body.version), by)
    return _changed(experiments, change, response)


@router.post("/{name}/archive", responses=VERSIONED)
@needs("manage")
async def archive(
    experiments: TheExperiments, name: NameField, response: Response, version: IfVersion, by: Actor = None
) -> ChangeReply:
    """Put an experiment that does not run out of the way: its report stays, and nothing is counted any more."""
    return _changed(experiments, await experiments.archive(name, version, by), response)


@router.delete("/{name}", responses=VERSIONED)
@needs("manage")
async def delete_experiment(
    experiments: TheExperiments,
    ledger: TheLedger,
    name: NameField,
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> DeletedExperimentReply:
    """Delete an experiment that does not run, and all that it has counted, on every pod. Its name is free again."""
    change = await experiments.delete(name, version, by)
    await ledger.forget(name, change.document.phase)
    tag(response, change.document.version)
    return DeletedExperimentReply(name=change.document.name, version=change.document.version)


@router.delete("/{name}/units/{unit:path}")
@needs("manage")
async def erase_unit(experiments: TheExperiments, ledger: TheLedger, name: NameField, unit: UnitPath) -> ErasedReply:
    """Forget a unit: its record, what it did in the sums, and what it drew first. What is on its way may bring it back
    within seconds of its last request; then erase it again."""
    check_unit(unit)
    experiment = experiments.get(name).experiment
    return ErasedReply(erased=await ledger.erase(name, unit), named=unit in experiment.overrides)


@router.get("/{name}/audit")
@needs("manage")
async def get_audit(experiments: TheExperiments, name: NameField) -> AuditReply:
    """Who changed what, and when."""
    entries = [
        EntryReply(version=e.version, at=_time(e.at), by=e.by, action=e.action, changes=e.changes)
        for e in reversed(experiments.get(name).audit)
    ]
    return AuditReply(name=name, audit=entries)


@router.get("/{name}/assignment")
@needs("predict")
async def get_assignment(
    experiments: TheExperiments,
    name: NameField,
    unit: Annotated[str | None, Query(description="the customer or conversation")] = None,
    attribute: Annotated[list[str] | None, Query(description="NAME=VALUE; may be repeated")] = None,
) -> AssignmentReply:
    """Which arm a unit meets now, and why. Nothing is counted."""
    (meeting,) = await experiments.meet([experiments.draw(name, unit, _attributes(attribute or []))], keep=False)
    assert meeting is not None
    found = meeting.assignment
    return AssignmentReply(
        experiment=name,
        unit=unit,
        arm=found.arm,
        recipe=meeting.recipe.text,
        phase=found.phase,
        propensity=found.propensity,
        reason=found.reason,
    )


@router.post(
    "/{name}/promote", responses={202: {"description": "begun, and goes on step by step", "model": PromotionReply}}
)
@needs("manage")
async def promote(
    rollouts: TheRollouts,
    name: NameField,
    body: PromotionRequest,
    response: Response,
    version: IfVersion,
    by: Actor = None,
) -> PromotionReply:
    """Bring an arm's recipe behind an alias: at once, or for a growing share of units, back if a guardrail fails."""
    if not body.guarded:
        move = await rollouts.promote(name, body.arm, body.alias, by, body.force, version)
        return PromotionReply(alias=body.alias, recipe=str(move.document.recipe), rollout=None)
    plan = RolloutPlan(steps=body.steps, step_seconds=body.step_seconds, step_units=body.step_units)
    record = await rollouts.begin(name, body.arm, body.alias, plan, by, body.force, version)
    response.status_code = 202
    return PromotionReply(alias=body.alias, recipe=str(record.experiment.arm("new").recipe), rollout=record.name)


def _attributes(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if not all(equals for _, equals, _ in pairs):
        raise BadExperiment("an attribute is written NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _reply(experiments: ExperimentRegistry, record: Record, waits_for: list[str] | None = None) -> ExperimentReply:
    phases = [
        PhaseReply(
            number=p.number, began=None if p.began is None else _time(p.began), shares=p.shares, left_out=p.left_out
        )
        for p in record.phases
    ]
    last = record.audit[-1]
    return ExperimentReply(
        name=record.name,
        version=record.version,
        status=record.status,
        phase=record.phase,
        phases=phases,
        definition=record.experiment,
        changed=_time(last.at),
        by=last.by,
        rollout=record.rollout,
        waits_for=waits_for,
        archived=None if record.archived is None else _time(record.archived),
        served=experiments.is_served(record),
        shared=experiments.shared,
    )


def _changed(experiments: ExperimentRegistry, change: Change[Record], response: Response) -> ChangeReply:
    tag(response, change.document.version)
    reply = _reply(experiments, change.document)
    return ChangeReply(**reply.model_dump(), pods_asked=change.asked, pods_warm=change.warm)
