"""int8 products for CPUs that multiply bytes (VNNI): four times the float32 products, for a little accuracy.

The weights of a linear layer are quantised per output channel and its input per token, symmetrically both, so that an
answer does not depend on the company of its text. Embeddings, norms, attention and the head stay float32. Quantising
the weights of a vector takes as long as many tokens do, so only those that have run that many get a copy in int8.

Which weights lie in a slot is told by a name of its contents: under another one the copy is made anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.models.operands import ACTIVATIONS, Block, FixedOperands
from app.weights.layout import Layout

WORTH_TOKENS = 1_500
"""Tokens after which a vector is quantised, which takes a MiniLM 40 ms: int8 saves about 40 us a token."""

ZERO = 128
"""The byte that stands for zero: the product takes its input as unsigned bytes."""

_ONEDNN: Any = getattr(torch.ops.onednn, "qlinear_pointwise", None)


def int8_is_fast() -> bool:
    """Whether this processor multiplies bytes, and torch was built to let it."""
    return _ONEDNN is not None and bool(torch.cpu._is_vnni_supported())


@dataclass(frozen=True)
class Int8Block:
    """A block of linear layers: bytes as oneDNN wants them, a scale for each of the `out` channels, the bias (out,)."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Int8Block:
        """From a weight (in, out) and a bias (out,)."""
        scales = (weight.abs().amax(dim=0) / 127).clamp(min=1e-12)
        bytes_ = (weight / scales).round_().to(torch.int8).t().contiguous()  # (out, in)
        packed = torch.ops.onednn.qlinear_prepack(bytes_, None)
        return cls(packed, scales, torch.zeros(len(bias), dtype=torch.int32), bias)

    def product(self, x: Tensor, activation: str | None, add: Tensor | None) -> Tensor:
        """activation(x W + b), or x W + b + add, (N, out) from x (N, in)."""
        scales = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(127)
        bytes_ = (x / scales).add_(ZERO + 0.5).to(torch.uint8)
        nothing_fused: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
        products = _ONEDNN.default(bytes_, 1.0, ZERO, self.packed, self.scales, self.zeros, *nothing_fused)
        out = torch.addcmul(self.bias, products, scales)
        if add is not None:
            out += add
        return ACTIVATIONS[activation](out) if activation else out


class Quantised(FixedOperands):
    """A vector (P,) whose large products run in int8. What lies in the vector must not change meanwhile."""

    def __init__(self, layout: Layout, vector: Tensor, blocks: Iterable[Block]) -> None:
        super().__init__(layout, vector)
        self._int8 = {
            block: Int8Block.of(*(layout.block(vector, block, p) for p in ("weight", "bias"))) for block in blocks
        }

    def linear(self, block: Block, x: Tensor, activation: str | None = None, add: Tensor | None = None) -> Tensor:
        int8 = self._int8.get(block)
        if int8 is None:
            return super().linear(block, x, activation, add)
        return int8.product(x, activation, add)


class Int8Copies:
    """The copies in int8 of the vectors that are hot, at most `room` of them; the one unused longest goes first."""

    def __init__(self, layout: Layout, blocks: Iterable[Block], room: int) -> None:
        self._layout = layout
        self._blocks = list(blocks)
        self._room = room
        self._tokens: dict[int, tuple[str, int]] = {}
        self._copies: OrderedDict[int, tuple[str, Quantised]] = OrderedDict()

    def clear(self) -> None:
        """Let all copies go, for their memory; who is hot gets one anew."""
        self._tokens.clear()
        self._copies.clear()

    def of(self, fixed: FixedOperands, contents: str, tokens: int) -> FixedOperands:
        """What is to run so many tokens on a vector that holds these contents: its copy, or still itself."""
        place = fixed.section
        known, copy = self._copies.get(place, ("", None))
        if copy is not None and known == contents:
            self._copies.move_to_end(place)
            return copy
        seen_of, seen = self._tokens.get(place, (contents, 0))
        seen = tokens + (seen if seen_of == contents else 0)
        self._tokens[place] = (contents, seen)
        if seen < WORTH_TOKENS:
            return fixed
        made = Quantised(self._layout, fixed.vector, self._blocks)
        self._copies[place] = (contents, made)
        self._copies.move_to_end(place)
        if len(self._copies) > self._room:
            gone, _ = self._copies.popitem(last=False)
            del self._tokens[gone]  # to be worth it anew: else more hot vectors than room would cost a copy each pass
        return made
