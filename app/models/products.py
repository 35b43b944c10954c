"""The matrix work of a forward pass, behind one seam: weights that embed, multiply and normalise.

`Fixed` weights are one vector for all tokens: a member or a finished blend. `Mixed` weights are another
blend for every token, and nothing is built for them: a linear layer is linear in its weights, so

    x (sum_m w_m W_m) = sum_m (w_m x) W_m

is one product per member, exact for any number of different blends in one batch, and biases, norms and
embedding rows are mixed per token. That costs as many products as members take part.

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
Span = tuple[int, int, int]
"""A member, and the first and one past the last token in which it takes part."""


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
    """A weight of each member for every token, (N, M), over the members of an arena."""

    def __init__(self, arena: Arena, weights: Tensor) -> None:
        self._arena = arena
        self._layout = arena.layout
        self._weights = weights
        self._spans = _spans(weights)

    def embed(self, table: str, index: Tensor) -> Tensor:
        views = [self._layout.view(self._arena.rows[member], table) for member, _, _ in self._spans]
        mixed = torch.zeros(len(index), views[0].shape[1], dtype=views[0].dtype, device=index.device)
        for view, (member, start, stop) in zip(views, self._spans, strict=True):
            mixed[start:stop].addcmul_(F.embedding(index[start:stop], view), self._weights[start:stop, member, None])
        return mixed

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        weights, spans = self._weights_of(f"{block[0]}.weight")
        out = weights @ self._layout.block(self._arena.rows, block, "bias")
        if add is not None:
            out += add
        for member, start, stop in spans:
            part = x[start:stop] * weights[start:stop, member, None]
            out = accumulate(out, start, stop, part, self._layout.block(self._arena.rows[member], block, "weight"))
        return ACTIVATIONS[activation](out) if activation else out

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        scale, shift = (self._layout.rows_of(self._arena.rows, f"{name}.{part}") for part in ("weight", "bias"))
        plain = F.layer_norm(x, x.shape[-1:], eps=epsilon)
        return torch.addcmul(self._weights @ shift, plain, self._weights @ scale)

    def at(self, index: Tensor) -> Operands:
        return Mixed(self._arena, self._weights[index])

    def _weights_of(self, name: str) -> tuple[Tensor, list[Span]]:
        """The weights that hold for a parameter: a head that only some members own is shared among those."""
        start = self._layout.place(name).block_start
        for partial in self._arena.partials:
            if partial.start == start:
                weights = partial.among_owners(self._weights)
                return weights, _spans(weights)
        return self._weights, self._spans


def _spans(weights: Tensor) -> list[Span]:
    """For each member that takes part anywhere, from which token to which: outside it is not multiplied."""
    spans = []
    for member, taking_part in enumerate(weights.ne(0).T):
        tokens = taking_part.nonzero()
        if len(tokens):
            spans.append((member, int(tokens[0]), int(tokens[-1]) + 1))
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


def accumulate(out: Tensor, start: int, stop: int, x: Tensor, weight: Tensor) -> Tensor:
    """out with x W added to its rows from start to stop, for x (stop - start, in) and W (in, out)."""
    if not _by_onednn(x):
        out[start:stop].addmm_(x, weight)
        return out
    if (start, stop) == (0, len(out)):
        return cast(Tensor, _ONEDNN.binary(x, out, weight.t(), None, "add"))
    out[start:stop] += _ONEDNN.default(x, weight.t(), None, "none", [], "")
    return out
