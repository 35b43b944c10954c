from __future__ import annotations

import torch

from app.weights.layout import ALIGNMENT, Layout


def test_places_are_aligned_and_do_not_overlap() -> None:
    layout = Layout([("a", (3, 5)), ("b", ()), ("c", (16,)), ("d", (2,))])
    ends = [0, *(place.stop for place in layout.places)]
    for place, previous in zip(layout.places, ends, strict=False):
        assert place.start % ALIGNMENT == 0
        assert place.start >= previous
    assert layout.size % ALIGNMENT == 0 and layout.size >= ends[-1]
    assert layout.parameters == 15 + 1 + 16 + 2


def test_views_share_memory_with_the_vector() -> None:
    layout = Layout([("a", (2, 2)), ("b", (3,))])
    vector = torch.zeros(layout.size)
    layout.views(vector)["b"].copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert vector.sum() == 6
    vector[0] = 9
    assert layout.views(vector)["a"][0, 0] == 9
