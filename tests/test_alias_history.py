from __future__ import annotations

import json

import pytest

from app.errors import AliasConflict
from app.serving.alias_history import VERSIONS, Alias


def moved(*recipes: str | None) -> Alias:
    alias = Alias("prod")
    for recipe in recipes:
        alias = alias.moved(recipe, "me")
    return alias


def test_every_move_is_a_version_and_a_move_to_where_it_is_none() -> None:
    alias = moved("base", "angry@1", None, "base")
    assert [(v.number, v.recipe) for v in alias.versions] == [(1, "base"), (2, "angry@1"), (3, None), (4, "base")]
    assert (alias.version, alias.recipe, alias.versions[-1].by) == (4, "base", "me")
    assert alias.moved("base", None) is alias
    assert (Alias("prod").version, Alias("prod").recipe) == (0, None)


def test_steps_back_walk_back_and_count_on() -> None:
    alias = moved("a", "b", "c")
    seen = []
    for _ in range(2):
        alias = alias.stepped_back("you")
        seen.append((alias.version, alias.recipe, alias.versions[-1].by))
    assert seen == [(4, "b", "you"), (5, "a", "you")]
    with pytest.raises(AliasConflict, match="no recipe before version 1"):
        alias.stepped_back(None)
    alias = alias.moved("d", None).stepped_back(None)
    assert (alias.version, alias.recipe) == (7, "a")


def test_a_step_back_passes_deletions_and_undoes_one() -> None:
    assert moved("a", None).stepped_back(None).recipe == "a"
    assert moved("a", None, "b").stepped_back(None).recipe == "a"
    with pytest.raises(AliasConflict):
        moved("a").stepped_back(None)


def test_only_the_last_versions_are_remembered() -> None:
    alias = moved(*(f"angry@{i / 100}" for i in range(60)))
    assert [v.number for v in alias.versions] == list(range(61 - VERSIONS, 61))
    for step in range(VERSIONS // 2):  # every step is a version too, and takes the place of an older one
        alias = alias.stepped_back(None)
        assert alias.recipe == f"angry@{(58 - step) / 100}" and len(alias.versions) == VERSIONS
    with pytest.raises(AliasConflict):
        alias.stepped_back(None)


def test_what_is_written_is_read_again() -> None:
    alias = moved("a", None, "b").stepped_back(None)
    assert Alias.decoded("prod", alias.encoded()) == alias


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"3",
        b"null",
        b"[1]",
        b'[{"number": 1}]',
        json.dumps([{"number": "1", "recipe": "a", "changed": 1.0, "by": None, "of": 1}]).encode(),
        json.dumps([{"number": 1, "recipe": 7, "changed": 1.0, "by": None, "of": 1}]).encode(),
        json.dumps([{"number": 1, "recipe": "a", "changed": "now", "by": None, "of": 1}]).encode(),
        json.dumps([{"number": 1, "recipe": "a", "changed": 1.0, "by": None, "of": 1, "more": 1}]).encode(),
        pytest.param(moved("a").encoded()[:-3], id="cut short"),
    ],
)
def test_what_was_not_written_here_is_no_alias(raw: bytes) -> None:
    assert Alias.decoded("prod", raw) is None
