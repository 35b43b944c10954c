"""Merge methods: METHODS names each one, and has all that recipes, keys and serving must know of it.

A new method is a function and a line in METHODS: recipes then read its name and its parameters, canonical text and key
hold them, and serving mixes rows by it only where it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.weights.arena import Arena, Share, is_ramp
from app.weights.layer_depth import Stretch, stretches

PIECE = 1 << 20
"""Elements that are widened to float32 at a time."""


@dataclass(frozen=True)
class Parameter:
    """A number that a recipe may name for its method, within bounds. It is called neither `temperature` nor as a field
    of a recipe in JSON."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Method:
    """One way to merge members.

    `build` takes the arena, the weight of each member (they add up to 1), the slot (P,) that it fills, and its
    parameters by name. `is_linear`: the blend is the weighted sum of the members, so rows may be mixed from them.
    """

    build: Callable[..., None]
    is_linear: bool
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __call__(self, arena: Arena, weights: Mapping[str, Share], out: Tensor, **parameters: float) -> None:
        self.build(arena, weights, out, **parameters)


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
    "linear": Method(linear, is_linear=True),
}
