"""Base and variants as rows of one contiguous buffer, (1 + V, P).

Row 0 is the base. A blend reads rows and writes a slot of the same length, at the speed of memory. The
ends of every path (t = 0 and t = 1) are rows themselves: nothing is computed for them, so they are
bit-equal to what was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.weights.layout import Layout

BASE = "base"


@dataclass(frozen=True)
class Partial:
    """A stretch of the vector that only some members own, such as a head that the base lacks."""

    start: int
    stop: int
    owners: frozenset[str]


class Arena:
    """The members' weights by name. `rows` is (1 + V, P); `partials` lists what not every member owns."""

    def __init__(
        self,
        layout: Layout,
        variants: Sequence[str],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.layout = layout
        self.names = (BASE, *variants)
        self.rows = torch.zeros(len(self.names), layout.size, device=device, dtype=dtype)
        self.partials: list[Partial] = []

    def __getitem__(self, name: str) -> Tensor:
        """The row of a member, (P,)."""
        return self.rows[self.names.index(name)]

    @property
    def variants(self) -> tuple[str, ...]:
        return self.names[1:]

    @property
    def row_bytes(self) -> int:
        return self.rows.shape[1] * self.rows.element_size()

    def new_vector(self) -> Tensor:
        """An empty slot for a blend, (P,)."""
        return torch.empty_like(self.rows[0])

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy a member's tensors into its row. Those it lacks stay zero until `share` fills them."""
        row = self[name]
        for place in self.layout.places:
            if place.name in tensors:
                row[place.start : place.stop].view(place.shape).copy_(tensors[place.name])

    def share(self, owners: Mapping[str, frozenset[str]]) -> None:
        """Fill what members lack (`owners` by parameter) with the mean of those that own it.

        A base without a head can so answer at t = 0, and a blend never meets random numbers.
        """
        for place in self.layout.places:
            having = owners[place.name]
            if len(having) == len(self.names):
                continue
            part = self.rows[:, place.start : place.stop]
            indices = [self.names.index(name) for name in self.names if name in having]
            mean = part[indices].mean(dim=0)
            for index in set(range(len(self.names))) - set(indices):
                part[index] = mean
            self.partials.append(Partial(place.start, place.stop, having))
