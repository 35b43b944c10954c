"""What asks for a t that is chosen for each text: `finance@auto`, by its segment, and `finance@auto:entropy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

AUTO = re.compile(r"\s*([A-Za-z0-9_-]+)\s*@\s*auto\s*(:\s*entropy\s*)?")


@dataclass(frozen=True)
class Auto:
    """A t of this variant is to be chosen for each text."""

    variant: str
    by_entropy: bool

    @property
    def text(self) -> str:
        """The canonical text; reading it back gives this."""
        return f"{self.variant}@auto{':entropy' if self.by_entropy else ''}"


def automatic(recipe: object) -> Auto | None:
    """What `finance@auto`, or `{"variant": "finance", "t": "auto"}`, asks for; None for any other recipe."""
    if isinstance(recipe, Mapping) and set(recipe) == {"variant", "t"} and isinstance(recipe["t"], str):
        recipe = f"{recipe['variant']}@{recipe['t']}"
    found = AUTO.fullmatch(recipe) if isinstance(recipe, str) else None
    return Auto(found[1], found[2] is not None) if found else None
