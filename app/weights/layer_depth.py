"""How deep in the network a parameter lies: 0 in the first layer, 1 in the last, evenly spaced between.

What comes before the layers (embeddings, and norms that belong to them) has depth 0, what comes after (a pooler, a
head) depth 1. Read from the names, which follow one custom in every architecture that is served: `.layer.3.`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.weights.layout import Layout

LAYER = re.compile(r"\.layers?\.(\d+)\.")
BEFORE = re.compile(r"embed|\.encoder\.")
"""Outside the layers: names of what is before them."""
ONLY = 0.5
"""The depth of a layer that is the only one: the middle of the ramp."""


@dataclass(frozen=True)
class Stretch:
    """Elements of the flat vector whose parameters lie equally deep."""

    start: int
    stop: int
    depth: float


def depths(layout: Layout) -> dict[str, float]:
    """The depth of every parameter, by name."""
    numbers = {name: int(found[1]) for name in layout.names if (found := LAYER.search(name))}
    last = max(numbers.values(), default=0)

    def depth(name: str) -> float:
        if name in numbers:
            return numbers[name] / last if last else ONLY
        return 0.0 if BEFORE.search(name) else 1.0

    return {name: depth(name) for name in layout.names}


def stretches(layout: Layout) -> list[Stretch]:
    """The whole vector, in as few stretches as the depths allow. Gaps between parameters are with what precedes."""
    depth = depths(layout)
    found: list[Stretch] = []
    for place in sorted(layout.places, key=lambda place: place.block_start):
        start = found.pop().start if found and found[-1].depth == depth[place.name] else place.block_start
        if found and found[-1].stop < start:
            found[-1] = Stretch(found[-1].start, start, found[-1].depth)
        found.append(Stretch(start, place.block_stop, depth[place.name]))
    found[-1] = Stretch(found[-1].start, layout.size, found[-1].depth)
    return found
