"""What to blend: which member with which t, in text, in JSON, and in the one canonical form.

Everything linear is one family: theta = theta_base + sum t_i * (theta_i - theta_base). A single variant,
a sum of variants and a path between two variants are t's in that sum, so two spellings of the same weights
become the same recipe, the same key, and one place in every cache.

A t is held as a whole number of millionths: 0.4, 0.40 and 0.4000000001 cannot be told apart, and 1 - 0.4
is exactly 0.6.

A ramp such as `finance@0.1:0.9` gives t in the first and in the last layer; between them it runs linearly, embeddings
are with the first layer and the head with the last (LiNeS, arXiv 2410.17146, with the head at the far end). So every
t is a pair, and a plain one is the same twice.

A temperature says how the answers of a blend are read (its logits are divided by it) and is no part of the weights:
recipes that differ in nothing else share one blend, one key, and every prediction that is remembered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache

from app.errors import BadRecipe, UnknownAlias, UnknownVariant
from app.names import is_name, nfc
from app.weights.arena import BASE, Share
from app.weights.auto_recipe import AUTO, Auto, automatic
from app.weights.methods import METHODS, Parameter

LINEAR = "linear"
MICRO = 1_000_000
MAX_TEXT = 2_000
COOLEST, HOTTEST = Decimal("0.05"), Decimal(20)
"""The temperatures that a recipe may name."""
NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(e-?\d{1,9})?", flags=re.ASCII)
Ends = tuple[Decimal, Decimal]
"""t in the first and in the last layer."""
ONE = (Decimal(1), Decimal(1))
RESERVED = frozenset({BASE, AUTO, "exp"})


@dataclass(frozen=True)
class Recipe:
    """The canonical form: each variant with its t in millionths, sorted by name, none of them 0.

    An empty `t` is the base itself. The temperature is in millionths, too. Where a t runs over the layers, `t` is that
    in the first layer and `last` that in the last one, of the same variants; else `last` is empty.

    `parameters` has a value in millionths for every parameter of the method, sorted by name.
    """

    t: tuple[tuple[str, int], ...]
    method: str = LINEAR
    temperature: int = MICRO
    last: tuple[tuple[str, int], ...] = ()
    parameters: tuple[tuple[str, int], ...] = ()

    @cached_property  # read several times for each request
    def text(self) -> str:
        """The canonical text, such as `finance@0.4`; reading it back gives this recipe."""
        if self.last:
            terms = "+".join(f"{name}@{_ends_text(*ends)}" for name, *ends in self._ramps)
        else:
            terms = "+".join(f"{name}@{_decimal_text(micro)}" for name, micro in self.t) or BASE
        prefix = "" if self.method == LINEAR else f"{self.method}:"
        tempered = self.temperature != MICRO
        values = [*self.parameters, *([("temperature", self.temperature)] if tempered else [])]
        return prefix + ";".join([terms, *(f"{name}={_decimal_text(micro)}" for name, micro in values)])

    @property
    def is_linear(self) -> bool:
        """Whether rows may be mixed from the members instead of running on a finished blend."""
        return METHODS[self.method].is_linear

    @property
    def parameter_values(self) -> dict[str, float]:
        """What the method is called with, by name."""
        return {name: micro / MICRO for name, micro in self.parameters}

    @property
    def blend(self) -> Recipe:
        """What is built, cached and mixed: the same without the temperature."""
        return self if self.temperature == MICRO else replace(self, temperature=MICRO)

    @cached_property
    def weights(self) -> Mapping[str, Share]:
        """The weight of every member that takes part, base first; they add up to 1."""
        if self.last:
            first, last = _with_base(self.t), _with_base(self.last)
            return {name: (share, last[name]) for name, share in first.items() if share or last[name]}
        return {name: share for name, share in _with_base(self.t).items() if share}

    @property
    def t_by_variant(self) -> dict[str, Share]:
        """The t of each variant that takes part, as a reply shows it: of a ramp its two ends."""
        if self.last:
            return {name: a / MICRO if a == b else (a / MICRO, b / MICRO) for name, a, b in self._ramps}
        return {name: micro / MICRO for name, micro in self.t}

    @property
    def _ramps(self) -> list[tuple[str, int, int]]:
        return [(name, first, last) for (name, first), (_, last) in zip(self.t, self.last, strict=True)]

    def key(self, fingerprint: str) -> str:
        """The name of the blend that this recipe gives on the bank of that fingerprint: 32 hex digits."""
        return hashlib.sha256(f"{fingerprint}\n{self.method}\n{self.blend.text}".encode()).hexdigest()[:32]


class Cookbook:
    """Reads recipes for one bank: it knows the variants' names, the bounds of t, and the aliases.

    `aliases` has the recipe of every alias that traffic may meet now; `serving/aliases.py` moves them.
    """

    def __init__(
        self, variants: Sequence[str], low: float = -1.0, high: float = 2.0, temperatures: bool = True
    ) -> None:
        """`low` and `high` bound t. `temperatures`: logits are those of classes, so that one may divide them."""
        self.variants = tuple(variants)
        self.aliases: dict[str, Recipe | Auto] = {}
        self._known = lru_cache(4_096)(self._read_text)  # most requests name one of a few
        self._known_wanted = lru_cache(4_096)(self._read_wanted)
        self.low, self.high = Decimal(repr(low)), Decimal(repr(high))
        self._temperatures = temperatures

    def read(self, recipe: object) -> Recipe:
        """A recipe from its text, its JSON form, or `@` and the name of an alias.

        Raises `BadRecipe` for what cannot be read or is out of bounds, `UnknownVariant` for a name that is not in
        the bank and `UnknownAlias` for one that is no alias; the message says what would do.
        """
        recipe = bounded(recipe)
        if isinstance(recipe, str):
            return self._blend_behind(recipe) if names_alias(recipe) else self._known(recipe)
        if isinstance(recipe, Mapping):
            return self._read_json(recipe)
        raise BadRecipe(f"a recipe is a text such as '{self._example}' or an object, not {_shown(recipe)}")

    def wanted(self, recipe: object) -> Recipe | Auto:
        """A recipe of a call that may ask for an automatic t: as `read`, or `VARIANT@auto`, `auto` and aliases of
        them."""
        recipe = bounded(recipe)
        if isinstance(recipe, str):
            return self._behind(recipe) if names_alias(recipe) else self._known_wanted(recipe)
        return self._read_wanted(recipe)

    def _read_wanted(self, recipe: object) -> Recipe | Auto:
        auto = automatic(recipe)
        if auto is None:
            return self.read(recipe)
        if auto.variant is not None:
            self._member(auto.variant)
        return auto

    def _blend_behind(self, text: str) -> Recipe:
        found = self._behind(text)
        if isinstance(found, Auto):
            raise BadRecipe(f"{text} is {found.text}, which is no blend: it gives each text of /v1/predict its own t")
        return found

    def _behind(self, text: str) -> Recipe | Auto:
        """The recipe that an alias points at now."""
        name = nfc(text.removeprefix("@"))
        if name in self.aliases:
            return self.aliases[name]
        if not is_name(name):
            raise BadRecipe(f"{_shown(text)} names no alias: an alias stands alone, as in '@prod'")
        there = ", ".join(f"@{other}" for other in sorted(self.aliases)[:20]) or "none yet"
        raise UnknownAlias(f"no alias {_shown(name)}; aliases here: {there}. PUT /v1/aliases/NAME makes one")

    # -- text ------------------------------------------------------------------------------------------

    def _read_text(self, text: str) -> Recipe:
        """What `bounded` gave: the results are kept by it, so blanks around a recipe and long ones take no memory."""
        if not text:
            raise BadRecipe(f"the recipe is empty; write one such as '{self._example}' or 'base'")
        text = nfc(text)
        method, colon, rest = text.partition(":")
        if colon and method.rpartition("@")[2].strip() == AUTO:
            raise BadRecipe(
                f"{_shown(text)}: 'auto' takes nothing after it; '{self._any_variant}@auto' and 'auto' go by segment"
            )
        named = LINEAR
        if colon and "@" not in method and method != "exp":
            named, text = self._method(method.strip()), rest.strip()
        self._refuse_what_is_no_blend(text)
        text, *settings = text.split(";")
        values = _read_settings(settings, named)
        t: dict[str, Ends] = {}
        for term in text.split("+"):
            self._add_term(t, term.strip(), whole=text)
        return self._canonical(t, named, values)

    def _refuse_what_is_no_blend(self, text: str) -> None:
        if text.startswith("exp:"):
            raise BadRecipe(f"{_shown(text)} names an experiment, which only predict may ask for. {self._offer}")
        if re.search(r"@\s*auto\b", text):
            raise BadRecipe(f"{_shown(text)} is no blend: VARIANT@auto gives each text of /v1/predict its own t, alone")

    def _add_term(self, t: dict[str, Ends], term: str, whole: str) -> None:
        path, at, number = term.partition("@")
        value = self._ends(number, whole) if at else ONE
        origin, dots, end = (part.strip() for part in path.partition(".."))
        if dots:
            self._add_path(t, origin, end, value)
        elif origin == BASE:
            if at or t or "+" in whole:
                raise BadRecipe(f"'base' stands alone, without a t: it gets what the variants leave. {self._offer}")
        else:
            self._add(t, origin, value)

    def _ends(self, text: str, whole: str) -> Ends:
        """One number, or two with a colon between."""
        first, colon, last = (part.strip() for part in text.partition(":"))
        start = self._number(first, whole)
        return start, self._number(last, whole) if colon else start

    def _number(self, text: str, whole: str) -> Decimal:
        if not NUMBER.fullmatch(text):
            raise BadRecipe(f"t is {_shown(text)} in {_shown(whole)}; it must be a number such as 0.4")
        return self._checked(Decimal(text))

    # -- JSON ------------------------------------------------------------------------------------------

    def _read_json(self, recipe: Mapping[object, object]) -> Recipe:
        method = self._method(recipe.get("method", LINEAR))
        known = {"method", "t", "variant", "from", *_settings_of(method)}
        for field in recipe:
            if field not in known:
                raise BadRecipe(f"recipe field {_shown(field)} is unknown; known: {', '.join(sorted(known))}")
        values = {name: _json_number(name, recipe[name]) for name in _settings_of(method) if name in recipe}
        t = self._t_of(recipe)
        origin = recipe.get("from", BASE)
        if not isinstance(origin, str):
            raise BadRecipe(f"'from' is {_shown(origin)}; it must be the name of a member")
        if origin == BASE:
            return self._canonical(t, method, values)
        if len(t) != 1:
            raise BadRecipe(f"a path from {_shown(origin)} needs one variant to go to, not {len(t)}")
        (end, value), *_ = t.items()
        path: dict[str, Ends] = {}
        self._add_path(path, origin, end, value)
        return self._canonical(path, method, values)

    def _t_of(self, recipe: Mapping[object, object]) -> dict[str, Ends]:
        given = recipe.get("t")
        if given == AUTO:
            raise BadRecipe(
                "t = 'auto' is no blend: with a variant or alone, it gives each text of /v1/predict its own t"
            )
        if isinstance(given, Mapping):
            if "variant" in recipe:
                raise BadRecipe("give either 'variant' with a number as t, or t by variant, not both")
            t: dict[str, Ends] = {}
            for name, value in given.items():
                if name == BASE:
                    raise BadRecipe("'base' takes no t: it gets what the variants leave")
                self._add(t, name, self._json_ends(value))
            return t
        name = recipe.get("variant")
        if name is None:
            if given is None and "from" not in recipe:
                raise BadRecipe(f"the recipe names neither t nor a variant. {self._offer}")
            if len(self.variants) != 1:
                raise BadRecipe(
                    f"t = {_shown(given)} does not say of which variant; loaded: {self._loaded}. "
                    f'Write {{"variant": "{self._any_variant}", "t": 0.4}}'
                )
            name = self.variants[0]
        value = ONE if given is None else self._json_ends(given)
        if name == BASE and "from" not in recipe:
            raise BadRecipe("'base' takes no t: it gets what the variants leave")
        return {self._member(name): value}

    def _json_ends(self, value: object) -> Ends:
        """A number, or a list of two."""
        if isinstance(value, list | tuple):
            if len(value) != 2:
                raise BadRecipe(f"t is {_shown(value)}; over the layers it runs between two numbers, as in [0.1, 0.9]")
            first, last = (self._checked(_json_number("t", one)) for one in value)
            return first, last
        start = self._checked(_json_number("t", value))
        return start, start

    # -- both ------------------------------------------------------------------------------------------

    def _checked(self, value: Decimal) -> Decimal:
        if not value.is_finite():
            raise BadRecipe(f"t is {value}; it must be a finite number from {self.low} to {self.high}")
        if not self.low <= value <= self.high:
            shown = value if len(str(value)) <= 20 else f"{value:.3g}"
            raise BadRecipe(f"t = {shown} is out of bounds; it may go from {self.low} to {self.high}")
        return value

    def _checked_temperature(self, value: Decimal) -> Decimal:
        if not (value.is_finite() and COOLEST <= value <= HOTTEST):
            shown = value if len(str(value)) <= 20 else f"{value:.3g}"
            raise BadRecipe(f"temperature = {shown} is out of bounds; it may go from {COOLEST} to {HOTTEST}")
        if value != 1 and not self._temperatures:
            raise BadRecipe("this bank answers with a number and not with classes, so a temperature means nothing")
        return value

    def _method(self, method: object) -> str:
        if isinstance(method, str) and method in METHODS:
            return method
        raise BadRecipe(f"no method {_shown(method)}; served: {', '.join(METHODS)}")

    def _member(self, name: object) -> str:
        if isinstance(name, str) and nfc(name) in (BASE, *self.variants):
            return nfc(name)
        if name == AUTO:
            raise BadRecipe(
                "'auto' is no member: alone, it gives each text of /v1/predict the variant and t of its segment"
            )
        raise UnknownVariant(f"no variant {_shown(name)}; loaded: {self._loaded}")

    def _add(self, t: dict[str, Ends], name: object, value: Ends) -> None:
        name = self._member(name)
        if name in t:
            raise BadRecipe(f"the recipe names variant {_shown(name)} twice")
        t[name] = value

    def _add_path(self, t: dict[str, Ends], origin: str, end: str, value: Ends) -> None:
        origin, end = self._member(origin), self._member(end)
        if origin == end:
            raise BadRecipe(f"a path needs two different ends, not {_shown(origin)} twice")
        first, last = value
        for name, (a, b) in ((origin, (1 - first, 1 - last)), (end, value)):
            if name != BASE:
                self._add(t, name, (self._checked(a), self._checked(b)))

    def _canonical(self, t: Mapping[str, Ends], method: str, values: Mapping[str, Decimal]) -> Recipe:
        """`values`: those of temperature and of the method's parameters that the recipe names."""
        temperature = _micro(self._checked_temperature(values.get("temperature", Decimal(1))))
        parameters = tuple(
            (name, _micro(_within(name, values.get(name), bounds)))
            for name, bounds in sorted(METHODS[method].parameters.items())
        )
        micro = {name: (_micro(first), _micro(last)) for name, (first, last) in sorted(t.items())}
        first = tuple((name, a) for name, (a, b) in micro.items() if a or b)
        last = tuple((name, b) for name, (a, b) in micro.items() if a or b)
        if not first:
            return Recipe((), temperature=temperature)  # the base itself, by whatever method
        return Recipe(first, method, temperature, last=() if last == first else last, parameters=parameters)

    @property
    def _any_variant(self) -> str:
        return self.variants[0] if self.variants else BASE

    @property
    def _example(self) -> str:
        return f"{self._any_variant}@0.4" if self.variants else BASE

    @property
    def _offer(self) -> str:
        return f"Served: '{self._example}' and the like; loaded: {self._loaded}"

    @property
    def _loaded(self) -> str:
        return ", ".join((BASE, *self.variants))


def bounded(recipe: object) -> object:
    """A recipe's text without blanks around it, and anything else as it is; raises `BadRecipe` for a text that is too
    long for anything to look at it."""
    if not isinstance(recipe, str):
        return recipe
    text = recipe.strip()
    if len(text) > MAX_TEXT:
        raise BadRecipe(f"the recipe has {len(text)} characters; at most {MAX_TEXT} are read")
    return text


def names_alias(recipe: object) -> bool:
    """Whether a recipe is written as an alias, whatever stands behind it."""
    return isinstance(recipe, str) and recipe.lstrip().startswith("@")


def _with_base(t: Sequence[tuple[str, int]]) -> dict[str, float]:
    """t's and what they leave to the base, which comes first."""
    rest = MICRO - sum(micro for _, micro in t)
    return {name: micro / MICRO for name, micro in ((BASE, rest), *t)}


def _json_number(name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _no_number(name, value)
    return Decimal(repr(value))


def _no_number(name: str, value: object) -> BadRecipe:
    example = {"t": "0.4", "temperature": "1.3"}.get(name, "0.3")
    return BadRecipe(f"{name} is {_shown(value)}; it must be a number such as {example}")


def _settings_of(method: str) -> list[str]:
    """The numbers that a recipe of that method may name beside t."""
    return [*METHODS[method].parameters, "temperature"]


def _read_settings(settings: Sequence[str], method: str) -> dict[str, Decimal]:
    """The numbers among `name=value`, which follow the blend's text."""
    known = _settings_of(method)
    found: dict[str, Decimal] = {}
    for setting in settings:
        name, _, value = (part.strip() for part in setting.partition("="))
        if name not in known:
            raise BadRecipe(f"parameter {_shown(name)} is unknown; {method} takes {', '.join(known)}")
        if name in found:
            raise BadRecipe(f"the recipe names the {name} twice")
        if not NUMBER.fullmatch(value):
            raise _no_number(name, value)
        found[name] = Decimal(value)
    return found


def _within(name: str, value: Decimal | None, parameter: Parameter) -> Decimal:
    """The value of a method's parameter, by default its own; raises `BadRecipe` for one that is out of bounds."""
    low, high, default = (Decimal(repr(bound)) for bound in (parameter.low, parameter.high, parameter.default))
    value = default if value is None else value
    if not (value.is_finite() and low <= value <= high):
        shown = value if len(str(value)) <= 20 else f"{value:.3g}"
        raise BadRecipe(f"{name} = {shown} is out of bounds; it may go from {low} to {high}")
    return value


def _micro(value: Decimal) -> int:
    """Millionths, rounded half to even."""
    try:
        return int((value * MICRO).to_integral_value())
    except InvalidOperation as error:
        raise BadRecipe(f"t = {value:.3g} cannot be held to six decimals") from error


def _decimal_text(micro: int) -> str:
    text = f"{Decimal(micro) / MICRO:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ends_text(first: int, last: int) -> str:
    return _decimal_text(first) if first == last else f"{_decimal_text(first)}:{_decimal_text(last)}"


def _shown(value: object) -> str:
    """What the caller wrote, quoted and short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
