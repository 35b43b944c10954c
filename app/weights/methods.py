"""Merge methods: each writes the blend that a recipe asks for into a slot, and METHODS names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from app.weights.arena import Arena, Partial

Method = Callable[[Arena, Mapping[str, float], Tensor], None]
"""Takes the arena, the weight of each member (they add up to 1), and the slot (P,) that it fills."""


def linear(arena: Arena, weights: Mapping[str, float], out: Tensor) -> None:
    """theta = sum w_i * theta_i, which is base + sum t_i * delta_i, in one pass over the rows."""
    _weighted_sum(arena.rows, arena.names, weights, out)
    for partial in arena.partials:
        part = slice(partial.start, partial.stop)
        _weighted_sum(arena.rows[:, part], arena.names, _among_owners(partial, weights), out[part])


def _weighted_sum(rows: Tensor, names: tuple[str, ...], weights: Mapping[str, float], out: Tensor) -> None:
    members = [(rows[names.index(name)], weight) for name, weight in weights.items()]
    if len(members) == 1:
        out.copy_(members[0][0])
    elif len(members) == 2:
        # lerp is exact at both ends and reads each row once; base + t * delta is neither.
        (start, _), (end, t) = members
        torch.lerp(start, end, t, out=out)
    else:
        # One product reads every row once; a chain of additions would read `out` again for each member.
        w = torch.tensor([weights.get(name, 0.0) for name in names], dtype=rows.dtype, device=rows.device)
        torch.mv(rows.T, w, out=out)


def _among_owners(partial: Partial, weights: Mapping[str, float]) -> dict[str, float]:
    """How the owners of a partial stretch share it: as their weights do, made to add up to 1.

    Sizes count and not signs, or an extrapolation whose weights nearly cancel would blow the stretch up.
    Where no owner takes part (the base alone, without a head), all owners count alike.
    """
    sizes = {name: abs(weight) for name, weight in weights.items() if name in partial.owners}
    if not sizes:
        sizes = {name: 1.0 for name in sorted(partial.owners)}
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}


METHODS: dict[str, Method] = {
    "linear": linear,
}
