"""The nearest tier: finished blends in this process, in a fixed number of slots of one size.

The slots are allocated at start-up and reused for ever, because touching fresh memory costs three times what the
blend itself costs, and because a fixed number of slots is a fixed amount of memory, whatever is asked for.
A blend in use is pinned: its slot is neither overwritten nor handed on until the last user lets go. A blend that
must stay warm (an alias points at it, an experiment's arm runs on it) is kept: it goes only when every slot is in
use or kept, because callers who wait for ever would be worse.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(eq=False)
class Blend:
    """A finished blend in a slot. `vector` is (P,); `created` is in seconds since the epoch.

    `contents` names what lies there, and never names anything else that lay there, the same blend of an earlier time
    included: a pass whose caller has hung up may still read the slot when it is filled anew.

    `costs` has the milliseconds of what was done for it here: `build`, `fetch`, `write`.
    """

    key: str
    recipe: str
    vector: Tensor
    contents: str
    created: float = field(default_factory=time.time)
    costs: dict[str, float] = field(default_factory=dict)
    hits: int = 0
    pins: int = 0
    next_offer: float = 0.0
    """From this moment of the monotonic clock on, it may be offered to further tiers (`cache/write_behind.py`)."""
    deleted: bool = False

    @property
    def bytes(self) -> int:
        return self.vector.numel() * self.vector.element_size()


class MemoryTier:
    """Blends by key, least recently used first to go. Lives on the event loop's thread."""

    name = "memory"

    def __init__(self, slots: Tensor, asked: int | None = None) -> None:
        """`slots` is (S, P), two at least: one blend may be in use while the next is made. `asked`: how many the
        settings ask for, where memory had no room for all."""
        self.capacity = len(slots)
        self.asked = asked or self.capacity
        self.slot_bytes = slots.shape[1] * slots.element_size()
        self.hits = self.misses = self.evictions = 0
        self._free: list[Tensor] = list(slots)
        self._blends: OrderedDict[str, Blend] = OrderedDict()
        self._kept: Counter[str] = Counter()
        self._freed = asyncio.Event()
        self._takers = self._filled = 0

    def pin(self, key: str) -> Blend | None:
        """The blend, kept in its slot until `unpin`; None on a miss."""
        blend = self._blends.get(key)
        if blend is None:
            self.misses += 1
            return None
        self.hits += 1
        blend.hits += 1
        blend.pins += 1
        self._blends.move_to_end(key)
        return blend

    def unpin(self, blend: Blend) -> None:
        blend.pins -= 1
        if blend.pins == 0:
            if blend.deleted:
                self._free.append(blend.vector)
            self._freed.set()

    async def take(self) -> Tensor:
        """A slot (P,) to write a blend into: a free one, or the one whose blend was used longest ago.

        Waits while every slot is in use.
        """
        while (slot := self._try_take()) is None:
            self._freed.clear()
            self._takers += 1
            try:
                await self._freed.wait()
            finally:
                self._takers -= 1
        return slot

    def _try_take(self) -> Tensor | None:
        if self._free:
            return self._free.pop()
        blend = self.next_to_go()
        if blend is None:
            return None
        del self._blends[blend.key]
        self.evictions += 1
        return blend.vector

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free)

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for a slot."""
        return self._takers > 0

    def next_to_go(self) -> Blend | None:
        """The blend that would make room for another; None if all are in use."""
        idle = [blend for blend in self._blends.values() if blend.pins == 0]
        return next((blend for blend in idle if not self.is_kept(blend.key)), idle[0] if idle else None)

    def keep(self, key: str) -> None:
        """Have the blend of that key, here now or later, stay as long as any other can go instead. To be undone by
        as many calls of `let_go`."""
        self._kept[key] += 1

    def let_go(self, key: str) -> None:
        self._kept[key] -= 1
        if self._kept[key] <= 0:
            del self._kept[key]

    def is_kept(self, key: str) -> bool:
        return key in self._kept

    def give_back(self, slot: Tensor) -> None:
        """Return a slot that was taken and holds nothing after all."""
        self._free.append(slot)
        self._freed.set()

    def put(self, key: str, recipe: str, slot: Tensor, pins: int, costs: dict[str, float] | None = None) -> Blend:
        """Make a filled slot findable, already pinned by those who waited for it."""
        self._filled += 1
        blend = Blend(key, recipe, slot, f"{key}#{self._filled}", pins=pins, costs=costs or {})
        self._blends[key] = blend
        if pins == 0:
            self._freed.set()
        return blend

    def __contains__(self, key: str) -> bool:
        return key in self._blends

    def peek(self, key: str) -> Blend | None:
        """The blend, without counting as a use."""
        return self._blends.get(key)

    def blends(self) -> list[Blend]:
        """All blends, least recently used first."""
        return list(self._blends.values())

    def delete(self, key: str) -> bool:
        """Forget a blend; its slot is free once nobody uses it. False if it was not here."""
        blend = self._blends.pop(key, None)
        if blend is None:
            return False
        if blend.pins:
            blend.deleted = True
        else:
            self.give_back(blend.vector)
        return True

    def counters(self) -> dict[str, int]:
        """Uses since the process started; `slots` of `slot_bytes` each, `blends` of them filled, `asked` wanted."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
            "blends": len(self._blends),
            "kept": len(self._kept),
            "slots": self.capacity,
            "asked": self.asked,
            "slot_bytes": self.slot_bytes,
        }
