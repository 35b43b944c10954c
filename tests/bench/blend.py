"""Ways to make theta(t) for t = 0.4 from a base and one variant."""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.models.bank import Bank
from app.weights.methods import METHODS

COPY = "plain copy of as many bytes"
T = 0.4


def ways(bank: Bank) -> dict[str, Callable[[], None]]:
    """The copy that nothing can beat, our build into a warm slot, and the loop over a state_dict."""
    arena = bank.arena
    base, variant = arena["base"], arena["finance"]
    copied, slot = arena.new_vector(), arena.new_vector()
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

    return {COPY: copy, "ours: one pass into a warm slot": ours, "loop of lerp": lerp_loop, "loop of (1-t)a + tb": loop}
