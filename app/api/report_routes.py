"""An experiment's report over HTTP: figures as JSON, or a page to look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse

from app.api.auth.roles import needs
from app.api.dependencies import TheEngine
from app.api.page.experiment_page import page
from app.api.schemas import REFUSALS, NameField
from app.errors import BadRecipe, UnknownVariant
from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment import Experiment
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.report_builder import judge, with_uncounted
from app.experiments.stats.report_schema import Report, UnmetOutcomes
from app.weights.auto_recipe import Auto
from app.weights.recipe import Cookbook, Recipe


class AggregateSource(Protocol):
    """`app.state.ledger`: what units did."""

    async def sums(self, name: str) -> Sequence[PhaseSums]:
        """Of every phase so far, oldest first. Raises `RedisUnavailable` where nobody can tell."""

    async def uncounted(self, name: str) -> dict[str, int]:
        """Outcomes that count nowhere, by why. Raises `RedisUnavailable`."""

    async def latches(self, name: str) -> dict[str, str]:
        """What reports have said and go on saying. Raises `RedisUnavailable`."""

    async def latch(self, name: str, said: Mapping[str, str]) -> None: ...

    async def unmet(self, name: str) -> dict[str, int]:
        """Outcomes `waiting` for their unit to be met, and by reason those not taken. Raises `RedisUnavailable`."""


class Named(Protocol):
    @property
    def experiment(self) -> Experiment: ...

    @property
    def judged_from(self) -> int:
        """The first phase that tells about what units meet now."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Of a bandit: arms that get no new units, and why."""

    @property
    def amendments(self) -> Sequence[Amendment]: ...


class ExperimentLookup(Protocol):
    """`app.state.experiments`: what experiments are."""

    def get(self, name: str) -> Named:
        """Raises `UnknownExperiment`."""


router = APIRouter(prefix="/v1/experiments", tags=["experiments"], responses=REFUSALS)


async def _sums(request: Request) -> AggregateSource:
    ledger: AggregateSource = request.app.state.ledger
    return ledger


async def _definitions(request: Request) -> ExperimentLookup:
    experiments: ExperimentLookup = request.app.state.experiments
    return experiments


@router.get(
    "/{name}/report",
    response_model=Report,
    responses={200: {"content": {"text/html": {}}, "description": "what the experiment says now"}},
)
@needs("predict")
async def get_report(
    engine: TheEngine,
    ledger: Annotated[AggregateSource, Depends(_sums)],
    experiments: Annotated[ExperimentLookup, Depends(_definitions)],
    name: NameField,
    format: Annotated[Literal["json", "html"], Query(description="html: a page to look at")] = "json",
) -> Report | HTMLResponse:
    """Lift on control with intervals that stay valid as it is looked at daily, and whether to trust it."""
    record = experiments.get(name)
    experiment, recipes = record.experiment, _recipes(engine.cookbook, record.experiment)
    phases = [phase for phase in await ledger.sums(name) if phase.phase >= record.judged_from]
    latched, uncounted = await ledger.latches(name), await ledger.uncounted(name)
    # Bounds and draws take some milliseconds of numpy, which requests should not wait for.
    made, fresh = await asyncio.to_thread(
        judge, experiment, phases, time.time(), recipes, record.left_out, record.amendments, latched
    )
    if fresh:
        await ledger.latch(name, fresh)
    made = with_uncounted(_with_unmet(made, await ledger.unmet(name)), uncounted)
    return HTMLResponse(page(name, made)) if format == "html" else made


def _with_unmet(made: Report, counts: dict[str, int]) -> Report:
    waiting, beyond = counts.pop("waiting"), counts.get("beyond", 0)
    warning = f"{beyond:,} outcomes were refused because too many of units that nobody had met were waiting"
    return made.model_copy(
        update={
            "unmet": UnmetOutcomes(waiting=waiting, untaken=counts),
            "warnings": [*made.warnings, *([warning] if beyond else [])],
        }
    )


def _recipes(cookbook: Cookbook, experiment: Experiment) -> Mapping[str, Recipe | Auto] | None:
    """By arm; None if the bank here cannot make them, as after another one was loaded."""
    try:
        return {arm.name: cookbook.wanted(arm.recipe) for arm in experiment.shown}
    except (BadRecipe, UnknownVariant):
        return None
