"""Automatic recipes: `finance@auto` asks for a t per text by its segment, `auto` for a variant and a t."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.names import is_name, nfc

AUTO = "auto"
"""The recipe that leaves the variant open, too; its table has the same name."""


@dataclass(frozen=True)
class Auto:
    """A request for a t of this variant for each text; without a variant, for a variant and its t."""

    variant: str | None

    @property
    def text(self) -> str:
        """The canonical text; reading it back gives this."""
        return AUTO if self.variant is None else f"{self.variant}@{AUTO}"

    @property
    def table(self) -> str:
        """The name of its segment table."""
        return self.variant or AUTO


def automatic(recipe: object) -> Auto | None:
    """Read `finance@auto`, `{"variant": "finance", "t": "auto"}`, `auto` or `{"t": "auto"}`; None for other recipes."""
    if isinstance(recipe, Mapping) and set(recipe) <= {"variant", "t"} and isinstance(recipe.get("t"), str):
        t = recipe["t"].strip()
        recipe = f"{recipe['variant']}@{t}" if "variant" in recipe else t if t == AUTO else None
    return _read(recipe) if isinstance(recipe, str) else None


def _read(text: str) -> Auto | None:
    """Split at the signs: a pattern that allows blanks in several places takes time quadratic in their number."""
    name, at, chosen = (part.strip() for part in text.partition("@"))
    if not at:
        return Auto(None) if name == AUTO else None
    return Auto(nfc(name)) if chosen == AUTO and is_name(nfc(name)) else None
