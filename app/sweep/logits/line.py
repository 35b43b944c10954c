"""The straight line between two recipes, along which a sweep moves: t = 0 is its start and t = 1 its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import BadRecipe
from app.weights.arena import BASE
from app.weights.recipe import MICRO, Cookbook, Recipe, bounded


@dataclass(frozen=True)
class Line:
    """theta(t) = (1 - t) theta_start + t theta_end, every point of it a linear recipe."""

    start: Recipe
    end: Recipe
    cookbook: Cookbook

    @classmethod
    def read(cls, text: str, cookbook: Cookbook) -> Line:
        """`finance` is base to finance, `airline..finance` one variant to another, and any other linear recipe is the
        end of a line from the base. Raises `BadRecipe` or `UnknownVariant`."""
        text = str(bounded(text))
        shown = repr(text[:60])
        origin, dots, end = text.partition("..")
        if dots and "@" not in text:
            line = cls(cookbook.read(origin), cookbook.read(end), cookbook)
        else:
            line = cls(cookbook.read(BASE), cookbook.read(text), cookbook)
        if MICRO != line.start.temperature or MICRO != line.end.temperature:
            raise BadRecipe(f"{shown} has a temperature, and a line is of weights alone: leave the temperature out")
        if line.start.last or line.end.last:
            raise BadRecipe(f"{shown} lets t run over the layers, and a line has the same t in all of them")
        if not (line.start.is_linear and line.end.is_linear):
            raise BadRecipe(f"{shown} names a method that is not linear, and every point of a line is a linear blend")
        if line.start == line.end:
            raise BadRecipe(f"{shown} is no line: both ends are {line.start.text}")
        return line

    @property
    def text(self) -> str:
        """How a person would write the line."""
        return f"{_named(self.start)}..{_named(self.end)}"

    @property
    def end_name(self) -> str:
        return _named(self.end)

    @property
    def start_name(self) -> str:
        return _named(self.start)

    def at(self, t: float) -> Recipe:
        """The recipe at t."""
        start, end = dict(self.start.t), dict(self.end.t)
        mixed = {name: ((1 - t) * start.get(name, 0) + t * end.get(name, 0)) / MICRO for name in {**start, **end}}
        return self.cookbook.read({"t": mixed})

    def ramp(self, first: float, last: float) -> Recipe:
        """The recipe whose t is `first` in the first layer and `last` in the last."""
        start, end = dict(self.start.t), dict(self.end.t)
        ends = {
            name: [((1 - t) * start.get(name, 0) + t * end.get(name, 0)) / MICRO for t in (first, last)]
            for name in {**start, **end}
        }
        return self.cookbook.read({"t": ends})

    def squared_length(self, products: NDArray[np.float64]) -> float:
        """|theta_end - theta_start|^2, from the inner products of the bank's deltas (V, V)."""
        start, end = dict(self.start.t), dict(self.end.t)
        step = np.array([end.get(name, 0) - start.get(name, 0) for name in self.cookbook.variants]) / MICRO
        return float(step @ products @ step)


def _named(recipe: Recipe) -> str:
    """A member by its name alone."""
    text = recipe.text
    return text.removesuffix("@1") if "+" not in text else text
