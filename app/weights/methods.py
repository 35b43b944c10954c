"""Merge methods: each writes the blend that a recipe asks for into a slot, and METHODS names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from app.weights.arena import Arena, Share, is_ramp
from app.weights.layer_depth import Stretch, stretches

PIECE = 1 << 20
"""Elements that are widened to float32 at a time."""

Method = Callable[[Arena, Mapping[str, Share], Tensor], None]
"""Takes the arena, the weight of each member (they add up to 1), and the slot (P,) that it fills."""


def linear(arena: Arena, weights: Mapping[str, Share], out: Tensor) -> None:
    """theta = sum w_i * theta_i, which is base + sum t_i * delta_i, in one pass over the rows; where the weights differ
    by layer, stretch by stretch."""
    whole = [Stretch(0, len(out), 0.0)]
    for stretch in stretches(arena.layout) if is_ramp(weights) else whole:
        w = arena.weights_of(weights, stretch.depth)
        part = slice(stretch.start, stretch.stop)
        _weighted_sum(arena.rows[:, part], w, out[part])
        for partial in arena.partials:
            if stretch.start <= partial.start < stretch.stop:
                own = slice(partial.start, partial.stop)
                _weighted_sum(arena.rows[:, own], partial.among_owners(w), out[own])


def _weighted_sum(rows: Tensor, weights: Tensor, out: Tensor) -> None:
    """out (P,) = sum of weights (M,) times rows (M, P)."""
    w = weights.tolist()
    members = [member for member in range(len(w)) if w[member]]
    if len(members) == 1:
        torch.mul(rows[members[0]], w[members[0]], out=out)
    elif len(members) == 2:
        # lerp is exact at both ends and reads each row once; base + t * delta is neither.
        torch.lerp(rows[members[0]], rows[members[1]], w[members[1]], out=out)
    elif rows.dtype == torch.float32:
        # One product reads every row once; a chain of additions would read `out` again for each member.
        torch.mv(rows.T, weights.to(rows), out=out)
    else:
        # Half precision would round the weights and every partial sum: add up in float32, a piece at a time.
        for start in range(0, len(out), PIECE):
            part = slice(start, start + PIECE)
            out[part] = weights.to(rows.device) @ rows[:, part].float()


METHODS: dict[str, Method] = {
    "linear": linear,
}
