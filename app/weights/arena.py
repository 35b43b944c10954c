"""Base and variants as rows of one contiguous buffer, (1 + V, P).

Row 0 is the base. A blend reads rows and writes a slot of the same length, at the speed of memory. The
ends of every path (t = 0 and t = 1) are rows themselves: nothing is computed for them, so they are
bit-equal to what was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from app.weights.layout import Layout
from app.weights.shared_memory import Pages

BASE = "base"
Share = float | tuple[float, float]
"""A number for all layers, or one for the first and one for the last, between which it runs linearly."""


@dataclass(frozen=True)
class Partial:
    """A stretch of the vector that only some members own, such as a head that the base lacks.

    `owners` has 1 for each member that owns it, else 0.
    """

    start: int
    stop: int
    owners: tuple[float, ...]

    @property
    def all_owners(self) -> list[int]:
        """The numbers of the members that own it."""
        return [number for number, owns in enumerate(self.owners) if owns]

    def among_owners(self, weights: Tensor) -> Tensor:
        """How the owners share the stretch, (..., M) from the members' weights (..., M): as these do, made to
        add up to 1.

        Sizes count and not signs, or an extrapolation whose weights nearly cancel would blow the stretch up.
        Where no owner takes part (the base alone, without a head), all owners count alike.
        """
        owners = _on_device(self.owners, weights.device)
        sizes = weights.abs() * owners
        total = sizes.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, sizes / total.clamp(min=1e-12), owners / owners.sum()).to(weights.dtype)


@cache
def _on_device(owners: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied there once: a pass on a GPU that copies from the host waits, and cannot be recorded."""
    return torch.tensor(owners, device=device)


class Vectors:
    """Rows (n, P) of one buffer, zeroed and touched. On a CPU they can be handed to a process that is being started."""

    def __init__(self, count: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        self._shape, self._dtype = (count, length), dtype
        if device.type == "cpu":
            self._pages = Pages(count * length * dtype.itemsize)
            self.rows = self._pages.tensor(self._shape, dtype).zero_()
        else:
            self.rows = torch.zeros(self._shape, device=device, dtype=dtype)

    def __getstate__(self) -> tuple[tuple[int, int], torch.dtype, Pages]:
        return self._shape, self._dtype, self._pages

    def __setstate__(self, state: tuple[tuple[int, int], torch.dtype, Pages]) -> None:
        self._shape, self._dtype, self._pages = state
        self.rows = self._pages.tensor(self._shape, self._dtype)


class Arena:
    """The members' weights by name. `rows` is (1 + V, P); `partials` lists what not every member owns.

    Without members it knows their names, and what a vector of theirs is like; `rows` is then (0, P).
    """

    def __init__(
        self,
        layout: Layout,
        variants: Sequence[str],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        members: bool = True,
    ) -> None:
        self.layout = layout
        self.names = (BASE, *variants)
        self._members = Vectors(len(self.names) if members else 0, layout.size, device, dtype)
        self.partials: list[Partial] = []

    @property
    def rows(self) -> Tensor:
        return self._members.rows

    def __getitem__(self, name: str) -> Tensor:
        """The row of a member, (P,)."""
        return self.rows[self.names.index(name)]

    @property
    def variants(self) -> tuple[str, ...]:
        return self.names[1:]

    @property
    def has_members(self) -> bool:
        return len(self.rows) > 0

    @property
    def row_bytes(self) -> int:
        return self.rows.shape[1] * self.rows.element_size()

    def new_vector(self) -> Tensor:
        """An empty slot for a blend, (P,)."""
        return torch.empty_like(self.rows[0])

    def new_slots(self, count: int) -> Vectors:
        """Slots for blends, (count, P), all of their memory already touched."""
        return Vectors(count, self.layout.size, self.rows.device, self.rows.dtype)

    def shares_of(self, weights: Mapping[str, Share], depth: float = 0.0) -> tuple[float, ...]:
        """Weights by name at a depth, in the order of the rows; members not named get 0."""
        return tuple(_at(weights.get(name, 0.0), depth) for name in self.names)

    def weights_of(self, weights: Mapping[str, Share], depth: float = 0.0) -> Tensor:
        """The same as (M,) in float32 on the CPU."""
        return torch.tensor(self.shares_of(weights, depth))

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy a member's tensors into its row. Those it lacks stay zero until `share` fills them."""
        for parameter, tensor in tensors.items():
            self.layout.view(self[name], parameter).copy_(tensor)

    def share(self, owners: Mapping[str, frozenset[str]]) -> None:
        """Fill what members lack (`owners` by parameter) with the mean of those that own it.

        A base without a head can so answer at t = 0, and a blend never meets random numbers.
        """
        for place in self.layout.places:
            having = owners[place.name]
            if len(having) == len(self.names):
                continue
            part = self.rows[:, place.block_start : place.block_stop]
            indices = [self.names.index(name) for name in self.names if name in having]
            mean = part[indices].mean(dim=0)
            for index in set(range(len(self.names))) - set(indices):
                part[index] = mean
            owning = tuple(float(name in having) for name in self.names)
            self.partials.append(Partial(place.block_start, place.block_stop, owning))


def is_ramp(weights: Mapping[str, Share]) -> bool:
    """Whether any weight differs by layer."""
    return any(isinstance(share, tuple) for share in weights.values())


def _at(share: Share, depth: float) -> float:
    """A share at a depth, exact at both ends."""
    if not isinstance(share, tuple):
        return share
    first, last = share
    return (1 - depth) * first + depth * last
