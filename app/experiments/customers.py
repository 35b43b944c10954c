"""Synthetic customers, whose behaviour depends on the t that answered them in a way that is planted and so known.

A customer's mean is `base + lift * (1 - ((t - best) / best)^2)`: `base` at t = 0, the most at `best`, less beyond it.
A binary metric is 1 with that probability; a count is Poisson with three times it as its mean; a continuous one is
normal around twenty times it. Everything a customer does follows from the seed and its name, so that two runs with the
same customers plant the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.experiments.experiment import Metric

TEXTS = (
    "The parcel came late and the box was broken.",
    "Thanks, that works great again.",
    "Third call and still no answer.",
    "The price is fine, but the order never came.",
    "Please help with this refund.",
    "It is slow and awful.",
    "Good call, fast answer.",
    "Is it broken or not?",
)
SCALE = {"binary": 1.0, "count": 3.0, "continuous": 20.0}
SPREAD = 5.0
"""Standard deviation of a continuous metric within an arm."""


@dataclass(frozen=True)
class Planted:
    """How t moves customers, and how unpleasant they are."""

    base: float = 0.3
    lift: float = 0.06
    best: float = 0.4
    late: float = 0.3
    """Share of customers whose outcomes come long after, in another order."""
    twice: float = 0.1
    """Share whose outcomes are posted twice, with the same id."""
    bots: float = 0.002
    """Share that ask twenty times, and post the same outcome as often."""

    def level(self, t: float) -> float:
        return min(1.0, max(0.0, self.base + self.lift * (1 - ((t - self.best) / self.best) ** 2)))

    def mean(self, kind: str, t: float) -> float:
        """Expected value of one customer."""
        return SCALE[kind] * self.level(t)


@dataclass
class Customer:
    """One unit: what it asks, and what it does when it has been answered."""

    unit: str
    planted: Planted
    seed: int
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.seed}:{self.unit}")
        self.text = self._chance.choice(TEXTS)
        self.is_bot = self._chance.random() < self.planted.bots
        self.is_late = self._chance.random() < self.planted.late
        self.posts = 20 if self.is_bot else 2 if self._chance.random() < self.planted.twice else 1

    def outcomes(self, metrics: Sequence[Metric], t: float) -> list[dict[str, Any]]:
        """What it does, once; an id for each, so that repetitions are harmless."""
        return [
            {
                "unit": self.unit,
                "metric": metric.name,
                "value": value,
                "id": f"{self.seed}:{self.unit}:{metric.name}",
            }
            for metric in metrics
            if (value := self._value(metric.kind, t))
        ]

    def _value(self, kind: str, t: float) -> float:
        mean = self.planted.mean(kind, t)
        if kind == "binary":
            return float(self._chance.random() < mean)
        return float(self._poisson(mean)) if kind == "count" else round(self._chance.gauss(mean, SPREAD), 2)

    def _poisson(self, mean: float) -> int:
        """By products of uniform numbers (Knuth); fine for small means."""
        count, product = 0, self._chance.random()
        while product > math.exp(-mean):
            count, product = count + 1, product * self._chance.random()
        return count
