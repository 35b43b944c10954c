"""What an alias points at and has pointed at. A deletion is a version too, so that numbers only ever rise."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace

from app.errors import AliasConflict

VERSIONS = 20
"""Versions of an alias that are remembered, the present one included."""


@dataclass(frozen=True)
class Version:
    """Where an alias pointed from `changed` on (seconds since the epoch); `recipe` is canonical, None: deleted.

    `of` is the number of the version whose recipe this one brings back, its own where it brings something new.
    """

    number: int
    recipe: str | None
    changed: float
    by: str | None
    of: int


@dataclass(frozen=True)
class Alias:
    """A name and its versions, the present one last; without any, it has never existed."""

    name: str
    versions: tuple[Version, ...] = ()

    @property
    def version(self) -> int:
        return self.versions[-1].number if self.versions else 0

    @property
    def recipe(self) -> str | None:
        return self.versions[-1].recipe if self.versions else None

    @property
    def gone_since(self) -> float | None:
        """When it was deleted; 0: it has never existed; None: it exists."""
        if self.recipe is not None:
            return None
        return self.versions[-1].changed if self.versions else 0.0

    def moved(self, recipe: str | None, by: str | None) -> Alias:
        """The alias with one version more; itself, if it points there already."""
        if self.recipe == recipe:
            return self
        return self._with(Version(self.version + 1, recipe, time.time(), by, of=self.version + 1))

    def stepped_back(self, by: str | None) -> Alias:
        """The alias with one version more, which brings back what was before; steps in a row walk further back.

        A deleted alias so comes back. Raises `AliasConflict` where nothing is remembered that could.
        """
        origin = self.versions[-1].of
        earlier = [v for v in self.versions if v.number < origin and v.recipe is not None]
        if not earlier:
            raise AliasConflict(f"alias {self.name!r} has no recipe before version {origin} to go back to")
        return self._with(replace(earlier[-1], number=self.version + 1, changed=time.time(), by=by))

    def _with(self, version: Version) -> Alias:
        return Alias(self.name, (*self.versions, version)[-VERSIONS:])

    def encoded(self) -> bytes:
        return json.dumps([asdict(version) for version in self.versions], sort_keys=True).encode()

    @classmethod
    def decoded(cls, name: str, raw: bytes) -> Alias | None:
        """The alias that `encoded` wrote; None if that cannot be."""
        try:
            versions = tuple(Version(**fields) for fields in json.loads(raw))
        except (ValueError, TypeError):
            return None
        return cls(name, versions) if versions and all(map(_is_sound, versions)) else None


def _is_sound(version: Version) -> bool:
    return (
        isinstance(version.number, int)
        and isinstance(version.of, int)
        and isinstance(version.changed, float)
        and isinstance(version.recipe, str | None)
        and isinstance(version.by, str | None)
    )
