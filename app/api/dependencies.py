"""Objects of the application that routes ask for; each raises `Loading` until the bank is there."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

from fastapi import Depends, Header, Request

from app.errors import Loading
from app.experiments.experiment_registry import ExperimentRegistry
from app.predictor import Predictor
from app.serving.engine import Engine

UNIT_HEADER = "X-Tween-Unit"

UnitHeader = Annotated[
    str | None,
    Header(
        alias=UNIT_HEADER,
        description="the unit, where the body names none: see `unit`. UTF-8; percent-encoding is decoded",
    ),
]


def loading() -> NoReturn:
    """Refuse a request until the bank is there."""
    raise Loading("the bank is still being loaded; /readyz tells when it is there")


def _loaded(request: Request, name: str) -> Any:
    return getattr(request.app.state, name) if request.app.state.engine else loading()


async def predictor_of(request: Request) -> Predictor:
    predictor: Predictor = _loaded(request, "predictor")
    return predictor


async def engine_of(request: Request) -> Engine:
    engine: Engine = _loaded(request, "engine")
    return engine


async def experiments_of(request: Request) -> ExperimentRegistry:
    experiments: ExperimentRegistry = _loaded(request, "experiments")
    return experiments


ThePredictor = Annotated[Predictor, Depends(predictor_of)]
TheEngine = Annotated[Engine, Depends(engine_of)]
TheExperiments = Annotated[ExperimentRegistry, Depends(experiments_of)]
