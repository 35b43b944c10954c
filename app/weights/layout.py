"""Which tensor lives where in a flat vector of weights.

A member of the bank is one row of P floats, so that a blend is one pass over memory and not a loop over
a hundred small tensors. The layout remembers where each parameter starts, and gives the parameters back
as views: no byte is copied between a blend and the model that runs it.

A block lays the weights of linear layers that read the same input (query, key and value, say) side by side
as one [in, out] matrix: one product computes them all, and that order is the one which matrix products of
few tokens like best. To the rest of the world each is still an ordinary [out, in] parameter, with strides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

ALIGNMENT = 16
"""Tensors start at multiples of this many elements: 64 bytes of float32, one cache line, one AVX-512 load."""


@dataclass(frozen=True)
class TensorSpec:
    """One parameter: its name, shape and strides, and the element of the flat vector at which it starts.

    `block_start` and `block_stop` bound the stretch that it shares with the other parameters of its block.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    block_start: int
    block_stop: int


class Layout:
    """The places of all parameters, in order; `size` is P, the length of the flat vector with its gaps.

    `blocks` names the linear layers (without `.weight`) whose weights and biases lie side by side.
    """

    def __init__(self, shapes: Iterable[tuple[str, tuple[int, ...]]], blocks: Iterable[Sequence[str]] = ()) -> None:
        known = dict(shapes)
        block_of = {f"{layer}.{part}": tuple(block) for block in blocks for layer in block for part in PARTS}
        self._by_name: dict[str, TensorSpec] = {}
        self.size = 0
        for name, shape in known.items():
            if name in self._by_name:
                continue
            if name not in block_of:
                self._add([(name, shape, _contiguous(shape))], prod(shape))
            elif name.endswith(".weight"):
                self._add_matrix([f"{layer}.weight" for layer in block_of[name]], known)
            else:
                self._add_vector([f"{layer}.bias" for layer in block_of[name]], known)
        self.places = [self._by_name[name] for name in known]
        self.parameters = sum(prod(place.shape) for place in self.places)

    @property
    def names(self) -> list[str]:
        return [place.name for place in self.places]

    def _add_matrix(self, names: Sequence[str], known: Mapping[str, tuple[int, ...]]) -> None:
        """[out_i, in] weights as columns of one [in, sum out_i] matrix."""
        width = sum(known[name][0] for name in names)
        self._add([(name, known[name], (1, width)) for name in names], width * known[names[0]][1])

    def _add_vector(self, names: Sequence[str], known: Mapping[str, tuple[int, ...]]) -> None:
        """Biases one after the other."""
        self._add([(name, known[name], (1,)) for name in names], sum(known[name][0] for name in names))

    def _add(self, members: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], length: int) -> None:
        start = first = -(-self.size // ALIGNMENT) * ALIGNMENT
        for name, shape, strides in members:
            self._by_name[name] = TensorSpec(name, shape, strides, start, first, first + length)
            start += shape[0] if len(members) > 1 else 0
        self.size = -(-(first + length) // ALIGNMENT) * ALIGNMENT

    def place(self, name: str) -> TensorSpec:
        return self._by_name[name]

    def view(self, vector: Tensor, name: str) -> Tensor:
        """One parameter as a view of a flat vector of shape (P,); writing to it writes to the vector."""
        place = self._by_name[name]
        return vector.as_strided(place.shape, place.strides, vector.storage_offset() + place.start)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """All parameters as views of a flat vector of shape (P,)."""
        return {place.name: self.view(vector, place.name) for place in self.places}

    def block(self, vector: Tensor, layers: Sequence[str], part: str) -> Tensor:
        """The weights [in, sum out] or biases [sum out] of a block of linear layers, as one view of (P,)."""
        first = self._by_name[f"{layers[0]}.{part}"]
        stretch = vector[first.block_start : first.block_stop]
        return stretch if part == "bias" else stretch.view(first.shape[1], first.strides[1])

    def describe(self) -> list[tuple[str, tuple[int, ...], int, tuple[int, ...]]]:
        """Name, shape, start and strides of each parameter: what two layouts must share to be the same."""
        return [(place.name, place.shape, place.start, place.strides) for place in self.places]

    @property
    def digest(self) -> str:
        """A hash of `describe`, in hex: vectors of two layouts mix only if it is the same."""
        return hashlib.sha256(repr(self.describe()).encode()).hexdigest()


PARTS = ("weight", "bias")


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
