"""Recipe to weights: a member's own row, else the ladder, else the merge method."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from torch import Tensor

from app.cache.memory_tier import Blend, MemoryTier
from app.cache.tier import Stored
from app.cache.tiers import Ladder
from app.cluster.circuit_breaker import CircuitBreaker
from app.errors import BlendNotPublished, MemberBlend, UnknownBlend
from app.models.bank import Bank
from app.models.classifier import Mix
from app.serving.build_policy import BuildPolicy
from app.serving.executor import ExecutorPool, Vector
from app.weights.arena import BASE
from app.weights.recipe import LINEAR, MICRO, Recipe

MIXED = "mixed"
KEYS = 4_096
"""Recipes whose key is remembered: a request asks for it four times."""
PUBLISH = "have a pod that has them run POST /v1/blends with this recipe"


@dataclass(frozen=True)
class Weights:
    """Weights ready to run: their key, what holds them, where they came from, and what getting them took."""

    key: str
    recipe: Recipe
    operand: Vector | Mix
    source: str
    milliseconds: float


@dataclass(frozen=True)
class Cached:
    """A blend as `GET /v1/blends` shows it. Times are in seconds; `hits` counts this process's memory tier.

    `costs` has the milliseconds that each way (`build`, `fetch`, `write`) took where it was gone here.
    """

    key: str
    recipe: str
    bytes: int
    tiers: list[str]
    hits: int
    age: float
    in_use: int
    costs: dict[str, float]


class BlendProvider:
    """The weights of every recipe on one bank."""

    def __init__(self, bank: Bank, ladder: Ladder, scheduler: BuildPolicy, compute: ExecutorPool) -> None:
        self.scheduler = scheduler
        self._bank = bank
        self._ladder = ladder
        self._compute = compute
        self._keys = lru_cache(KEYS)(partial(Recipe.key, fingerprint=bank.fingerprint))
        self._members = {self.key(recipe): (recipe, name) for recipe, name in _member_recipes(bank)}
        if bank.has_members:
            ladder.built(_kind(LINEAR, 2), scheduler.costs.build)

    def key(self, recipe: Recipe) -> str:
        return self._keys(recipe)

    def use(self, recipe: Recipe, tokens: int) -> AbstractAsyncContextManager[Weights]:
        """The recipe's weights for rows of so many tokens: in a vector, or mixed where that is the cheaper way."""
        key = self.key(recipe)
        if self._is_for_a_vector(recipe, key, tokens):
            return self.lease(recipe)
        return nullcontext(Weights(key, recipe, Mix.of(recipe.weights, self._bank.arena), MIXED, 0.0))

    def _is_for_a_vector(self, recipe: Recipe, key: str, tokens: int) -> bool:
        if key in self._members or not self._compute.mixes:
            return True
        expected = self.scheduler.expect(key, tokens)
        if key in self._ladder or not recipe.is_linear:
            return True
        if not self.scheduler.pays(expected, members=len(recipe.weights)):
            return False
        memory = self._ladder.memory
        other = memory.next_to_go()
        if memory.has_free_slot or other is None:
            return memory.has_free_slot
        return not memory.is_kept(other.key) and expected > self.scheduler.heat(other.key)

    @asynccontextmanager
    async def lease(self, recipe: Recipe) -> AsyncIterator[Weights]:
        """The recipe's weights in a vector (P,), which nobody overwrites while the context is open."""
        key = self.key(recipe)
        if key in self._members:
            # The ends of a path are rows of the arena: bit-equal to what was loaded, and never built.
            row = self._bank.arena[self._members[key][1]]
            yield Weights(key, recipe, Vector(row, key), MemoryTier.name, 0.0)
            return

        if not self._bank.has_members and key not in self._ladder and not await self._stored_in(key):
            # Known before a slot is taken: a recipe that cannot be served must not cost one that can.
            for tier in self._ladder.further:
                await tier.wants(key, requests=1)  # so that the next pod that builds it puts it there
            raise await self._not_there(recipe)

        async def build(slot: Tensor) -> None:
            if not self._bank.has_members:
                raise _out_of_reach(f"blend {recipe.text!r} could not be read from Redis", f"try again, or {PUBLISH}")
            async with self._compute.unit() as unit:
                seconds = await unit.build(recipe.method, recipe.weights, slot, recipe.parameter_values)
            if recipe.is_linear:
                self.scheduler.built(seconds)

        kind = _kind(recipe.method, len(recipe.weights))
        async with self._ladder.lease(key, recipe.blend.text, build, kind) as lease:
            yield Weights(
                key, recipe, Vector(lease.blend.vector, lease.blend.contents), lease.source, lease.milliseconds
            )

    async def keep(self, recipe: Recipe) -> None:
        """Bring the recipe's weights into memory and let them stay as long as any others can go instead; to be
        undone by `let_go`."""
        self._ladder.memory.keep(self.key(recipe))
        try:
            async with self.lease(recipe):
                pass
        except BaseException:
            self.let_go(recipe)
            raise

    def let_go(self, recipe: Recipe) -> None:
        """Undo one `keep`: the recipe's weights may go when they have not been used for longest."""
        self._ladder.memory.let_go(self.key(recipe))

    @asynccontextmanager
    async def publish(self, recipe: Recipe) -> AsyncIterator[Weights]:
        """The recipe's weights as `lease` gives them, put where other pods find them: members too, and whatever that
        costs, because pods without members have no other way to them."""
        async with self.lease(recipe) as weights:
            assert isinstance(weights.operand, Vector)
            if self._bank.has_members:
                await self._ladder.publish(weights.key, recipe.blend.text, weights.operand.values)
            yield weights

    async def tiers(self, key: str) -> list[str]:
        """Names of the tiers that hold this blend; a member lies in memory."""
        here = key in self._members or self._ladder.memory.peek(key) is not None
        return [MemoryTier.name] * here + await self._stored_in(key)

    async def _stored_in(self, key: str) -> list[str]:
        return [tier.name for tier in self._ladder.further if await tier.find(key)]

    async def _not_there(self, recipe: Recipe) -> BlendNotPublished:
        if await self.shared_state() == "ok":
            return _out_of_reach(f"there is no blend {recipe.text!r} in Redis", PUBLISH)
        return _out_of_reach(
            f"Redis does not answer now, blend {recipe.text!r} is not in memory",
            "try again when /readyz says that redis is ok",
        )

    async def cached(self) -> list[Cached]:
        """All blends that lie in a tier, most recently used first, then those that only lie further away."""
        shown = {blend.key: _in_memory(blend) for blend in reversed(self._ladder.memory.blends())}
        for tier in self._ladder.further:
            for stored in await tier.stored():
                here = [MemoryTier.name] if stored.key in self._members else []
                known = shown.setdefault(stored.key, _stored(stored, here))
                known.tiers.append(tier.name)
        return list(shown.values())

    async def find(self, key: str) -> Cached:
        """One cached blend; raises `UnknownBlend`."""
        if key in self._members:
            recipe, _ = self._members[key]
            age = time.time() - self._bank.loaded
            return Cached(key, recipe.text, self._bank.arena.row_bytes, await self.tiers(key), 0, age, 0, {})
        blend = self._ladder.memory.peek(key)
        shown = _in_memory(blend) if blend else None
        for tier in self._ladder.further:
            stored = await tier.find(key)
            if stored:
                shown = shown or _stored(stored, [])
                shown.tiers.append(tier.name)
        if shown is None:
            raise _unknown(key)
        return shown

    async def delete(self, key: str) -> list[str]:
        """Take a blend out of every tier; gives the tiers that held it, raises `UnknownBlend` if none did."""
        if key in self._members:
            raise MemberBlend(f"blend {key!r} is {self._members[key][0].text}, a member of the bank; it stays loaded")
        held = await self._ladder.delete(key)
        if not held:
            raise _unknown(key)
        return held

    def counters(self) -> dict[str, dict[str, int]]:
        """What each tier of this process has counted, and what was built."""
        memory = self._ladder.memory
        further = {tier.name: tier.counters() for tier in self._ladder.further}
        build = {"builds": self._ladder.builds, "not_written": self._ladder.writer.dropped}
        return {memory.name: memory.counters(), **further, "build": build}

    def costs(self) -> list[tuple[str, str, float]]:
        """What each way to a blend costs here, as the tiers have measured it: way, kind of build, seconds."""
        return [cost for tier in self._ladder.further for cost in tier.costs()]

    def breakers(self) -> dict[str, CircuitBreaker]:
        """What leaves the tiers alone that do not answer, by name."""
        return {name: breaker for tier in self._ladder.further for name, breaker in tier.breakers().items()}

    async def shared_state(self) -> Literal["ok", "degraded", "none"]:
        """Whether the tiers beyond this process answer; `none` if there are none."""
        if not self._ladder.further:
            return "none"
        return "ok" if all([await tier.is_well() for tier in self._ladder.further]) else "degraded"


def _member_recipes(bank: Bank) -> list[tuple[Recipe, str]]:
    """The recipes whose weights are a row of the arena: the base, and each variant at t = 1."""
    if not bank.has_members:
        return []
    return [(Recipe(()), BASE), *((Recipe(((name, MICRO),)), name) for name in bank.variants)]


def _kind(method: str, members: int) -> str:
    """What makes builds cost the same: the method, and from how many members."""
    return f"{method} {members}"


def _in_memory(blend: Blend) -> Cached:
    age = time.time() - blend.created
    return Cached(blend.key, blend.recipe, blend.bytes, [MemoryTier.name], blend.hits, age, blend.pins, blend.costs)


def _stored(stored: Stored, tiers: list[str]) -> Cached:
    age = time.time() - stored.created
    return Cached(stored.key, stored.recipe, stored.bytes, tiers, 0, age, 0, {})


def _out_of_reach(why: str, what_to_do: str) -> BlendNotPublished:
    return BlendNotPublished(f"{why}, and this pod has no members to build it from; {what_to_do}")


def _unknown(key: str) -> UnknownBlend:
    return UnknownBlend(f"no blend {key[:64]!r} is cached; GET /v1/blends lists those that are")
