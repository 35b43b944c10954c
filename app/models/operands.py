"""The matrix work of a forward pass, behind one seam: weights that embed, multiply and normalise.

`FixedOperands` weights are one vector for all tokens: a member or a finished blend. `MixedOperands` weights are another
blend for every token, and nothing is built for them. Embeddings, linear layers and norms are linear in their
parameters, so

    f(x; sum_m w_m theta_m) = sum_m w_m f(x; theta_m)

holds for each of them: every member runs it on the same input, and the outputs are mixed token by token. That is
exact for any number of different blends in one batch, and costs as many products as members take part. (It holds
operation by operation, not for the whole network: this is no ensemble.)

Shapes: N tokens, M members, (in, out) a block of linear layers, P weights in a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from app.weights.arena import Partial
from app.weights.layout import Layout

Block = tuple[str, ...]


class Operands(Protocol):
    """What a forward pass asks of its weights."""

    def embed(self, table: str, index: Tensor) -> Tensor:
        """Rows of an embedding table, (N, width), for indices (N,)."""

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        """activation(x W + b), or x W + b + add: (N, out) from x (N, in)."""

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        """LayerNorm over the last dimension of x (N, width)."""

    def at(self, index: Tensor) -> Operands:
        """The weights of some of the tokens, in that order."""


class FixedOperands:
    """One vector (P,) for all tokens."""

    def __init__(self, layout: Layout, vector: Tensor) -> None:
        self.vector = vector
        self._layout = layout

    @property
    def section(self) -> int:
        """What tells vectors apart: where they lie."""
        return self.vector.data_ptr()

    def start(self, parameter: str) -> int:
        """Where in the vector the block of a parameter starts."""
        return self._layout.place(parameter).block_start

    def embed(self, table: str, index: Tensor) -> Tensor:
        return F.embedding(index, self._layout.view(self.vector, table))

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        weight, bias = (self._layout.block(self.vector, block, part) for part in ("weight", "bias"))
        return product(x, weight, bias, activation, add)

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        scale, shift = (self._layout.view(self.vector, f"{name}.{part}") for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], scale, shift, epsilon)

    def at(self, index: Tensor) -> FixedOperands:
        return FirstTokenOperands(self._layout, self.vector)


class FirstTokenOperands(FixedOperands):
    """The same for the first token of each text: by plain products, because oneDNN compiles a kernel for every number
    of tokens and keeps it, and how many texts a batch has is another number each time."""

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        weight, bias = (self._layout.block(self.vector, block, part) for part in ("weight", "bias"))
        return plain_product(x, weight, bias, activation, add)


class MixedOperands:
    """For every token the share of each member of an arena, (N, M) in float32; each token's shares add up to 1."""

    def __init__(
        self,
        members: Sequence[FixedOperands],
        partials: Mapping[int, Partial],
        shares: Tensor,
        taking_part: Sequence[int],
    ) -> None:
        """`members` are the arena's rows, of which these numbers take part; `partials` by where they start."""
        self._members = members
        self._partials = partials
        self._shares = shares
        self._taking_part = taking_part

    def embed(self, table: str, index: Tensor) -> Tensor:
        return self._mix(*self._at(table), lambda member: member.embed(table, index))

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        parameter = f"{block[0]}.weight"
        numbers, shares = self._at(parameter)
        partial = self._partials.get(self._members[0].start(parameter))
        if partial is not None:
            # A head that only some members own is shared among those.
            shares = partial.among_owners(shares)
            numbers = self._owners(partial)
        out = self._mix(numbers, shares, lambda member: member.linear(block, x))
        if add is not None:
            out += add
        return ACTIVATIONS[activation](out) if activation else out

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        return self._mix(*self._at(f"{name}.weight"), lambda member: member.norm(name, x, epsilon))

    def at(self, index: Tensor) -> Operands:
        firsts = [member.at(index) for member in self._members]
        return MixedOperands(firsts, self._partials, self._shares[index], self._taking_part)

    def _owners(self, partial: Partial) -> Sequence[int]:
        """The owners that have a share in a stretch: those that take part, and if none does, all."""
        return [number for number in self._taking_part if partial.owners[number]] or partial.all_owners

    def _at(self, parameter: str) -> tuple[Sequence[int], Tensor]:
        """The members that take part in a parameter, and their shares (N, M)."""
        return self._taking_part, self._shares

    def _mix(self, numbers: Sequence[int], shares: Tensor, run: Callable[[FixedOperands], Tensor]) -> Tensor:
        """sum_m shares_m * run(member m), (N, width), over the members of these numbers. Half precision would round the
        shares (t = 0.37 would be 0.3691) and every partial sum: it is summed in float32 and rounded once."""
        first, *others = numbers
        out = run(self._members[first])
        if not others:
            return out
        mixed = out.float()
        if len(others) == 1:  # their shares add up to 1, and one pass mixes what they gave
            mixed.lerp_(run(self._members[others[0]]).float(), shares[:, others[0], None])
            return mixed.to(out.dtype)
        mixed *= shares[:, first, None]
        for number in others:
            mixed.addcmul_(run(self._members[number]).float(), shares[:, number, None])
        return mixed.to(out.dtype)


class RampedOperands(MixedOperands):
    """The same with shares that run from `first` (N, M) to `last` (N, M), by the depth of each parameter."""

    def __init__(
        self,
        members: Sequence[FixedOperands],
        partials: Mapping[int, Partial],
        first: Tensor,
        last: Tensor,
        depths: Mapping[str, float],
        taking_part: Sequence[int],
    ) -> None:
        super().__init__(members, partials, first, taking_part)
        self._last = last
        self._depths = depths
        self._by_depth: dict[float, Tensor] = {}

    def at(self, index: Tensor) -> Operands:
        members = [member.at(index) for member in self._members]
        return RampedOperands(
            members, self._partials, self._shares[index], self._last[index], self._depths, self._taking_part
        )

    def _owners(self, partial: Partial) -> Sequence[int]:
        """All of them: a ramp may have no share left at this depth, and then all owners count alike."""
        return partial.all_owners

    def _at(self, parameter: str) -> tuple[Sequence[int], Tensor]:
        depth = self._depths[parameter]
        if depth not in self._by_depth:
            self._by_depth[depth] = torch.lerp(self._shares, self._last, depth)
        return self._taking_part, self._by_depth[depth]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""oneDNN's product: it takes [in, out] weights as they lie, and is two to three times as fast as torch.addmm below a
hundred tokens. Its name has an underscore, so it is looked for and not relied on."""


def _by_onednn(x: Tensor) -> bool:
    return _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32


def product(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None = None, add: Tensor | None = None
) -> Tensor:
    """activation(x W + b), or x W + b + add, for x (N, in) and W (in, out)."""
    if _by_onednn(x):
        # The overloads are named: left to find the right one, torch prints every tensor into an error that nobody sees.
        if add is not None:
            return cast(Tensor, _ONEDNN.binary(x, add, weight.t(), bias, "add"))
        fused = activation or "none"
        return cast(Tensor, _ONEDNN.default(x, weight.t(), bias, fused, [], "none" if fused == "gelu" else ""))
    return plain_product(x, weight, bias, activation, add)


def plain_product(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None = None, add: Tensor | None = None
) -> Tensor:
    """The same by torch's own operators."""
    out = torch.addmm(bias, x, weight)
    if add is not None:
        out += add
    return ACTIVATIONS[activation](out) if activation else out
