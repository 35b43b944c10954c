"""A t for each text: `finance@auto` by the segment that it comes from, `finance@auto:entropy` by how sure the ends are,
and `auto` a variant and its t by the segment.

A segment that the caller names is looked up in a table. Where none is named, a router guesses it from the words and the
t's of all segments are mixed by how likely each one is, which loses less than betting on the likeliest; across variants
only of those that want the likeliest variant. A segment that the table lacks gets what is best for all: traffic goes on
when a channel is opened, and the reply says `pooled`.

What comes out is an ordinary recipe for each text, and a batch takes any of them side by side. A t that is computed is
rounded to hundredths, so that blends and remembered predictions are shared.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.errors import UnknownSegments
from app.models.tokenizer import Text
from app.names import nfc
from app.segments.segment_registry import SegmentRegistry
from app.segments.segment_table import Entropy, SegmentTable, Setting
from app.weights.arena import BASE
from app.weights.auto_recipe import AUTO, Auto
from app.weights.recipe import Cookbook, Recipe

DIGITS = 2

By = Literal["segment", "router", "pooled", "entropy"]
Look = Callable[[Sequence[Text], Recipe], Awaitable[Tensor]]
"""Gives the logits (N, C) of texts."""


@dataclass(frozen=True)
class SegmentChoice:
    """What a text is run with. `by` tells what chose it, None where the caller did; `segment` is the one that was
    named, or the likeliest."""

    recipe: Recipe
    by: By | None = None
    segment: str | None = None


class SegmentSelector:
    """Chooses a recipe for each text from the tables of the variants. `chosen` counts what t's were chosen by."""

    def __init__(self, cookbook: Cookbook, tables: SegmentRegistry) -> None:
        self.tables = tables
        self.chosen: Counter[str] = Counter()
        self._cookbook = cookbook

    def table(self, name: str) -> SegmentTable:
        """That of a variant, or of `auto`. Raises `UnknownVariant`, and `UnknownSegments` where nothing was fitted."""
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
        """Refuse what no text could be given a t by: raises as `table` does."""
        if isinstance(wanted, Auto):
            table = self.table(wanted.table)
            if wanted.by_entropy:
                _entropy_of(table)

    async def choose(
        self, texts: Sequence[Text], wanted: Sequence[Recipe | Auto], segments: Sequence[str | None], look: Look
    ) -> list[SegmentChoice]:
        """A recipe for each text, which asks for one or for an automatic t. `look` runs the ends for `:entropy`.

        Raises as `table` does.
        """
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
            if auto.by_entropy:
                choices = await self._by_entropy(tables[auto], mine, look)
            else:
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
        """t and log T of the segments that want the likeliest variant, mixed by how likely each one is."""
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

    async def _by_entropy(self, table: SegmentTable, texts: Sequence[Text], look: Look) -> list[SegmentChoice]:
        entropy = _entropy_of(table)
        ends = (self._cookbook.read(name) for name in (BASE, table.variant))
        ts = t_of_entropies(entropy, *await asyncio.gather(*(look(texts, end) for end in ends)))
        return [SegmentChoice(self._recipe(table.variant, t, entropy.temperature), "entropy") for t in ts.tolist()]

    def _at(self, table: SegmentTable, setting: Setting) -> Recipe:
        return self._recipe(table.member(setting), setting.t, setting.temperature)

    def _recipe(self, member: str, t: float, temperature: float) -> Recipe:
        at = BASE if member == BASE else f"{member}@{t:.{DIGITS}f}"
        return self._cookbook.read(f"{at};temperature={temperature:.{DIGITS}f}")


def _entropy_of(table: SegmentTable) -> Entropy:
    if table.entropy is None:
        raise UnknownSegments(f"no gain of entropies was fitted for {table.variant!r}; it has t's by segment alone")
    return table.entropy


def t_of_entropies(fitted: Entropy, base: Tensor, variant: Tensor) -> Tensor:
    """t (N,) from the logits (N, C) of both ends."""
    difference = _entropies(base / fitted.base_temperature) - _entropies(variant / fitted.variant_temperature)
    return torch.sigmoid(fitted.gain * difference + fitted.offset)


def _entropies(logits: Tensor) -> Tensor:
    """Entropy (N,) of softmax(logits), nats."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)
