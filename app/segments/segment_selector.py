"""Chooses a recipe for each text by its segment: `finance@auto` a t, `auto` a variant and its t.

A segment that the caller names is looked up in a table. Without one, a classifier guesses the segment from the words,
and the t's of all segments are averaged by their probabilities, which loses less than the likeliest segment's t; across
variants, only segments with the likeliest variant count. A segment that the table lacks gets the pooled setting, so
that traffic goes on when a channel is opened, and the reply says `pooled`.

The result is an ordinary recipe for each text, and a batch takes any of them side by side. A computed t is rounded to
hundredths, so that texts share blends and cached predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from app.errors import UnknownSegments
from app.models.tokenizer import Text
from app.names import nfc
from app.segments.segment_registry import SegmentRegistry
from app.segments.segment_table import SegmentTable, Setting
from app.weights.arena import BASE
from app.weights.auto_recipe import AUTO, Auto
from app.weights.recipe import Cookbook, Recipe

DIGITS = 2

By = Literal["segment", "router", "pooled"]


@dataclass(frozen=True)
class SegmentChoice:
    """The recipe of a text. `by` names the rule that chose it, None for the caller's own recipe; `segment` is the named
    or the likeliest one."""

    recipe: Recipe
    by: By | None = None
    segment: str | None = None


class SegmentSelector:
    """Chooses a recipe for each text from the segment tables. `chosen` counts the choices by rule."""

    def __init__(self, cookbook: Cookbook, tables: SegmentRegistry) -> None:
        self.tables = tables
        self.chosen: Counter[str] = Counter()
        self._cookbook = cookbook

    def table(self, name: str) -> SegmentTable:
        """The table of a variant, or of `auto`; raises `UnknownVariant`, and `UnknownSegments` if none was fitted."""
        if name != AUTO:
            self._cookbook.read(name)
        table = self.tables.now.get(name)
        if table is None:
            there = ", ".join(sorted(self.tables.now)) or "none"
            command = "tween segments DATA" if name == AUTO else f"tween segments DATA --variant {name}"
            raise UnknownSegments(
                f"no t's by segment were fitted for {name!r}; there are some for: {there}. `{command}` fits them; PUT "
                f"its segments.json to /v1/segments/{name}, or name it in the bank file"
            )
        return table

    def check(self, wanted: Recipe | Auto) -> None:
        """Refuse an automatic recipe without a table: raises as `table` does."""
        if isinstance(wanted, Auto):
            self.table(wanted.table)

    def choose(
        self, texts: Sequence[Text], wanted: Sequence[Recipe | Auto], segments: Sequence[str | None]
    ) -> list[SegmentChoice]:
        """The recipe of each text, from the wanted one and its segment; raises as `table` does."""
        made: dict[int, SegmentChoice] = {}
        by_auto: dict[Auto, list[int]] = {}
        for index, asked in enumerate(wanted):
            if isinstance(asked, Auto):
                by_auto.setdefault(asked, []).append(index)
            else:
                made[index] = SegmentChoice(asked)
        tables = {auto: self.table(auto.table) for auto in by_auto}
        for auto, indices in by_auto.items():
            mine = [texts[index] for index in indices]
            choices = self._by_segment(tables[auto], mine, [segments[index] for index in indices])
            made |= zip(indices, choices, strict=True)
            self.chosen.update(str(choice.by) for choice in choices)
        return [made[index] for index in range(len(texts))]

    def _by_segment(
        self, table: SegmentTable, texts: Sequence[Text], segments: Sequence[str | None]
    ) -> list[SegmentChoice]:
        guessed = iter(self._routed(table, [t for t, s in zip(texts, segments, strict=True) if s is None]))
        return [next(guessed) if segment is None else self._looked_up(table, segment) for segment in segments]

    def _looked_up(self, table: SegmentTable, segment: str) -> SegmentChoice:
        segment = nfc(segment)
        setting = table.segments.get(segment)
        if setting is None:
            return SegmentChoice(self._at(table, table.pooled), "pooled")
        return SegmentChoice(self._at(table, setting), "segment", segment)

    def _routed(self, table: SegmentTable, texts: Sequence[Text]) -> list[SegmentChoice]:
        """t and log T, averaged over the segments of the likeliest variant by their probabilities."""
        if not texts:
            return []
        if table.router is None:
            return [SegmentChoice(self._at(table, table.pooled), "pooled")] * len(texts)
        settings = [table.segments[name] for name in table.router.segments]
        likely = table.router.probabilities(texts)  # (N, K)
        members = list(dict.fromkeys(map(table.member, settings)))
        wants = torch.tensor([[float(table.member(s) == member) for member in members] for s in settings])  # (K, M)
        chosen = (likely @ wants).argmax(dim=1)
        values = torch.tensor([[s.t, s.temperature] for s in settings])
        values[:, 1].log_()
        inside = likely * wants.T[chosen]
        mixed = (inside @ values) / inside.sum(dim=1, keepdim=True)
        return [
            SegmentChoice(self._recipe(members[member], t, temperature), "router", table.router.segments[best])
            for member, t, temperature, best in zip(
                chosen.tolist(),
                mixed[:, 0].tolist(),
                mixed[:, 1].exp().tolist(),
                likely.argmax(dim=1).tolist(),
                strict=True,
            )
        ]

    def _at(self, table: SegmentTable, setting: Setting) -> Recipe:
        return self._recipe(table.member(setting), setting.t, setting.temperature)

    def _recipe(self, member: str, t: float, temperature: float) -> Recipe:
        at = BASE if member == BASE else f"{member}@{t:.{DIGITS}f}"
        return self._cookbook.read(f"{at};temperature={temperature:.{DIGITS}f}")
