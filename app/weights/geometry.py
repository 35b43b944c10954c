"""How far apart the members are: lengths of the deltas, and the angles between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements per step: deltas are formed chunk by chunk and never stored, (V, CHUNK) at a time."""


def gram(rows: Tensor) -> Tensor:
    """Inner products of the deltas, (V, V) in float64, from the rows (1 + V, P) of an arena."""
    products = torch.zeros(len(rows) - 1, len(rows) - 1, dtype=torch.float64)
    for start in range(0, rows.shape[1], CHUNK):
        part = rows[:, start : start + CHUNK].double()
        deltas = part[1:] - part[0]
        products += (deltas @ deltas.T).cpu()
    return products


def products_of(norms: Sequence[float], angles: Sequence[Sequence[float]]) -> list[list[float]]:
    """Inner products of the deltas, (V, V), from their lengths (V) and the angles between them in degrees (V, V)."""
    return [
        [a * b * math.cos(math.radians(angle)) for b, angle in zip(norms, row, strict=True)]
        for a, row in zip(norms, angles, strict=True)
    ]


def against_base(rows: Tensor) -> tuple[float, Tensor]:
    """The squared length of the base, and its inner product with each delta, (V,) in float64."""
    length, products = 0.0, torch.zeros(len(rows) - 1, dtype=torch.float64)
    for start in range(0, rows.shape[1], CHUNK):
        part = rows[:, start : start + CHUNK].double()
        length += float(part[0] @ part[0])
        products += ((part[1:] - part[0]) @ part[0]).cpu()
    return length, products


def norms(products: Tensor) -> Tensor:
    """Euclidean length of each delta, (V,)."""
    return products.diagonal().clamp(min=0).sqrt()


def angles(products: Tensor) -> Tensor:
    """Angles between deltas in degrees, (V, V): 0 the same direction, 90 nothing in common.

    The angle with a delta of length 0 is reported as 90.
    """
    lengths = norms(products)
    scale = lengths[:, None] * lengths[None, :]
    cosines = torch.where(scale > 0, products / scale.clamp(min=1e-300), 0.0)
    degrees = torch.rad2deg(torch.arccos(cosines.clamp(-1, 1)))
    degrees[range(len(lengths)), range(len(lengths))] = 0.0
    return degrees
