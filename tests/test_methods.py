from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.weights.arena import Arena
from app.weights.layout import Layout
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook

LAYOUT = Layout([("encoder", (7, 5)), ("bias", (3,)), ("head", (2, 4))])


@pytest.fixture
def arena() -> Arena:
    torch.manual_seed(0)
    made = Arena(LAYOUT, ["a", "b", "c"], torch.device("cpu"))
    for name in made.names:
        made.add(name, {place.name: torch.randn(place.shape) for place in LAYOUT.places})
    return made


def blend(arena: Arena, recipe: str, method: str = "linear") -> Tensor:
    out = torch.full((LAYOUT.size,), torch.nan)
    METHODS[method](arena, Cookbook(arena.variants).read(recipe).weights, out)
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("member", ["base", "a", "b", "c"])
def test_every_method_gives_the_members_bit_for_bit_at_the_ends(arena: Arena, method: str, member: str) -> None:
    assert torch.equal(blend(arena, member, method), arena[member])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("a@0.4", {"base": 0.6, "a": 0.4}),
        ("a@-0.5", {"base": 1.5, "a": -0.5}),
        ("a@2", {"base": -1.0, "a": 2.0}),
        ("a..b@0.25", {"a": 0.75, "b": 0.25}),
        ("a@0.3+b@0.2", {"base": 0.5, "a": 0.3, "b": 0.2}),
        ("a@0.3+b@0.2+c@0.5", {"a": 0.3, "b": 0.2, "c": 0.5}),
        ("a+b+c", {"base": -2.0, "a": 1.0, "b": 1.0, "c": 1.0}),
    ],
)
def test_linear_is_the_weighted_sum_of_members(arena: Arena, recipe: str, expected: dict[str, float]) -> None:
    exact = sum(weight * arena[name].double() for name, weight in expected.items())
    assert isinstance(exact, Tensor)
    torch.testing.assert_close(blend(arena, recipe).double(), exact, rtol=0, atol=1e-6)


def test_a_blend_is_written_into_the_slot_that_is_given(arena: Arena) -> None:
    slot = arena.new_vector()
    place = slot.data_ptr()
    METHODS["linear"](arena, {"base": 0.6, "a": 0.4}, slot)
    assert slot.data_ptr() == place
    torch.testing.assert_close(
        LAYOUT.views(slot)["head"], torch.lerp(*(LAYOUT.views(arena[n])["head"] for n in ("base", "a")), 0.4)
    )


@pytest.fixture
def headless() -> Arena:
    """A base and a variant `c` without the head that `a` and `b` have."""
    torch.manual_seed(1)
    made = Arena(LAYOUT, ["a", "b", "c"], torch.device("cpu"))
    tensors = {name: {p.name: torch.randn(p.shape) for p in LAYOUT.places} for name in made.names}
    for name in ("base", "c"):
        del tensors[name]["head"]
    for name in made.names:
        made.add(name, tensors[name])
    made.share({p.name: frozenset(n for n in made.names if p.name in tensors[n]) for p in LAYOUT.places})
    return made


@pytest.mark.parametrize(
    ("recipe", "shares"),
    [
        ("base", {"a": 0.5, "b": 0.5}),
        ("a@0.1", {"a": 1.0}),
        ("a@1", {"a": 1.0}),
        ("c@0.7", {"a": 0.5, "b": 0.5}),
        ("a@0.3+b@0.1", {"a": 0.75, "b": 0.25}),
        ("a@1+b@-1", {"a": 0.5, "b": 0.5}),
    ],
)
def test_a_head_that_some_lack_is_blended_among_those_that_have_it(
    headless: Arena, recipe: str, shares: dict[str, float]
) -> None:
    heads = {name: LAYOUT.views(headless[name])["head"] for name in headless.names}
    expected = sum(share * heads[name] for name, share in shares.items())
    torch.testing.assert_close(LAYOUT.views(blend(headless, recipe))["head"], expected)


def test_what_all_have_is_blended_as_ever_beside_a_partial_head(headless: Arena) -> None:
    views = {name: LAYOUT.views(headless[name])["encoder"] for name in headless.names}
    torch.testing.assert_close(
        LAYOUT.views(blend(headless, "a@0.1"))["encoder"], 0.9 * views["base"] + 0.1 * views["a"]
    )
