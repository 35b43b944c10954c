"""A forward pass without padding, for the Bert family.

All tokens of a batch lie side by side, (N, width), through every linear layer and norm; only attention looks
at texts, and texts of equal length share one call. Rows are sorted by length for that. Of the last layer only
the first token of each text is computed beyond keys and values, because only that one is classified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.models.architectures import Architecture, Layer
from app.models.products import Operands
from app.models.tokens import Row


@dataclass(frozen=True)
class Packed:
    """Token rows side by side: ids, positions and types (N,), where each text starts (B,), and the runs of texts
    of equal length, as (first token, texts, tokens each)."""

    ids: Tensor
    positions: Tensor
    types: Tensor
    starts: Tensor
    runs: list[tuple[int, int, int]]


def pack(rows: Sequence[Row], architecture: Architecture, reads_types: bool, device: torch.device) -> Packed:
    """Lay rows side by side, in the order given; rows of equal length should be neighbours."""
    ids: list[int] = []
    positions: list[int] = []
    types: list[int] = []
    starts: list[int] = []
    runs: list[tuple[int, int, int]] = []
    for row in rows:
        length = len(row)
        if runs and runs[-1][2] == length:
            first, texts, _ = runs[-1]
            runs[-1] = (first, texts + 1, length)
        else:
            runs.append((len(ids), 1, length))
        starts.append(len(ids))
        ids += row.ids
        positions += _positions(row, architecture)
        types += row.types if reads_types else [0] * length
    a, b, c, d = (torch.tensor(values, device=device) for values in (ids, positions, types, starts))
    return Packed(ids=a, positions=b, types=c, starts=d, runs=runs)


def _positions(row: Row, architecture: Architecture) -> Sequence[int]:
    first = architecture.first_position
    if architecture.padding is None or architecture.padding not in row.ids:
        return range(first, first + len(row))
    # Roberta counts only real tokens, and a text may spell out the padding token.
    positions, count = [], architecture.padding
    for token in row.ids:
        count += token != architecture.padding
        positions.append(count if token != architecture.padding else architecture.padding)
    return positions


def forward(architecture: Architecture, weights: Operands, batch: Packed) -> Tensor:
    """Logits (B, C) of a packed batch."""
    x = _embed(architecture, weights, batch)
    *before, last = architecture.layers
    for layer in before:
        x = _feed_forward(architecture, weights, layer, _attend(architecture, weights, layer, x, batch))
    firsts = weights.at(batch.starts)
    x = _feed_forward(architecture, firsts, last, _attend_first(architecture, weights, firsts, last, x, batch))
    for name, activation in architecture.head:
        x = firsts.linear((name,), x, activation)
    return x


def _embed(architecture: Architecture, weights: Operands, batch: Packed) -> Tensor:
    name = architecture.embeddings
    x = weights.embed(f"{name}.word_embeddings.weight", batch.ids)
    if architecture.types:
        x += weights.embed(f"{name}.token_type_embeddings.weight", batch.types)
    x += weights.embed(f"{name}.position_embeddings.weight", batch.positions)
    x = weights.norm(f"{name}.LayerNorm", x, architecture.epsilon)
    return weights.linear((architecture.project,), x) if architecture.project else x


def _attend(architecture: Architecture, weights: Operands, layer: Layer, x: Tensor, batch: Packed) -> Tensor:
    """Attention of every token, added to x and normalised: (N, width)."""
    qkv = weights.linear(layer.qkv, x)
    mixed = torch.empty_like(x)
    for start, texts, length in batch.runs:
        stop = start + texts * length
        q, k, v = _heads(qkv[start:stop], texts, length, architecture.heads)
        mixed[start:stop] = _joined(F.scaled_dot_product_attention(q, k, v))
    return weights.norm(layer.attention_norm, weights.linear((layer.out,), mixed, add=x), architecture.epsilon)


def _attend_first(
    architecture: Architecture, weights: Operands, firsts: Operands, layer: Layer, x: Tensor, batch: Packed
) -> Tensor:
    """Attention of the first token of every text alone: (B, width)."""
    qkv = weights.linear(layer.qkv, x)
    parts = []
    for start, texts, length in batch.runs:
        q, k, v = _heads(qkv[start : start + texts * length], texts, length, architecture.heads)
        parts.append(_joined(F.scaled_dot_product_attention(q[:, :, :1], k, v)))
    out = firsts.linear((layer.out,), torch.cat(parts), add=x[batch.starts])
    return firsts.norm(layer.attention_norm, out, architecture.epsilon)


def _heads(qkv: Tensor, texts: int, length: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (texts, heads, length, width per head)."""
    q, k, v = qkv.view(texts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return q, k, v


def _joined(attended: Tensor) -> Tensor:
    """(texts * length, width) from (texts, heads, length, width per head)."""
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _feed_forward(architecture: Architecture, weights: Operands, layer: Layer, x: Tensor) -> Tensor:
    inner = weights.linear((layer.up,), x, activation=architecture.activation)
    return weights.norm(layer.output_norm, weights.linear((layer.down,), inner, add=x), architecture.epsilon)
