"""Which tensor lives where in a flat vector of weights.

A member of the bank is one row of P floats, so that a blend is one pass over memory and not a loop over
a hundred small tensors. The layout remembers where each parameter starts, and gives the parameters back
as views: no byte is copied between a blend and the model that runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from torch import Tensor

ALIGNMENT = 16
"""Tensors start at multiples of this many elements: 64 bytes of float32, one cache line, one AVX-512 load."""


@dataclass(frozen=True)
class Place:
    """One parameter: its name, its shape, and the element of the flat vector at which it starts."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)


class Layout:
    """The places of all parameters, in order; `size` is P, the length of the flat vector with its gaps."""

    def __init__(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        self.places: list[Place] = []
        end = 0
        for name, shape in shapes:
            place = Place(name, shape, start=-(-end // ALIGNMENT) * ALIGNMENT)
            self.places.append(place)
            end = place.stop
        self.size = -(-end // ALIGNMENT) * ALIGNMENT
        self.parameters = sum(prod(place.shape) for place in self.places)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters as views of a flat vector of shape (P,); writing to one writes to the vector."""
        return {place.name: vector[place.start : place.stop].view(place.shape) for place in self.places}

    def describe(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes in order: what two layouts must share to be the same."""
        return [(place.name, place.shape) for place in self.places]
