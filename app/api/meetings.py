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

from app.api.probes import engine_of
from app.errors import BadTexts, BadUnit, TweenError
from app.experiments.running import Experiments, Meeting
from app.serving.engine import Answer, Engine, Prediction
from app.weights.recipe import Recipe

Given = str | dict[str, Any] | None
BASE = Recipe(())
UNIT_HEADER = "X-Tween-Unit"

UnitHeader = Annotated[
    str | None, Header(alias=UNIT_HEADER, description="the unit, where the body names none: see `unit`")
]


async def experiments_of(request: Request) -> Experiments:
    """The experiments of this app; raises `Loading` until the bank is there."""
    await engine_of(request)
    experiments: Experiments = request.app.state.experiments
    return experiments


TheExperiments = Annotated[Experiments, Depends(experiments_of)]


@dataclass(frozen=True)
class Met:
    """What each text of a call meets, None where its recipe names no experiment; `many`: units came as a list."""

    meetings: list[Meeting | None]
    many: bool

    def recipes(self, engine: Engine, given: Sequence[Given]) -> list[Recipe]:
        """The recipe of every text."""
        return [
            meeting.recipe if meeting else engine.default_recipe if one is None else engine.cookbook.read(one)
            for meeting, one in zip(self.meetings, given, strict=True)
        ]


async def meet(
    experiments: Experiments,
    given: Sequence[Given],
    units: str | Sequence[str | None] | None,
    attributes: Mapping[str, str],
    texts: int,
) -> Met | None:
    """What each text of a call meets; None if no recipe names an experiment.

    `given` is one recipe for all texts, or one for each. Raises `BadTexts` and `BadUnit` where lists have another
    length, and what `Experiments.draw` raises.
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
    experiments: Experiments,
    engine: Engine,
    texts: Sequence[str | tuple[str, str]],
    recipes: Sequence[Recipe],
    met: Met,
    function: str | None,
    cache: bool,
) -> Answer:
    """What the units see. The ledger is told of it when all shadows are there."""
    shadows = {
        (name, arm): asyncio.create_task(_beside(engine, [texts[i] for i in indices], recipe, cache))
        for (name, arm, recipe), indices in _shadows(met.meetings).items()
    }
    try:
        shown = await engine.predict(texts, recipes, function, cache)
    except BaseException:
        for task in shadows.values():
            task.cancel()
        raise
    served = time.time()  # and not when the shadows are there: what the unit does meanwhile comes after its exposure
    if shadows:
        experiments.later(_tell_with_shadows(experiments, met.meetings, served, shown, shadows))
    else:
        _tell(experiments, met.meetings, served, shown, {})
    return shown


def _shadows(meetings: Sequence[Meeting | None]) -> dict[tuple[str, str, Recipe], list[int]]:
    """The texts that each shadow arm is to see."""
    found: dict[tuple[str, str, Recipe], list[int]] = {}
    for index, meeting in enumerate(meetings):
        for arm, recipe in meeting.shadows.items() if meeting else ():
            assert meeting is not None
            found.setdefault((meeting.assignment.experiment, arm, recipe), []).append(index)
    return found


async def _beside(
    engine: Engine, texts: Sequence[str | tuple[str, str]], recipe: Recipe, cache: bool
) -> list[Prediction]:
    """What a shadow gives; nothing where the service has no room for it."""
    try:
        return (await engine.predict(texts, recipe, None, cache)).predictions
    except TweenError:
        return []


async def _tell_with_shadows(
    experiments: Experiments,
    meetings: Sequence[Meeting | None],
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
    experiments: Experiments,
    meetings: Sequence[Meeting | None],
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
        sure = next((max(prediction.scores) for prediction in seen.values() if prediction.recipe.blend == BASE), None)
        experiments.tell(meeting, served, agreed, sure, shown.timings.total)


def _label(prediction: Prediction) -> int:
    return max(range(len(prediction.scores)), key=prediction.scores.__getitem__)
