"""Ways to make theta(t) for t = 0.4 from a base and one variant."""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.models.bank import Bank
from app.weights.methods import METHODS

COPY = "plain copy of one row"
OURS = "ours: one pass into a warm slot"
T = 0.4


def ways(bank: Bank) -> dict[str, tuple[Callable[[], None], int]]:
    """The copy, our build into a warm slot, and loops over a state_dict; each with the rows that it must move at least:
    a copy reads one and writes one, a blend reads two and writes one."""
    arena = bank.arena
    base, variant = arena["base"], arena["finance"]
    copied, slot = arena.new_slots(2).rows
    states = [{n: p.clone() for n, p in arena.layout.views(row).items()} for row in (base, variant)]

    def copy() -> None:
        copied.copy_(variant)

    def ours() -> None:
        METHODS["linear"](arena, {"base": 1 - T, "finance": T}, slot)

    def loop() -> None:
        blended = {name: (1 - T) * states[0][name] + T * states[1][name] for name in states[0]}
        assert len(blended) == len(states[0])

    def lerp_loop() -> None:
        blended = {name: torch.lerp(states[0][name], states[1][name], T) for name in states[0]}
        assert len(blended) == len(states[0])

    return {
        COPY: (copy, 2),
        OURS: (ours, 3),
        "loop of lerp": (lerp_loop, 3),
        "loop of (1-t)a + tb": (loop, 3),
    }
