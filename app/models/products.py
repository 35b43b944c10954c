"""The matrix work of a forward pass, behind one seam: weights that embed, multiply and normalise.

`Fixed` weights are one vector for all tokens: a member or a finished blend. `Mixed` weights are another blend for
every token, and nothing is built for them. Embeddings, linear layers and norms are linear in their parameters, so

    f(x; sum_m w_m theta_m) = sum_m w_m f(x; theta_m)

holds for each of them: every member runs it on the same input, and the outputs are mixed token by token. That is
exact for any number of different blends in one batch, and costs as many products as members take part. (It holds
operation by operation, not for the whole network: this is no ensemble.)

Shapes: N tokens, M members, (in, out) a block of linear layers, P weights in a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from app.weights.arena import Arena
from app.weights.layout import Layout

Block = Sequence[str]
Span = tuple[int, slice]
"""A member, and the tokens in which it takes part."""


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


class Fixed:
    """One vector (P,) for all tokens."""

    def __init__(self, layout: Layout, vector: Tensor) -> None:
        self._layout = layout
        self._vector = vector

    def embed(self, table: str, index: Tensor) -> Tensor:
        return F.embedding(index, self._layout.view(self._vector, table))

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        weight = self._layout.block(self._vector, block, "weight")
        bias = self._layout.block(self._vector, block, "bias")
        return product(x, weight, bias, activation, add)

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        scale = self._layout.view(self._vector, f"{name}.weight")
        return F.layer_norm(x, x.shape[-1:], scale, self._layout.view(self._vector, f"{name}.bias"), epsilon)

    def at(self, index: Tensor) -> Operands:
        return self


class Mixed:
    """A weight of each member for every token, (N, M), over the members of an arena; each token's add up to 1."""

    def __init__(self, arena: Arena, weights: Tensor) -> None:
        self._arena = arena
        self._members = [Fixed(arena.layout, row) for row in arena.rows]
        self._weights = weights
        self._spans = _spans(weights)

    def embed(self, table: str, index: Tensor) -> Tensor:
        return self._mix(lambda member, part: member.embed(table, index[part]))

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        out = self._mix(lambda member, part: member.linear(block, x[part]), f"{block[0]}.weight")
        if add is not None:
            out += add
        return ACTIVATIONS[activation](out) if activation else out

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        return self._mix(lambda member, part: member.norm(name, x[part], epsilon))

    def at(self, index: Tensor) -> Operands:
        return Mixed(self._arena, self._weights[index])

    def _mix(self, run: Callable[[Fixed, slice], Tensor], parameter: str | None = None) -> Tensor:
        """sum_m w_m run(member m), each member run on the tokens that it takes part in: (N, width)."""
        weights, spans = self._weights_of(parameter) if parameter else (self._weights, self._spans)
        (first, part), *others = spans
        out = run(self._members[first], part)
        if len(others) == 1 and part == others[0][1]:
            # Two members everywhere: their weights add up to 1, and one pass mixes what they gave.
            other, _ = others[0]
            return out.lerp_(run(self._members[other], part), weights[:, other, None])
        mixed = torch.zeros(len(weights), out.shape[1], dtype=out.dtype, device=out.device)
        torch.mul(out, weights[part, first, None], out=mixed[part])
        for other, part in others:
            mixed[part].addcmul_(run(self._members[other], part), weights[part, other, None])
        return mixed

    def _weights_of(self, parameter: str) -> tuple[Tensor, list[Span]]:
        """The weights that hold for a parameter: a head that only some members own is shared among those."""
        start = self._arena.layout.place(parameter).block_start
        for partial in self._arena.partials:
            if partial.start == start:
                weights = partial.among_owners(self._weights)
                return weights, _spans(weights)
        return self._weights, self._spans


def _spans(weights: Tensor) -> list[Span]:
    """The members that take part anywhere, each with the tokens outside of which it does not."""
    spans = []
    for member, taking_part in enumerate(weights.ne(0).T):
        tokens = taking_part.nonzero()
        if len(tokens):
            spans.append((member, slice(int(tokens[0]), int(tokens[-1]) + 1)))
    return spans


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""oneDNN's product: it takes [in, out] weights as they lie, and is several times faster than torch.addmm below a
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
    out = torch.addmm(bias, x, weight)
    if add is not None:
        out += add
    return ACTIVATIONS[activation](out) if activation else out
