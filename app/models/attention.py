"""Attention over packed tokens, which is the one place where a forward pass looks at texts.

On a CPU each run of texts of equal length is one call, without a padded token. On a GPU a call costs more than padding
does, so all texts go through one call on a padded grid, with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
