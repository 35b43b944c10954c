"""Blends in memory before traffic meets them: on this pod, and on all that listen."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from app.cluster.document_store import DocumentStore
from app.errors import RedisUnavailable, TweenError
from app.serving.blend_provider import BlendProvider
from app.weights.auto_recipe import Auto
from app.weights.recipe import Cookbook, Recipe

log = logging.getLogger(__name__)

WARM_SECONDS = 5.0
"""How long a change waits for a blend: many times what a build or a fetch takes."""
HOLD_SECONDS = 2 * WARM_SECONDS
"""How long a pod keeps a blend that it was asked to have, until the change that wanted it is seen."""
ANSWER_SECONDS = 0.01
"""How often whoever asked looks for answers."""


class PinnedBlend:
    """A recipe whose blend is being brought into memory and stays there until `let_go`."""

    def __init__(self, blends: BlendProvider, recipe: Recipe) -> None:
        self.recipe = recipe
        self._blends = blends
        self._keeping = asyncio.create_task(blends.keep(recipe))

    async def is_warm(self) -> bool:
        """Whether it is in memory, after `WARM_SECONDS` at most; raises what its build raised."""
        await asyncio.wait([self._keeping], timeout=WARM_SECONDS)
        if self._keeping.done():
            self._keeping.result()
        return self._keeping.done()

    async def warm_up(self) -> bool:
        """Whether the blend is in memory, after a wait; never raises."""
        try:
            warm = await self.is_warm()
        except Exception:
            # Whatever it is, the pod that makes the change waits for a yes or no.
            log.exception("the blend of %s cannot be made", self.recipe.text)
            return False
        if not warm:
            log.warning("the blend of %s is not in memory after %.0f s", self.recipe.text, WARM_SECONDS)
        return warm

    def let_go(self) -> None:
        if not self._keeping.done():
            self._keeping.cancel()
        elif not self._keeping.cancelled() and self._keeping.exception() is None:
            self._blends.let_go(self.recipe)


class Prewarm:
    """Asks other pods to have a blend in memory, over the store of the aliases, and answers when others ask."""

    def __init__(self, cookbook: Cookbook, blends: BlendProvider, store: DocumentStore | None) -> None:
        self._cookbook = cookbook
        self._blends = blends
        self._store = store
        self._pod = uuid.uuid4().hex

    def keep(self, recipe: Recipe) -> PinnedBlend:
        return PinnedBlend(self._blends, recipe)

    @asynccontextmanager
    async def ahead(self, recipes: Iterable[Recipe | Auto]) -> AsyncIterator[tuple[int, int]]:
        """Have the blends of recipes in memory on every pod before a change, and here until it is made. Gives how many
        pods were asked, and how many have all of them. A recipe with a t for each text has no blend to prepare."""
        kept = [self.keep(recipe) for recipe in {*recipes} if isinstance(recipe, Recipe)]
        try:
            pods = await asyncio.gather(*(self.everywhere(one) for one in kept))
            yield max((asked for asked, _ in pods), default=0), min((warm for _, warm in pods), default=0)
        finally:
            for one in kept:
                one.let_go()

    async def everywhere(self, kept: PinnedBlend) -> tuple[int, int]:
        """Have the blend in memory on this pod and on all that listen; gives how many were asked and how many have it.

        Raises what this pod's build raises, and `RedisUnavailable`.
        """
        if self._store is None:
            return 1, int(await kept.is_warm())
        ticket = uuid.uuid4().hex
        deadline = time.monotonic() + WARM_SECONDS
        asked = await self._store.ask(ticket, kept.recipe.text)
        await kept.is_warm()
        answers = await self._store.answers(ticket)
        while len(answers) < asked and time.monotonic() < deadline:
            await asyncio.sleep(ANSWER_SECONDS)
            answers = await self._store.answers(ticket)
        return asked, sum(answers)

    async def prepare(self, ticket: str, text: str) -> None:
        """Have a blend in memory that somebody is about to point at, and say so."""
        assert self._store is not None
        with suppress(RedisUnavailable):
            try:
                kept = self.keep(self._cookbook.read(text))
            except TweenError:
                await self._store.answer(ticket, self._pod, False)
                return
            try:
                await self._store.answer(ticket, self._pod, await kept.warm_up())
                await asyncio.sleep(HOLD_SECONDS)
            finally:
                kept.let_go()
