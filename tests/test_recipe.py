from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadRecipe, TweenError, UnknownAlias, UnknownVariant
from app.sweep.logits.line import Line
from app.weights.auto_recipe import Auto
from app.weights.recipe import Cookbook

COOKBOOK = Cookbook(["airline", "finance"])
LONE = Cookbook(["finance"])

SAME = [
    ("base", ["base", "finance@0", "finance@-0", "finance@0.0000001", "base..finance@0", {"t": {}}, " base "]),
    ("finance@1", ["finance", "finance@1", "finance@1.000", "airline..finance@1", {"variant": "finance"}]),
    (
        "finance@0.4",
        [
            "finance@0.40",
            "finance@.4",
            "finance@4e-1",
            "linear:finance@0.4",
            "finance@0.4+airline@0",
            "base..finance@0.4",
            "finance..base@0.6",
            {"variant": "finance", "t": 0.4},
            {"t": {"finance": 0.4, "airline": 0}},
            {"method": "linear", "t": {"finance": 0.4}},
            {"from": "base", "t": {"finance": 0.4}},
        ],
    ),
    (
        "airline@0.6+finance@0.4",
        [
            "airline..finance@0.4",
            "finance@0.4+airline@0.6",
            {"from": "airline", "t": {"finance": 0.4}},
            {"from": "airline", "variant": "finance", "t": 0.4},
        ],
    ),
    ("airline@0.2+finance@0.3", ["finance@0.3+airline@0.2", {"t": {"finance": 0.3, "airline": 0.2}}]),
    ("finance@-0.5", ["finance@-0.5", "finance@-.5"]),
    ("airline@-1+finance@2", ["airline..finance@2"]),
]

RAMPS = [
    (
        "finance@0.1:0.9",
        [
            "finance@0.10 : .9",
            "base..finance@0.1:0.9",
            "finance@0.1:0.9+airline@0:0",
            {"variant": "finance", "t": [0.1, 0.9]},
            {"t": {"finance": [0.1, 0.9], "airline": 0}},
        ],
    ),
    ("finance@0:0.9", ["linear:finance@0:0.9"]),
    ("finance@0.4", ["finance@0.4:0.4", {"t": {"finance": [0.4, 0.4]}}]),
    ("base", ["finance@0:0"]),
    ("airline@0.2+finance@0.1:0.9;temperature=1.3", ["finance@0.1:0.9+airline@0.2;temperature=1.3"]),
    (
        "airline@0.9:0.1+finance@0.1:0.9",
        ["airline..finance@0.1:0.9", {"from": "airline", "t": {"finance": [0.1, 0.9]}}],
    ),
]

TEMPERED = [
    (
        "finance@0.4;temperature=1.3",
        [
            "finance@0.40 ; temperature = 1.30",
            "linear:base..finance@0.4;temperature=1.3000000001",
            {"variant": "finance", "t": 0.4, "temperature": 1.3},
        ],
    ),
    ("finance@0.4", ["finance@0.4;temperature=1", "finance@.4;temperature=1.0000001"]),
    ("finance@0.4", [{"t": {"finance": 0.4}, "temperature": 1}]),
    ("base;temperature=0.05", ["base;temperature=.05", {"t": {}, "temperature": 0.05}]),
    ("airline@0.6+finance@0.4;temperature=20", ["airline..finance@0.4;temperature=20"]),
    (
        "airline@0.6+finance@0.4;temperature=2",
        [{"from": "airline", "t": {"finance": 0.4}, "temperature": 2}],
    ),
]


@pytest.mark.parametrize(("canonical", "spellings"), SAME + RAMPS)
def test_spellings_of_the_same_weights_are_one_recipe_with_one_key(canonical: str, spellings: list[object]) -> None:
    recipes = [COOKBOOK.read(spelling) for spelling in spellings]
    assert {recipe.text for recipe in recipes} == {canonical}
    assert len({recipe.key("bank") for recipe in recipes}) == 1


@pytest.mark.parametrize(("canonical", "spellings"), TEMPERED)
def test_a_temperature_belongs_to_the_recipe_and_not_to_the_blend(canonical: str, spellings: list[object]) -> None:
    for spelling in spellings:
        recipe = COOKBOOK.read(spelling)
        assert recipe.text == canonical and COOKBOOK.read(recipe.text) == recipe
        plain = COOKBOOK.read(canonical.partition(";")[0])
        assert recipe.blend == plain and recipe.key("bank") == plain.key("bank")
        assert (recipe == plain) == (";" not in canonical)


def test_a_bank_of_numbers_has_no_temperature() -> None:
    numbers = Cookbook(["finance"], temperatures=False)
    assert numbers.read("finance@0.4;temperature=1").text == "finance@0.4"
    with pytest.raises(BadRecipe, match="answers with a number and not with classes"):
        numbers.read("finance@0.4;temperature=1.3")


def test_keys_differ_by_recipe_and_by_bank() -> None:
    texts = {text for text, _ in SAME + RAMPS}
    keys = {COOKBOOK.read(text).key("bank") for text in texts}
    assert len(keys) == len(texts)
    assert COOKBOOK.read("finance@0.4").key("another bank") not in keys


def test_weights_of_members_add_up_to_one_exactly() -> None:
    assert COOKBOOK.read("airline..finance@0.4").weights == {"airline": 0.6, "finance": 0.4}
    assert COOKBOOK.read("finance@0.3+airline@0.2").weights == {"base": 0.5, "airline": 0.2, "finance": 0.3}
    assert COOKBOOK.read("finance").weights == {"finance": 1.0}
    assert COOKBOOK.read("base").weights == {"base": 1.0}


def test_weights_of_a_ramp_add_up_to_one_in_the_first_layer_and_in_the_last() -> None:
    recipe = COOKBOOK.read("airline@0.2+finance@0.1:0.9")
    assert recipe.weights == {"base": (0.7, -0.1), "airline": (0.2, 0.2), "finance": (0.1, 0.9)}
    assert recipe.t_by_variant == {"airline": 0.2, "finance": (0.1, 0.9)}
    assert COOKBOOK.read("finance@0:1").weights == {"base": (1.0, 0.0), "finance": (0.0, 1.0)}


def test_with_one_variant_a_t_alone_is_enough() -> None:
    assert LONE.read({"t": 0.4}).text == "finance@0.4"
    with pytest.raises(BadRecipe, match="does not say of which variant; loaded: base, airline, finance"):
        COOKBOOK.read({"t": 0.4})


REFUSED = [
    ("agnry@0.4", UnknownVariant, "no variant 'agnry'; loaded: base, airline, finance"),
    ({"variant": "agnry", "t": 1}, UnknownVariant, "no variant 'agnry'; loaded: base, airline, finance"),
    ({"variant": ["finance"], "t": 1}, UnknownVariant, "no variant"),
    ("finance@abc", BadRecipe, "t is 'abc'"),
    ("finance@nan", BadRecipe, "t is 'nan'"),
    ("finance@inf", BadRecipe, "t is 'inf'"),
    ("finance@", BadRecipe, "t is ''"),
    ("finance@0.4@0.5", BadRecipe, "t is '0.4@0.5'"),
    ("finance@٣", BadRecipe, "must be a number"),
    ({"variant": "finance", "t": math.nan}, BadRecipe, "finite number from -1.0 to 2.0"),
    ({"variant": "finance", "t": math.inf}, BadRecipe, "finite number from -1.0 to 2.0"),
    ({"variant": "finance", "t": 1e9}, BadRecipe, "out of bounds; it may go from -1.0 to 2.0"),
    ({"variant": "finance", "t": 10**400}, BadRecipe, "out of bounds"),
    ({"variant": "finance", "t": True}, BadRecipe, "must be a number"),
    ({"variant": "finance", "t": "0.4"}, BadRecipe, "must be a number"),
    ({"variant": "finance", "t": {"finance": 0.4}}, BadRecipe, "not both"),
    ("finance@1e9", BadRecipe, "out of bounds"),
    ("finance@1e999999999", BadRecipe, "out of bounds"),
    ("finance@1e-99999999999999999999", BadRecipe, "must be a number"),
    ("finance@2.000001", BadRecipe, "out of bounds"),
    ("finance@0.1+finance@0.2", BadRecipe, "twice"),
    ("finance..finance@0.2", BadRecipe, "two different ends"),
    ("base@0.4", BadRecipe, "'base' stands alone"),
    ("base+finance@0.4", BadRecipe, "'base' stands alone"),
    ({"t": {"base": 0.4}}, BadRecipe, "'base' takes no t"),
    ({"variant": "base", "t": 0.4}, BadRecipe, "'base' takes no t"),
    ({"from": "airline", "t": {}}, BadRecipe, "one variant to go to, not 0"),
    ({"from": 3, "t": {"finance": 1}}, BadRecipe, "'from' is 3"),
    ({"to": "finance"}, BadRecipe, "field 'to' is unknown; known: from, method, t, temperature, variant"),
    ({}, BadRecipe, "neither t nor a variant"),
    ("", BadRecipe, "empty"),
    ("+", UnknownVariant, "no variant ''"),
    ("finance+" * 500, BadRecipe, "characters"),
    (3, BadRecipe, "a recipe is a text"),
    (None, BadRecipe, "a recipe is a text"),
    ("slerp:finance@0.4", BadRecipe, "no method 'slerp'; served: linear"),
    ("ties:finance@0.5+airline@0.5;density=0.3", BadRecipe, "no method 'ties'; served: linear"),
    ({"method": "dare", "t": {"finance": 0.4}}, BadRecipe, "no method 'dare'; served: linear"),
    ("mix:finance@0.4", BadRecipe, "no method 'mix'; served: linear"),
    ("finance@0.4;density=0.3", BadRecipe, "parameter 'density' is unknown; linear takes temperature"),
    ("finance@0.4;", BadRecipe, "parameter '' is unknown"),
    ("finance@0.4;temperature", BadRecipe, "temperature is ''; it must be a number such as 1.3"),
    ("finance@0.4;temperature=warm", BadRecipe, "temperature is 'warm'"),
    ("finance@0.4;temperature=nan", BadRecipe, "temperature is 'nan'"),
    ("finance@0.4;temperature=0", BadRecipe, "temperature = 0 is out of bounds; it may go from 0.05 to 20"),
    ("finance@0.4;temperature=-1.3", BadRecipe, "temperature = -1.3 is out of bounds"),
    ("finance@0.4;temperature=1e99999", BadRecipe, "temperature = 1E+99999 is out of bounds"),
    ("finance@0.4;temperature=2;temperature=2", BadRecipe, "names the temperature twice"),
    ("finance@0.4;temperature=1.3+airline@0.2", BadRecipe, "temperature is '1.3+airline@0.2'"),
    ("@prod;temperature=1.3", BadRecipe, "an alias stands alone"),
    ({"variant": "finance", "temperature": math.nan}, BadRecipe, "temperature = NaN is out of bounds"),
    ({"variant": "finance", "temperature": math.inf}, BadRecipe, "temperature = Infinity is out of bounds"),
    ({"variant": "finance", "temperature": "1.3"}, BadRecipe, "temperature is '1.3'; it must be a number such as 1.3"),
    ({"variant": "finance", "temperature": None}, BadRecipe, "temperature is None"),
    ({"temperature": 1.3}, BadRecipe, "neither t nor a variant"),
    ("finance@0.1:", BadRecipe, "t is '' in 'finance@0.1:'"),
    ("finance@0.1:0.5:0.9", BadRecipe, "t is '0.5:0.9'"),
    ("finance@0.1:3", BadRecipe, "t = 3 is out of bounds"),
    ("base@0:1", BadRecipe, "'base' stands alone"),
    ({"variant": "finance", "t": [0.1]}, BadRecipe, "t is [0.1]; over the layers it runs between two numbers"),
    ({"variant": "finance", "t": [0.1, "0.9"]}, BadRecipe, "t is '0.9'; it must be a number"),
    ("finance@auto", BadRecipe, "its own t"),
    ("finance @ auto : entropy", BadRecipe, "takes nothing after it; 'airline@auto' and 'auto' go by segment"),
    ({"variant": "finance", "t": "auto"}, BadRecipe, "its own t"),
    ({"t": "auto"}, BadRecipe, "its own t"),
    (
        " auto ",
        BadRecipe,
        "'auto' is no member: alone, it gives each text of /v1/predict the variant and t of its segment",
    ),
    ("auto@0.4", BadRecipe, "'auto' is no member"),
    ("finance@0.2+auto", BadRecipe, "'auto' is no member"),
    ("auto..finance@0.4", BadRecipe, "'auto' is no member"),
    ({"t": {"auto": 0.4}}, BadRecipe, "'auto' is no member"),
    ("auto:entropy", BadRecipe, "'auto:entropy': 'auto' takes nothing after it"),
    ("@prod", UnknownAlias, "no alias 'prod'; aliases here: none yet"),
    (" @prod@0.4", BadRecipe, "'@prod@0.4' names no alias: an alias stands alone"),
    ("@", BadRecipe, "names no alias"),
    ("@" + "a" * 1_900, BadRecipe, "names no alias"),
    ("@" + "a" * 5_000, BadRecipe, "the recipe has 5001 characters"),
    ("@prod+finance@0.2", BadRecipe, "an alias stands alone"),
    ("finance@0.2+@prod", BadRecipe, "t is 'prod'"),
    ("exp:tone", BadRecipe, "names an experiment"),
]


@pytest.mark.parametrize(("recipe", "error", "sentence"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_refusal_says_what_was_asked_and_what_would_do(
    recipe: object, error: type[TweenError], sentence: str
) -> None:
    with pytest.raises(error) as refusal:
        COOKBOOK.read(recipe)
    assert sentence in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("recipe", "text", "table"),
    [
        (" auto ", "auto", "auto"),
        ({"t": "auto"}, "auto", "auto"),
        ("finance@auto", "finance@auto", "finance"),
        ({"variant": "finance", "t": "auto"}, "finance@auto", "finance"),
        (" finance @ auto ", "finance@auto", "finance"),
    ],
)
def test_a_choice_for_each_text_is_read_where_it_may_be_wanted(recipe: object, text: str, table: str) -> None:
    wanted = COOKBOOK.wanted(recipe)
    assert isinstance(wanted, Auto) and (wanted.text, wanted.table) == (text, table)
    assert COOKBOOK.wanted(wanted.text) == wanted


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("finance@auto:entropy", "'auto' takes nothing after it"),
        ("auto@auto", "'auto' is no member"),
        ({"variant": "auto", "t": "auto"}, "'auto' is no member"),
        ({"t": "finance@auto"}, "does not say of which variant"),
        ({"t": "auto", "temperature": 1.2}, "with a variant or alone"),
        ("auto;temperature=1.2", "'auto' is no member"),
    ],
)
def test_what_is_no_choice_for_each_text_is_refused(recipe: object, sentence: str) -> None:
    with pytest.raises(BadRecipe, match=re.escape(sentence)):
        COOKBOOK.wanted(recipe)


def test_an_alias_is_read_as_the_recipe_that_it_points_at() -> None:
    cookbook = Cookbook(["finance"])
    cookbook.aliases["prod"] = cookbook.read("finance@0.4")
    assert cookbook.read(" @prod ") is cookbook.aliases["prod"]
    with pytest.raises(UnknownAlias, match="no alias 'canary'; aliases here: @prod"):
        cookbook.read("@canary")


def test_bounds_can_be_narrowed() -> None:
    narrow = Cookbook(["finance"], low=0, high=1)
    assert narrow.read("finance@1").text == "finance@1"
    with pytest.raises(BadRecipe, match="from 0 to 1"):
        narrow.read("finance@1.01")


t_values = st.floats(-1, 2).map(lambda t: round(t, 6))


ends = st.one_of(t_values, st.tuples(t_values, t_values))


@given(st.dictionaries(st.sampled_from(["airline", "finance"]), ends))
def test_canonical_text_and_json_read_back_as_the_same_recipe(t: dict[str, object]) -> None:
    recipe = COOKBOOK.read({"t": t})
    assert COOKBOOK.read(recipe.text) == recipe
    assert COOKBOOK.read({"t": recipe.t_by_variant}) == recipe
    for end in (0, 1):
        shares = [share[end] if isinstance(share, tuple) else share for share in recipe.weights.values()]
        assert math.isclose(sum(shares), 1, abs_tol=1e-9)


@given(st.text() | st.text("abcfinance@+-.:;=0123456789e ", max_size=40))
def test_any_text_is_a_recipe_or_a_sentence(text: str) -> None:
    try:
        assert COOKBOOK.read(text).text
    except TweenError as error:
        assert str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["t", "variant", "from", "method", "temperature", "x"]), json_values))
def test_any_json_is_a_recipe_or_a_sentence(recipe: dict[str, object]) -> None:
    try:
        assert json.dumps(COOKBOOK.read(recipe).t_by_variant)
    except TweenError as error:
        assert str(error)


def test_blanks_around_recipes_and_long_ones_are_not_remembered() -> None:
    """A hundred requests of a megabyte of blanks and `base` left a hundred megabytes behind."""
    cookbook = Cookbook(["finance"])
    for blanks in range(50):
        assert cookbook.wanted(" " * 100_000 + "\t" * blanks + "base") == cookbook.read("base" + " " * 100_000)
        for read in (cookbook.read, cookbook.wanted):
            with pytest.raises(BadRecipe, match="the recipe has 2001 characters; at most 2000 are read"):
                read(" " * blanks + "x" * 2_001)
            with pytest.raises(BadRecipe, match="the recipe has 9000 characters"):
                read("@" + "x" * 8_999)
    assert cookbook._known.cache_info().currsize == 1


def test_a_line_is_bounded_too_and_its_refusal_is_short() -> None:
    for text in (
        " " * 30_000 + "base",
        "base+" + "x" * 1_900,
        "finance@0.1:0.9;temperature=1" + "0" * 1_900,
        "x" * 9_000,
    ):
        with pytest.raises(TweenError) as refused:
            Line.read(text, Cookbook(["finance"]))
        assert len(str(refused.value)) < 300
