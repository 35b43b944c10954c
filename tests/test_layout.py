from __future__ import annotations

import torch

from app.weights.layout import ALIGNMENT, Layout


def test_places_are_aligned_and_do_not_overlap() -> None:
    layout = Layout([("a", (3, 5)), ("b", ()), ("c", (16,)), ("d", (2,))])
    ends = [0, *(place.block_stop for place in layout.places)]
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


LINEAR = [
    (f"{name}.{part}", (width, 3) if part == "weight" else (width,))
    for name, width in (("q", 4), ("k", 4), ("v", 2))
    for part in ("weight", "bias")
]


def test_a_block_is_one_matrix_of_which_each_weight_is_a_view() -> None:
    layout = Layout([("before", (5,)), *LINEAR, ("after", (5,))], blocks=[("q", "k", "v")])
    vector = torch.arange(layout.size, dtype=torch.float32)
    views = layout.views(vector)
    joined = torch.cat([views[f"{name}.weight"] for name in "qkv"])
    assert torch.equal(layout.block(vector, ("q", "k", "v"), "weight"), joined.T)
    assert layout.block(vector, ("q", "k", "v"), "weight").is_contiguous()
    assert torch.equal(layout.block(vector, ("q", "k", "v"), "bias"), torch.cat([views[f"{n}.bias"] for n in "qkv"]))
    elements = torch.cat([view.flatten() for view in views.values()]).tolist()
    assert len(set(elements)) == len(elements) == layout.parameters == 5 + 30 + 10 + 5


def test_views_of_a_row_are_in_that_row() -> None:
    layout = Layout(LINEAR, blocks=[("q", "k", "v")])
    rows = torch.stack([torch.zeros(layout.size), torch.ones(layout.size)])
    assert all((view == 1).all() for view in layout.views(rows[1]).values())
    assert (layout.block(rows[1], ("q", "k", "v"), "weight") == 1).all()
