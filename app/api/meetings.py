"""Predictions whose recipe is an experiment: every text is answered by the arm that its unit meets.

Arms are resolved to recipes before the engine, so that texts of different arms share its batches. Shadow arms are asked
for in the same moment, which puts them into the same batch; nobody waits for them, and nobody sees them. Once they are
there, the ledger is told who met what, and whether each shadow would have given the label that was shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request

from app.api.health_routes import engine_of
from app.errors import BadTexts, BadUnit, TweenError
from app.experiments.experiment_registry import ArmDraw, ExperimentRegistry
from app.segments.segment_selector import SegmentChoice
from app.serving.engine import Answer, Engine, Prediction
from app.weights.auto_recipe import Auto
from app.weights.recipe import Recipe

Given = str | dict[str, Any] | None
Text = str | tuple[str, str]
BASE = Recipe(())
UNIT_HEADER = "X-Tween-Unit"

UnitHeader = Annotated[
    str | None,
    Header(
        alias=UNIT_HEADER,
        description="the unit, where the body names none: see `unit`. UTF-8; percent-encoding is decoded",
    ),
]


async def experiments_of(request: Request) -> ExperimentRegistry:
    """The experiments of this app; raises `Loading` until the bank is there."""
    await engine_of(request)
    experiments: ExperimentRegistry = request.app.state.experiments
    return experiments


TheExperiments = Annotated[ExperimentRegistry, Depends(experiments_of)]


@dataclass(frozen=True)
class Met:
    """What each text of a call meets, None where its recipe names no experiment; `many`: units came as a list."""

    meetings: list[ArmDraw | None]
    many: bool

    def wanted(self, engine: Engine, given: Sequence[Given]) -> list[Recipe | Auto]:
        """What every text is to be answered by."""
        return [
            meeting.recipe if meeting else engine.wanted(one) for meeting, one in zip(self.meetings, given, strict=True)
        ]


async def meet(
    experiments: ExperimentRegistry,
    given: Sequence[Given],
    units: str | Sequence[str | None] | None,
    attributes: Mapping[str, str],
    texts: int,
) -> Met | None:
    """What each text of a call meets; None if no recipe names an experiment.

    `given` is one recipe for all texts, or one for each. Raises `BadTexts` and `BadUnit` where lists have another
    length, and what `ExperimentRegistry.draw` raises.
    """
    names = [experiments.behind(one) for one in given]
    if all(name is None for name in names):
        return None
    if len(names) == 1:
        names *= texts
    if len(names) != texts:
        raise BadTexts(f"{texts} texts and {len(names)} recipes; a list of recipes has one for every text")
    many = units is not None and not isinstance(units, str)
    each = [units] * texts if units is None or isinstance(units, str) else list(units)
    if len(each) != texts:
        raise BadUnit(f"{texts} texts and {len(each)} units; a list of units has one for every text")
    drawn = [
        None if name is None else experiments.draw(name, unit, attributes)
        for name, unit in zip(names, each, strict=True)
    ]
    return Met(await experiments.meet(drawn), many)


async def answer(
    experiments: ExperimentRegistry,
    engine: Engine,
    texts: Sequence[Text],
    wanted: Sequence[Recipe | Auto],
    segments: Sequence[str | None],
    met: Met,
    function: str | None,
    cache: bool,
) -> tuple[Answer, list[SegmentChoice]]:
    """What the units see, and what chose the t of each text. The ledger is told of it when all shadows are there."""
    shadows = {
        (name, arm): asyncio.create_task(
            _beside(engine, [texts[i] for i in indices], recipe, [segments[i] for i in indices], cache)
        )
        for (name, arm, recipe), indices in _shadows(met.meetings).items()
    }
    try:
        shown, choices = await engine.predict_adaptively(texts, wanted, segments, function, cache)
    except BaseException:
        for task in shadows.values():
            task.cancel()
        raise
    served = time.time()  # and not when the shadows are there: what the unit does meanwhile comes after its exposure
    if shadows:
        experiments.later(_tell_with_shadows(experiments, met.meetings, served, shown, shadows))
    else:
        _tell(experiments, met.meetings, served, shown, {})
    return shown, choices


def _shadows(meetings: Sequence[ArmDraw | None]) -> dict[tuple[str, str, Recipe | Auto], list[int]]:
    """The texts that each shadow arm is to see."""
    found: dict[tuple[str, str, Recipe | Auto], list[int]] = {}
    for index, meeting in enumerate(meetings):
        for arm, recipe in meeting.shadows.items() if meeting else ():
            assert meeting is not None
            found.setdefault((meeting.assignment.experiment, arm, recipe), []).append(index)
    return found


async def _beside(
    engine: Engine, texts: Sequence[Text], recipe: Recipe | Auto, segments: Sequence[str | None], cache: bool
) -> list[Prediction]:
    """What a shadow gives; nothing where the service has no room for it."""
    try:
        answer, _ = await engine.predict_adaptively(texts, [recipe] * len(texts), segments, None, cache)
        return answer.predictions
    except TweenError:
        return []


async def _tell_with_shadows(
    experiments: ExperimentRegistry,
    meetings: Sequence[ArmDraw | None],
    served: float,
    shown: Answer,
    shadows: Mapping[tuple[str, str], asyncio.Task[list[Prediction]]],
) -> None:
    await asyncio.wait(shadows.values())
    indices = {(name, arm): where for (name, arm, _), where in _shadows(meetings).items()}
    beside: dict[int, dict[str, Prediction]] = {}
    for (name, arm), task in shadows.items():
        predictions = [] if task.cancelled() or task.exception() else task.result()
        for index, prediction in zip(indices[name, arm], predictions, strict=False):
            beside.setdefault(index, {})[arm] = prediction
    _tell(experiments, meetings, served, shown, beside)


def _tell(
    experiments: ExperimentRegistry,
    meetings: Sequence[ArmDraw | None],
    served: float,
    shown: Answer,
    beside: Mapping[int, Mapping[str, Prediction]],
) -> None:
    for index, meeting in enumerate(meetings):
        if meeting is None:
            continue
        label, seen = _label(shown.predictions[index]), beside.get(index, {})
        agreed = {arm: _label(prediction) == label for arm, prediction in seen.items()}
        # Of a base in the shadow, which is asked whatever the unit meets: elsewhere arms would differ in who has one.
        sure = next((max(one.scores) for arm, one in seen.items() if _is_base(meeting.shadows[arm])), None)
        experiments.tell(meeting, served, agreed, sure, shown.timings.total)


def _is_base(recipe: Recipe | Auto) -> bool:
    return isinstance(recipe, Recipe) and recipe.blend == BASE


def _label(prediction: Prediction) -> int:
    return max(range(len(prediction.scores)), key=prediction.scores.__getitem__)
