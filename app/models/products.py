"""The matrix work of a forward pass, behind one seam: weights that embed, multiply and normalise.

`Fixed` weights are one vector for all tokens: a member or a finished blend. `Mixed` weights are another blend for
every token, and nothing is built for them. Embeddings, linear layers and norms are linear in their parameters, so

    f(x; sum_m w_m theta_m) = sum_m w_m f(x; theta_m)

holds for each of them: every member runs it on the same input, and the outputs are mixed token by token. That is
exact for any number of different blends in one batch, and costs as many products as members take part. Rows on finished
blends ride in the same batch and cost one product each. (It holds
operation by operation, not for the whole network: this is no ensemble.)

Shapes: N tokens, M members, (in, out) a block of linear layers, P weights in a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from app.weights.arena import Arena
from app.weights.layout import Layout

Block = Sequence[str]


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
    """A weight of each member for every token, (N, M + S); each token's add up to 1.

    The members are those of an arena and, beside them, finished blends (`slots`, S of them). A token on a finished
    blend has weight 1 there and 0 elsewhere, and is not multiplied with anything else.
    """

    def __init__(self, arena: Arena, slots: Sequence[Tensor], weights: Tensor) -> None:
        self._arena = arena
        self._slots = slots
        self._members = [Fixed(arena.layout, vector) for vector in (*arena.rows, *slots)]
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
        return Mixed(self._arena, self._slots, self._weights[index])

    def _mix(self, run: Callable[[Fixed, slice], Tensor], parameter: str | None = None) -> Tensor:
        """sum_m w_m run(member m), each member run on the tokens that it takes part in: (N, width)."""
        weights, spans = self._weights_of(parameter) if parameter else (self._weights, self._spans)
        first, *others = spans
        out = run(self._members[first.member], first.tokens)
        if len(others) == 1 and first.tokens == others[0].tokens:
            # Two members everywhere: their weights add up to 1, and one pass mixes what they gave.
            other = others[0].member
            return out.lerp_(run(self._members[other], first.tokens), weights[:, other, None])
        mixed = torch.zeros(len(weights), out.shape[1], dtype=out.dtype, device=out.device)
        _add(mixed, out, first, weights)
        for span in others:
            _add(mixed, run(self._members[span.member], span.tokens), span, weights)
        return mixed

    def _weights_of(self, parameter: str) -> tuple[Tensor, list[Span]]:
        """The weights that hold for a parameter: a head that only some members own is shared among those."""
        start = self._arena.layout.place(parameter).block_start
        for partial in self._arena.partials:
            if partial.start == start:
                members = len(self._arena.names)
                ours = self._weights[:, :members]
                shared = partial.among_owners(ours) * ours.any(dim=1, keepdim=True)
                weights = torch.cat([shared, self._weights[:, members:]], dim=1)
                return weights, _spans(weights)
        return self._weights, self._spans


@dataclass(frozen=True)
class Span:
    """A member and the tokens outside of which it takes no part; `alone` if no other member takes part in them."""

    member: int
    tokens: slice
    alone: bool


def _spans(weights: Tensor) -> list[Span]:
    """The spans of all members that take part anywhere."""
    taking_part = weights.ne(0)
    alone = taking_part.sum(dim=1).eq(1)
    spans = []
    for member in taking_part.any(dim=0).nonzero()[:, 0].tolist():
        tokens = taking_part[:, member].nonzero()
        part = slice(int(tokens[0]), int(tokens[-1]) + 1)
        spans.append(Span(member, part, bool((alone & taking_part[:, member])[part].all())))
    return spans


def _add(mixed: Tensor, out: Tensor, span: Span, weights: Tensor) -> None:
    """Add what a member gave to the mix of all."""
    if span.alone:
        mixed[span.tokens] = out  # its weight is 1
    else:
        mixed[span.tokens].addcmul_(out, weights[span.tokens, span.member, None])


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
    out = torch.addmm(bias, x, weight)
    if add is not None:
        out += add
    return ACTIVATIONS[activation](out) if activation else out
