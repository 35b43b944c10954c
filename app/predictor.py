"""The one door for predictions: the route of every dialect parses, calls `Predictor.predict` and renders.

An alias, `exp:NAME` and `auto` become recipes here, and the engine runs these: texts of different arms share its
batches. Shadow arms are asked for in the same moment, so that they join the same batch; the reply neither waits for
them nor shows them. Exposures are recorded once all shadows have answered: which unit met which arm, and whether each
shadow gave the label that was shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import BadTexts, BadUnit, TweenError
from app.experiments.assignment import Assignment
from app.experiments.experiment_registry import ArmDraw, ExperimentRegistry
from app.models.tokenizer import Text
from app.segments.segment_selector import SegmentChoice, SegmentSelector
from app.serving.engine import Answer, Engine, Prediction
from app.weights.auto_recipe import Auto, automatic
from app.weights.recipe import Recipe

Given = str | dict[str, Any] | None
"""A recipe as a caller writes it; None asks for the default."""
BASE = Recipe(())


@dataclass(frozen=True)
class Inference:
    """The engine's answer, and why each text got its recipe.

    `many`: recipes or units came as a list. `choices` are what chose each text's t, where any recipe asked for that;
    `arms` the assignment of each text, where any recipe names an experiment; `automatic` the text of the one recipe of
    a call where that is `auto`, which names no blend.
    """

    answer: Answer
    labels: list[str]
    many: bool
    choices: list[SegmentChoice] | None = None
    arms: list[Assignment | None] | None = None
    automatic: str | None = None


@dataclass(frozen=True)
class _Call:
    """Texts with a segment for each, and how they are to be run."""

    texts: Sequence[Text]
    segments: Sequence[str | None]
    function: str | None
    cache: bool

    def part(self, indices: Sequence[int]) -> _Call:
        """Some of the texts, for a shadow: with the default function."""
        return _Call([self.texts[i] for i in indices], [self.segments[i] for i in indices], None, self.cache)


class Predictor:
    """Turns what a caller asks for into recipes, has the engine run them, and records exposures."""

    def __init__(self, engine: Engine, experiments: ExperimentRegistry, selector: SegmentSelector) -> None:
        self.selector = selector
        self._engine = engine
        self._experiments = experiments

    async def predict(
        self,
        texts: Sequence[Text],
        recipes: Given | Sequence[Given] = None,
        *,
        unit: str | Sequence[str | None] | None = None,
        segment: str | Sequence[str | None] | None = None,
        attributes: Mapping[str, str] | None = None,
        function: str | None = None,
        cache: bool = True,
    ) -> Inference:
        """Classify texts by one recipe for all, or by a list with one for each.

        A recipe is a blend, an alias, `exp:NAME`, `VARIANT@auto` or `auto`. `unit` and `segment` are one for all texts
        or a list; `attributes` are for the targeting of experiments. `function` and `cache` as in `Engine.predict`.
        Raises `BadTexts` and `BadUnit` for lists of another length, and what reading recipes, drawing arms
        (`ExperimentRegistry.draw`), choosing t (`SegmentSelector.choose`) and `Engine.predict` raise.
        """
        many = isinstance(recipes, list)
        given: list[Given] = recipes if isinstance(recipes, list) else [recipes]  # type: ignore[list-item]
        names = [self._experiments.behind(one) for one in given]
        is_drawn = any(name is not None for name in names)
        draws: list[ArmDraw | None] = [None] * len(given)
        if many or is_drawn:  # before each of them is looked at; otherwise the engine checks
            self._engine.check_lengths(len(texts), len(given) if many else None)
        if is_drawn:
            draws = await self._draw(names if many else names * len(texts), unit, attributes or {})
            given = given if many else given * len(texts)
        default, cookbook = self._engine.default_recipe, self._engine.cookbook
        wanted = [
            draw.recipe if draw else default if one is None else cookbook.wanted(one)
            for draw, one in zip(draws, given, strict=True)
        ]
        plain = [one for one in wanted if isinstance(one, Recipe)]
        if not is_drawn and len(plain) == len(wanted):
            answer = await self._engine.predict(texts, plain if many else plain[0], function, cache)
            return Inference(answer, self._labels, many)
        call = _Call(texts, _each("segments", segment, len(texts)), function, cache)
        if not is_drawn:
            answer, choices = await self._predict_adaptively(call, wanted if many else wanted * len(texts))
            return Inference(answer, self._labels, many, choices, automatic=_automatic(wanted, many))
        answer, choices = await self._predict_with_shadows(call, wanted, draws)
        many = many or not (unit is None or isinstance(unit, str))
        arms = [draw.assignment if draw else None for draw in draws]
        return Inference(answer, self._labels, many, choices, arms, _automatic(wanted, many))

    def check(self, recipe: object) -> None:
        """Refuse an automatic recipe that no t could be chosen for; raises as `SegmentSelector.check` does."""
        auto = automatic(recipe)
        if auto is not None:
            self.selector.check(auto)

    @property
    def _labels(self) -> list[str]:
        return self._engine.bank.labels

    async def _draw(
        self,
        names: Sequence[str | None],
        unit: str | Sequence[str | None] | None,
        attributes: Mapping[str, str],
    ) -> list[ArmDraw | None]:
        """The arm of each text, None where its recipe names no experiment."""
        units = _each("units", unit, len(names))
        drawn = [
            None if name is None else self._experiments.draw(name, one, attributes)
            for name, one in zip(names, units, strict=True)
        ]
        return await self._experiments.meet(drawn)

    # -- automatic t -----------------------------------------------------------------------------------

    async def _predict_adaptively(
        self, call: _Call, wanted: Sequence[Recipe | Auto]
    ) -> tuple[Answer, list[SegmentChoice]]:
        """Choose a recipe for each text that asks for an automatic one, then run all of them."""
        self._engine.check(call.texts)
        choices = self.selector.choose(call.texts, wanted, call.segments)
        recipes = [choice.recipe for choice in choices]
        return await self._engine.predict(call.texts, recipes, call.function, call.cache), choices

    # -- experiments -----------------------------------------------------------------------------------

    async def _predict_with_shadows(
        self, call: _Call, wanted: Sequence[Recipe | Auto], draws: Sequence[ArmDraw | None]
    ) -> tuple[Answer, list[SegmentChoice]]:
        """The answers of the arms that were drawn. Exposures are recorded once all shadows have answered."""
        shadows = {
            (name, arm): (indices, asyncio.create_task(self._shadow(call.part(indices), recipe)))
            for (name, arm, recipe), indices in _shadows(draws).items()
        }
        try:
            shown, choices = await self._predict_adaptively(call, wanted)
        except BaseException:
            for _, task in shadows.values():
                task.cancel()
            raise
        # Not when the shadows have answered: what the unit does meanwhile comes after its exposure.
        served = time.time()
        if shadows:
            self._experiments.later(self._record_later(draws, served, shown, shadows))
        else:
            self._record(draws, served, shown, {})
        return shown, choices

    async def _shadow(self, call: _Call, recipe: Recipe | Auto) -> list[Prediction]:
        """The predictions of a shadow arm; none where the service has no room for them."""
        try:
            answer, _ = await self._predict_adaptively(call, [recipe] * len(call.texts))
            return answer.predictions
        except TweenError:
            return []

    async def _record_later(
        self,
        draws: Sequence[ArmDraw | None],
        served: float,
        shown: Answer,
        shadows: Mapping[tuple[str, str], tuple[list[int], asyncio.Task[list[Prediction]]]],
    ) -> None:
        await asyncio.wait([task for _, task in shadows.values()])
        beside: dict[int, dict[str, Prediction]] = {}
        for (_, arm), (indices, task) in shadows.items():
            predictions = [] if task.cancelled() or task.exception() else task.result()
            for index, prediction in zip(indices, predictions, strict=False):
                beside.setdefault(index, {})[arm] = prediction
        self._record(draws, served, shown, beside)

    def _record(
        self,
        draws: Sequence[ArmDraw | None],
        served: float,
        shown: Answer,
        beside: Mapping[int, Mapping[str, Prediction]],
    ) -> None:
        """Record the exposure of each text; `beside` are the predictions of its shadows, by arm."""
        for index, draw in enumerate(draws):
            if draw is None:
                continue
            label, shadows = _label(shown.predictions[index]), beside.get(index, {})
            agreed = {arm: _label(prediction) == label for arm, prediction in shadows.items()}
            # Of a shadow of the base, which runs whatever arm was drawn: otherwise arms would differ in who has one.
            sure = next((max(one.scores) for arm, one in shadows.items() if _is_base(draw.shadows[arm])), None)
            self._experiments.tell(draw, served, agreed, sure, shown.timings.total)


def _each(what: str, given: str | Sequence[str | None] | None, texts: int) -> list[str | None]:
    """One of `units` or `segments` for every text; raises `BadUnit` and `BadTexts` for a list of another length."""
    if given is None or isinstance(given, str):
        return [given] * texts
    if len(given) != texts:
        refuse = BadUnit if what == "units" else BadTexts
        raise refuse(f"{texts} texts and {len(given)} {what}; a list of {what} has one for every text")
    return list(given)


def _automatic(wanted: Sequence[Recipe | Auto], many: bool) -> str | None:
    first = wanted[0]
    return first.text if isinstance(first, Auto) and not many else None


def _shadows(draws: Sequence[ArmDraw | None]) -> dict[tuple[str, str, Recipe | Auto], list[int]]:
    """The texts that each shadow arm is to run, by experiment, arm and recipe."""
    indices: dict[tuple[str, str, Recipe | Auto], list[int]] = {}
    for index, draw in enumerate(draws):
        if draw is not None:
            for arm, recipe in draw.shadows.items():
                indices.setdefault((draw.assignment.experiment, arm, recipe), []).append(index)
    return indices


def _is_base(recipe: Recipe | Auto) -> bool:
    return isinstance(recipe, Recipe) and recipe.blend == BASE


def _label(prediction: Prediction) -> int:
    return max(range(len(prediction.scores)), key=prediction.scores.__getitem__)
