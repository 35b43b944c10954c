"""What asks for a choice for each text: `finance@auto` for a t by its segment, `finance@auto:entropy`, and `auto` for a
variant and a t by its segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.names import is_name, nfc

AUTO = "auto"
"""The recipe that leaves the variant open, too; its table has the same name."""


@dataclass(frozen=True)
class Auto:
    """A t of this variant is to be chosen for each text; without one, a variant and its t."""

    variant: str | None
    by_entropy: bool = False

    @property
    def text(self) -> str:
        """The canonical text; reading it back gives this."""
        return AUTO if self.variant is None else f"{self.variant}@{AUTO}{':entropy' if self.by_entropy else ''}"

    @property
    def table(self) -> str:
        """The name of the table that it goes by."""
        return self.variant or AUTO


def automatic(recipe: object) -> Auto | None:
    """What `finance@auto` or `{"variant": "finance", "t": "auto"}`, and `auto` or `{"t": "auto"}` ask for; None for any
    other recipe."""
    if isinstance(recipe, Mapping) and set(recipe) <= {"variant", "t"} and isinstance(recipe.get("t"), str):
        t = recipe["t"].strip()
        recipe = f"{recipe['variant']}@{t}" if "variant" in recipe else t if t == AUTO else None
    return _read(recipe) if isinstance(recipe, str) else None


def _read(text: str) -> Auto | None:
    """Split at its signs, and not by a pattern: one with blanks in several places takes time by the square of them."""
    name, at, chosen = (part.strip() for part in text.partition("@"))
    if not at:
        return Auto(None) if name == AUTO else None
    word, colon, how = (part.strip() for part in chosen.partition(":"))
    if word != AUTO or (colon and how != "entropy") or not is_name(nfc(name)):
        return None
    return Auto(nfc(name), bool(colon))
