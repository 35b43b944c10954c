"""Padding-free forward pass for the Bert family.

All tokens of a batch lie side by side, (N, width), through every linear layer and norm; attention alone tells texts
apart. On a CPU each run of texts of equal length is one attention call, without a padded token. On a GPU a call costs
more than padding, so all texts go through one call on a padded grid, with a mask. Of the last
layer only the first token of each text is computed beyond keys and values, because only that one is classified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.models.architectures import Architecture, EncoderLayer
from app.models.operands import Operands
from app.models.tokenizer import Row


class PackedTexts(Protocol):
    """Where texts lie among the N packed tokens, and what their tokens see of each other."""

    starts: Tensor
    """The first token of each text, (B,)."""

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention of every token, (N, width), from query, key and value side by side, (N, 3 * width)."""

    def attend_first(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention of the first token of every text alone, (B, width)."""


def texts_of(lengths: Sequence[int], device: torch.device) -> PackedTexts:
    """The way that suits the device; texts of equal length should be neighbours."""
    return Runs(lengths, device) if device.type == "cpu" else Grid(lengths, device)


class Runs:
    """Runs of texts of equal length, each as (first token, texts, tokens of each)."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self._runs: list[tuple[int, int, int]] = []
        starts, end = [], 0
        for length in lengths:
            if self._runs and self._runs[-1][2] == length:
                first, texts, _ = self._runs[-1]
                self._runs[-1] = (first, texts + 1, length)
            else:
                self._runs.append((end, 1, length))
            starts.append(end)
            end += length
        self.starts = torch.tensor(starts, device=device)

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        return torch.cat([_joined(F.scaled_dot_product_attention(q, k, v)) for q, k, v in self._parts(qkv, heads)])

    def attend_first(self, qkv: Tensor, heads: int) -> Tensor:
        parts = self._parts(qkv, heads)
        return torch.cat([_joined(F.scaled_dot_product_attention(q[:, :, :1], k, v)) for q, k, v in parts])

    def _parts(self, qkv: Tensor, heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [
            _heads(qkv[start : start + texts * length].view(texts, length, -1), heads)
            for start, texts, length in self._runs
        ]


@dataclass(frozen=True)
class _Cells:
    """A padded grid of B texts by L tokens: the token of each cell (B, L), whether it is one (B, 1, 1, L), and the
    cell of each token (N,)."""

    token: Tensor
    real: Tensor
    of_token: Tensor


class Grid:
    """All texts in one padded call."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        length = torch.tensor(lengths)  # worked out on the host: a GPU would be waited for to count the real cells
        starts = length.cumsum(0) - length
        offset = torch.arange(max(lengths))
        real = offset < length[:, None]  # (B, L)
        token = torch.where(real, starts[:, None] + offset, 0)
        of_token = real.flatten().nonzero()[:, 0]
        self.starts = starts.to(device)
        self._cells = _Cells(token.to(device), real[:, None, None].to(device), of_token.to(device))

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        q, k, v = _heads(qkv[self._cells.token], heads)
        return _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=self._cells.real))[self._cells.of_token]

    def attend_first(self, qkv: Tensor, heads: int) -> Tensor:
        q, k, v = _heads(qkv[self._cells.token], heads)
        return _joined(F.scaled_dot_product_attention(q[:, :, :1], k, v, attn_mask=self._cells.real))


class Board:
    """Texts that are all padded to L tokens, side by side: their tokens are the cells of a grid already."""

    def __init__(self, texts: int, length: int, real: Tensor) -> None:
        """`real` (B, L) says which tokens are no padding; of every text at least one."""
        self._shape, self._real = (texts, length), real[:, None, None]
        self.starts = torch.arange(0, texts * length, length, device=real.device)

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        q, k, v = _heads(qkv.view(*self._shape, -1), heads)
        return _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=self._real))

    def attend_first(self, qkv: Tensor, heads: int) -> Tensor:
        q, k, v = _heads(qkv.view(*self._shape, -1), heads)
        return _joined(F.scaled_dot_product_attention(q[:, :, :1], k, v, attn_mask=self._real))


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (texts, heads, length, width per head), from (texts, length, 3 * width)."""
    texts, length, _ = qkv.shape
    q, k, v = qkv.view(texts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return q, k, v


def _joined(attended: Tensor) -> Tensor:
    """(texts * length, width) from (texts, heads, length, width per head)."""
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class Packed:
    """Token rows side by side: ids, positions and types (N,), and where the texts lie."""

    ids: Tensor
    positions: Tensor
    types: Tensor
    texts: PackedTexts


def pack(rows: Sequence[Row], architecture: Architecture, reads_types: bool, device: torch.device) -> Packed:
    """Lay rows side by side, in the order given; rows of equal length should be neighbours."""
    a, b, c = _lines(rows, architecture, reads_types).to(device)
    return Packed(ids=a, positions=b, types=c, texts=texts_of([len(row) for row in rows], device))


def lay_out(rows: Sequence[Row], architecture: Architecture, reads_types: bool, texts: int, length: int) -> Tensor:
    """Rows padded with zeros to a grid of texts by tokens: ids, positions, types, and 1 for each cell that is no
    padding, (4, texts * length). Of texts that are not there the first cell counts, because attention needs one."""
    grid = np.zeros((4, texts, length), dtype=np.int64)
    for cells, row in zip(grid.transpose(1, 0, 2), rows, strict=False):
        end = len(row)
        cells[0, :end] = row.ids
        cells[1, :end] = _positions(row, architecture)
        if reads_types:
            cells[2, :end] = row.types
        cells[3, :end] = 1
    grid[3, len(rows) :, 0] = 1
    return torch.from_numpy(grid).view(4, -1)


def _lines(rows: Sequence[Row], architecture: Architecture, reads_types: bool) -> Tensor:
    """Ids, positions and types of rows side by side, (3, N)."""
    ids: list[int] = []
    positions: list[int] = []
    types: list[int] = []
    for row in rows:
        ids += row.ids
        positions += _positions(row, architecture)
        types += row.types if reads_types else [0] * len(row)
    return torch.from_numpy(np.array([ids, positions, types], dtype=np.int64))  # five times as fast as torch.tensor


def on_board(cells: Tensor, texts: int, length: int) -> Packed:
    """A batch from what `lay_out` gives."""
    ids, positions, types, real = cells
    return Packed(ids, positions, types, Board(texts, length, real.view(texts, length) > 0))


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
    firsts = weights.at(batch.texts.starts)
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


def _attend(architecture: Architecture, weights: Operands, layer: EncoderLayer, x: Tensor, batch: Packed) -> Tensor:
    """Attention of every token, added to x and normalised: (N, width)."""
    mixed = batch.texts.attend(weights.linear(layer.qkv, x), architecture.heads)
    return weights.norm(layer.attention_norm, weights.linear((layer.out,), mixed, add=x), architecture.epsilon)


def _attend_first(
    architecture: Architecture, weights: Operands, firsts: Operands, layer: EncoderLayer, x: Tensor, batch: Packed
) -> Tensor:
    """Attention of the first token of every text alone: (B, width)."""
    mixed = batch.texts.attend_first(weights.linear(layer.qkv, x), architecture.heads)
    out = firsts.linear((layer.out,), mixed, add=x[batch.texts.starts])
    return firsts.norm(layer.attention_norm, out, architecture.epsilon)


def _feed_forward(architecture: Architecture, weights: Operands, layer: EncoderLayer, x: Tensor) -> Tensor:
    inner = weights.linear((layer.up,), x, activation=architecture.activation)
    return weights.norm(layer.output_norm, weights.linear((layer.down,), inner, add=x), architecture.epsilon)
