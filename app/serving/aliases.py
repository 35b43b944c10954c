"""Names that point at recipes and are moved in one step, on every pod.

What traffic meets is a dict in the cookbook: resolving `@prod` costs a look-up. This file moves what stands there.

A move goes: the pod that is asked has every pod that listens bring the new blend into memory, waits until all have
answered (for `WARM_SECONDS` at most), and then replaces the alias's document in Redis, provided that it is still the
one it started from. That is the move. Pods learn of it by a message, or at the latest by comparing the mark twice a
second, and let traffic meet the new recipe.

Whatever happens to messages and pods, every pod holds on to two rules by itself: it lets traffic meet a recipe only
when it has the blend in memory (or has tried for `WARM_SECONDS`), and it keeps the blend there as long as the alias
points at it. So a pod that joins is ready only when its aliases are warm; one that missed the question warms up when it
sees the move; one that dies costs the mover its wait and nothing else; and a mover that dies before it wrote has
moved nothing.

How pods agree, and what becomes of aliases without Redis, is in `replicated.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from app.cluster.document_store import DocumentStore
from app.cluster.precondition import Expected
from app.cluster.replicated import Change, Replicated
from app.errors import AliasConflict, BadAlias, BadRecipe, TweenError, UnknownAlias
from app.names import MAX_NAME, is_name
from app.serving.alias_history import Alias
from app.serving.blend_provider import BlendProvider
from app.serving.prewarm import PinnedBlend, Prewarm
from app.weights.auto_recipe import Auto
from app.weights.recipe import Cookbook, Recipe, names_alias

log = logging.getLogger(__name__)

DEFAULT = "prod"
"""The alias that requests without a recipe mean, where it exists."""
MAX_ALIASES = 100


class Aliases:
    """The aliases of a service, as this pod knows them."""

    def __init__(self, cookbook: Cookbook, blends: BlendProvider, store: DocumentStore | None) -> None:
        self.warmth = Prewarm(cookbook, blends, store)
        self._cookbook = cookbook
        self._blends = blends
        self._following = Replicated(
            "aliases", store, Alias.decoded, self._follow, AliasConflict, "alias", self.warmth.prepare
        )
        self._kept: dict[str, PinnedBlend] = {}

    @property
    def shared(self) -> bool:
        """Whether other pods see them."""
        return self._following.shared

    async def start(self) -> None:
        """Learn what aliases there are and warm up for them; from then on, follow them."""
        await self._following.start()

    async def close(self) -> None:
        await self._following.close()

    # -- what is asked of them -------------------------------------------------------------------------

    def all(self) -> list[Alias]:
        """All aliases, by name."""
        return [alias for _, alias in sorted(self._following.known.items()) if alias.recipe is not None]

    def get(self, name: str) -> Alias:
        """One alias; raises `UnknownAlias`."""
        alias = self._following.known.get(name)
        if alias is None or alias.recipe is None:
            raise self._unknown(name)
        return alias

    def key(self, alias: Alias) -> str | None:
        """The key of the blend that it points at; None if this bank cannot make it, or each text has its own."""
        recipe = self._recipe(alias)
        return self._blends.key(recipe) if isinstance(recipe, Recipe) else None

    async def move(self, name: str, recipe: object, version: Expected = None, by: str | None = None) -> Change[Alias]:
        """Point an alias at a recipe, on every pod, and make it if there is none of that name.

        With a `version`, only if it is at that one (0: if it does not exist), else `AliasConflict`. Raises `BadAlias`
        for an impossible name, what the cookbook raises for the recipe, and `RedisUnavailable`.
        """
        if not is_name(name):
            raise BadAlias(
                f"an alias's name has letters and digits of any script, _ and -, {MAX_NAME} at most, and does not "
                "begin with -"
            )
        if names_alias(recipe):
            raise BadRecipe("an alias points at a recipe, not at another alias; write the recipe itself")
        text = self._cookbook.wanted(recipe).text

        def moved(alias: Alias) -> Alias:
            if alias.recipe is None and len(self.all()) >= MAX_ALIASES:
                raise AliasConflict(f"there are {MAX_ALIASES} aliases already; delete one first")
            return alias.moved(text, by)

        return await self._change(name, version, moved)

    async def delete(self, name: str, version: Expected = None, by: str | None = None) -> Change[Alias]:
        """Take an alias away; raises `UnknownAlias`, and as `move` does."""

        def deleted(alias: Alias) -> Alias:
            if alias.recipe is None:
                raise self._unknown(name)
            return alias.moved(None, by)

        return await self._change(name, version, deleted)

    async def step_back(self, name: str, version: Expected = None, by: str | None = None) -> Change[Alias]:
        """Point an alias where it pointed before, which is a version of its own; raises as `delete` does."""

        def stepped_back(alias: Alias) -> Alias:
            if not alias.versions:
                raise self._unknown(name)
            return alias.stepped_back(by)

        return await self._change(name, version, stepped_back)

    # -- a move ----------------------------------------------------------------------------------------

    async def _change(self, name: str, version: Expected, change: Callable[[Alias], Alias]) -> Change[Alias]:
        def prepared(alias: Alias) -> AbstractAsyncContextManager[tuple[int, int]]:
            return self.warmth.ahead([] if alias.recipe is None else [self._cookbook.wanted(alias.recipe)])

        return await self._following.change(Alias(name), version, change, prepared)

    async def _follow(self, alias: Alias) -> None:
        """Let traffic meet what the alias points at, once its blend is in memory."""
        recipe = self._recipe(alias)
        if recipe is None and alias.recipe is not None:
            log.error(
                "alias %r points at %r, which this bank cannot make; it is not followed", alias.name, alias.recipe
            )
            return
        kept = self._keep(recipe)
        if kept:
            await kept.warm_up()
        if self._following.is_overtaken(alias):
            if kept:
                kept.let_go()
            return
        before = self._kept.pop(alias.name, None)
        if recipe:
            self._cookbook.aliases[alias.name] = recipe
        else:
            self._cookbook.aliases.pop(alias.name, None)
        if kept:
            self._kept[alias.name] = kept
        if before:
            before.let_go()
        log.info("alias %s: version %d, %s", alias.name, alias.version, alias.recipe or "deleted")

    def _keep(self, recipe: Recipe | Auto | None) -> PinnedBlend | None:
        """The blend that traffic is going to meet. Where each text has a t of its own, there is none to have ready."""
        return self.warmth.keep(recipe) if isinstance(recipe, Recipe) else None

    def _recipe(self, alias: Alias) -> Recipe | Auto | None:
        """What it points at, if this bank can make it."""
        if alias.recipe is None:
            return None
        try:
            return self._cookbook.wanted(alias.recipe)
        except TweenError:
            return None

    def _unknown(self, name: str) -> UnknownAlias:
        there = ", ".join(alias.name for alias in self.all()[:20]) or "none yet"
        return UnknownAlias(f"no alias {name[:MAX_NAME]!r}; aliases: {there}")
