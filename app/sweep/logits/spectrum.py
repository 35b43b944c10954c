"""What a service answers to a few texts all along a line: true passes at the nodes, and polynomials between them.

The passes of all nodes ride one batch of the engine, and what it remembers costs none. See `logit_curve.py` for why a
polynomial through logits may stand for the blends between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.errors import BadRecipe, BadTexts
from app.models.tokenizer import Text
from app.serving.engine import DEFAULT_FUNCTION, FUNCTIONS, Answer, Engine
from app.sweep.logits.line import Line
from app.sweep.logits.logit_curve import CHECK, NODES, Check, checked, polynomial

MAX_NUMBERS = 100_000
"""Scores in one answer: writing more of them as JSON would keep other requests waiting."""


@dataclass(frozen=True)
class Spectrum:
    """Logits (K, N, C) at the nodes, scores (N, C, G) at the t's, what the engine said of the nodes' texts (the N of
    the first node, then those of the next), and what a further true pass said of the curve, if it was asked for."""

    line: Line
    logits: NDArray[np.float64]
    scores: list[list[list[float]]]
    answer: Answer
    check: Check | None


async def along(
    engine: Engine, line: Line, texts: Sequence[Text], ts: Sequence[float], function: str | None, check: bool
) -> Spectrum:
    """Scores of the texts at each t of the line, made by `function` as `Engine.predict` makes them.

    Raises `BadTexts` for more texts or t's than one call takes, and what `Engine.predict` raises.
    """
    at = (*NODES, CHECK) if check else NODES
    _check_sizes(engine, len(texts), len(ts), len(at))
    recipes = [line.at(t) for t in at for _ in texts]
    answer = await engine.predict([*texts] * len(at), recipes, "none")
    true = np.array([prediction.scores for prediction in answer.predictions]).reshape(len(at), len(texts), -1)
    nodes = true[: len(NODES)]
    logits = np.tensordot(polynomial(np.array(ts)), nodes, axes=1)  # (G, N, C)
    scores = FUNCTIONS[function or DEFAULT_FUNCTION[engine.bank.problem_type]](torch.from_numpy(logits))
    found = None
    if check:
        guess = np.tensordot(polynomial(np.array([CHECK])), nodes, axes=1)[0]
        found = checked(CHECK, "polynomial", guess, true[-1])
    return Spectrum(line, nodes, scores.permute(1, 2, 0).tolist(), answer, found)


def between(engine: Engine, variant: str | None, recipe: str | None) -> Line:
    """The line from the base to a variant, or of a recipe with two ends; of a bank with one variant, to that one.

    Raises `BadRecipe` or `UnknownVariant`.
    """
    cookbook = engine.cookbook
    if variant is not None and recipe is not None:
        raise BadRecipe("give either 'variant' or 'recipe', not both: each names a line")
    if recipe is not None:
        return Line.read(recipe, cookbook)
    if variant is None:
        if len(cookbook.variants) != 1:
            raise BadRecipe(
                "name a 'variant', or two ends as 'recipe', such as 'base..finance'; "
                f"variants here: {', '.join(cookbook.variants) or 'none'}"
            )
        variant = cookbook.variants[0]
    return Line(cookbook.read({"t": {}}), cookbook.read({"variant": variant}), cookbook)


def _check_sizes(engine: Engine, texts: int, ts: int, passes: int) -> None:
    most = engine.max_texts // passes
    if texts > most:
        raise BadTexts(f"{texts} texts along a line; at most {most} are taken, since each runs on {passes} blends")
    numbers = texts * ts * len(engine.bank.labels)
    if numbers > MAX_NUMBERS:
        raise BadTexts(
            f"{texts} texts at {ts} t's with {len(engine.bank.labels)} labels are {numbers} scores; at most "
            f"{MAX_NUMBERS} are answered, and from the nodes' logits any t can be had"
        )
