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

Each pod remembers every document it has read. If Redis has lost one (evicted, flushed, restarted empty) or has an
older one, the pod writes its own back: aliases live as long as a pod or Redis does, and versions never go back.
Without Redis they live in this process.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

from app.cache.alias_store import AliasStore, Shelf
from app.errors import AliasConflict, BadAlias, BadRecipe, RedisAway, TweenError, UnknownAlias
from app.serving.alias_history import Alias
from app.serving.blends import Blends
from app.weights.recipe import NAME, Cookbook, Recipe, names_alias

log = logging.getLogger(__name__)

DEFAULT = "prod"
"""The alias that requests without a recipe mean, where it exists."""
WARM_SECONDS = 5.0
"""How long a switch waits for a blend: many times what a build or a fetch takes."""
HOLD_SECONDS = 2 * WARM_SECONDS
"""How long a pod keeps a blend that it was asked to have, until the move that wanted it is seen."""
CANCEL_SECONDS = 0.2
"""Between attempts to end what goes on in the background."""
CHECK_SECONDS = 0.5
"""How often the mark is compared: every pod sees a move within a second even if its message is lost."""
ANSWER_SECONDS = 0.01
"""How often the mover looks for answers."""
ATTEMPTS = 10
"""How often a move without a version is tried while others move the same alias."""
MAX_ALIASES = 100
MAX_NAME = 64
FORGET_SECONDS = 7 * 24 * 3600
"""After which a deleted alias is forgotten, its version numbers too."""


@dataclass(frozen=True)
class Move:
    """An alias after a change, whether that made it, how many pods were asked to have its blend in memory first, and
    how many had it."""

    alias: Alias
    made: bool
    asked: int
    warm: int


class Aliases:
    """The aliases of a service, as this pod knows them."""

    def __init__(self, cookbook: Cookbook, blends: Blends, store: AliasStore | None) -> None:
        self._cookbook = cookbook
        self._blends = blends
        self._store = store
        self._pod = uuid.uuid4().hex
        self._known: dict[str, Alias] = {}
        self._kept: dict[str, _Kept] = {}
        self._read: Shelf | None = None
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def shared(self) -> bool:
        """Whether other pods see them."""
        return self._store is not None

    async def start(self) -> None:
        """Learn what aliases there are and warm up for them; from then on, follow them."""
        if self._store is None:
            return
        await self._check(self._store)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._spawn(self._watch(self._store))
        self._spawn(self._listen(self._store))

    async def close(self) -> None:
        pending = set(self._tasks)
        while pending:
            # Again and again: a connection that is being made swallows the first of them.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)

    # -- what is asked of them -------------------------------------------------------------------------

    def all(self) -> list[Alias]:
        """All aliases, by name."""
        return [alias for _, alias in sorted(self._known.items()) if alias.recipe is not None]

    def get(self, name: str) -> Alias:
        """One alias; raises `UnknownAlias`."""
        alias = self._known.get(name)
        if alias is None or alias.recipe is None:
            raise self._unknown(name)
        return alias

    def key(self, alias: Alias) -> str | None:
        """The key of the blend that it points at; None if this bank cannot make it."""
        recipe = self._recipe(alias)
        return None if recipe is None else self._blends.key(recipe)

    async def move(self, name: str, recipe: object, version: int | None = None, by: str | None = None) -> Move:
        """Point an alias at a recipe, on every pod, and make it if there is none of that name.

        With a `version`, only if it is at that one (0: if it does not exist), else `AliasConflict`. Raises `BadAlias`
        for an impossible name, what the cookbook raises for the recipe, and `RedisAway`.
        """
        if len(name) > MAX_NAME or not NAME.fullmatch(name):
            raise BadAlias(
                f"an alias's name has letters, digits, _ and -, {MAX_NAME} at most, and does not begin with -"
            )
        if names_alias(recipe):
            raise BadRecipe("an alias points at a recipe, not at another alias; write the recipe itself")
        text = self._cookbook.read(recipe).text

        def moved(alias: Alias) -> Alias:
            if alias.recipe is None and len(self.all()) >= MAX_ALIASES:
                raise AliasConflict(f"there are {MAX_ALIASES} aliases already; delete one first")
            return alias.moved(text, by)

        return await self._change(name, version, moved)

    async def delete(self, name: str, version: int | None = None, by: str | None = None) -> Move:
        """Take an alias away; raises `UnknownAlias`, and as `move` does."""

        def deleted(alias: Alias) -> Alias:
            if alias.recipe is None:
                raise self._unknown(name)
            return alias.moved(None, by)

        return await self._change(name, version, deleted)

    async def step_back(self, name: str, version: int | None = None, by: str | None = None) -> Move:
        """Point an alias where it pointed before, which is a version of its own; raises as `delete` does."""

        def stepped_back(alias: Alias) -> Alias:
            if not alias.versions:
                raise self._unknown(name)
            return alias.stepped_back(by)

        return await self._change(name, version, stepped_back)

    # -- a move ----------------------------------------------------------------------------------------

    async def _change(self, name: str, version: int | None, change: Callable[[Alias], Alias]) -> Move:
        for _ in range(ATTEMPTS):
            document, before = await self._newest(name)
            _check_version(before, version)
            after = change(before)
            if after is before:
                return Move(before, False, 0, 0)
            recipe = None if after.recipe is None else self._cookbook.read(after.recipe)
            kept = None if recipe is None else _Kept(self._blends, recipe)
            try:
                asked, warm = await self._warm_everywhere(kept) if kept else (0, 0)
                if await self._replace(document, before, after):
                    await self._adopt(after)
                    return Move(after, before.recipe is None, asked, warm)
            finally:
                if kept:
                    kept.let_go()
        raise AliasConflict(f"alias {name!r} is moved by others again and again; try later")

    async def _newest(self, name: str) -> tuple[bytes | None, Alias]:
        """The document in Redis, and the newest that is known of the alias there or here."""
        mine = self._known.get(name, Alias(name))
        if self._store is None:
            return None, mine
        document = (await self._store.read()).documents.get(name)
        theirs = Alias.decoded(name, document) if document else None
        return document, theirs if theirs and theirs.version >= mine.version else mine

    async def _replace(self, document: bytes | None, before: Alias, after: Alias) -> bool:
        """The move itself; False if somebody was faster."""
        if self._store is None:
            return self._known.get(after.name, Alias(after.name)) == before
        return await self._store.swap(after.name, document, after.encoded())

    async def _warm_everywhere(self, kept: _Kept) -> tuple[int, int]:
        """Have the blend in memory on this pod and on all that listen; gives how many were asked and how many have it.

        Raises what this pod's build raises.
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

    # -- following what all pods agreed on -------------------------------------------------------------

    async def _watch(self, store: AliasStore) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._news.wait()
            self._news.clear()
            await self._check(store)

    async def _check(self, store: AliasStore) -> None:
        """Compare the mark, and where it differs, what stands behind it."""
        try:
            if self._read is None or await store.mark() != self._read.mark:
                self._read = await self._compare(store, await store.read())
        except RedisAway:
            log.debug("aliases: redis is away")
        except Exception:
            log.exception("aliases: the check failed")  # and is tried again: a pod must not go deaf

    async def _compare(self, store: AliasStore, shelf: Shelf) -> Shelf:
        """Adopt what is newer in Redis, and write back what it has lost; gives what was read."""
        theirs = {name: Alias.decoded(name, document) for name, document in shelf.documents.items()}
        for name in {*theirs, *self._known}:
            other, mine = theirs.get(name), self._known.get(name)
            newest = other if other and (mine is None or other.version >= mine.version) else mine
            if newest is None:
                log.warning("aliases: the document of %r in redis is not one of ours", name)
            elif _is_forgotten(newest):
                await store.swap(name, shelf.documents.get(name), None)
                self._known.pop(name, None)
            elif newest is mine:
                log.warning("aliases: redis has lost version %d of %r; writing it back", mine.version, name)
                await store.swap(name, shelf.documents.get(name), mine.encoded())
            elif newest != mine:
                self._spawn(self._adopt(newest))
        return shelf

    async def _adopt(self, alias: Alias) -> None:
        """Let traffic meet what the alias points at, once its blend is in memory."""
        self._known[alias.name] = alias
        recipe = self._recipe(alias)
        if recipe is None and alias.recipe is not None:
            log.error(
                "alias %r points at %r, which this bank cannot make; it is not followed", alias.name, alias.recipe
            )
            return
        kept = _Kept(self._blends, recipe) if recipe else None
        if kept:
            await self._warm_up(kept)
        if self._known[alias.name] is not alias:  # another version has overtaken this one
            if kept:
                kept.let_go()
            return
        before = self._kept.pop(alias.name, None)
        if kept:
            self._cookbook.aliases[alias.name] = kept.recipe
            self._kept[alias.name] = kept
        else:
            self._cookbook.aliases.pop(alias.name, None)
        if before:
            before.let_go()
        log.info("alias %s: version %d, %s", alias.name, alias.version, alias.recipe or "deleted")

    async def _listen(self, store: AliasStore) -> None:
        def asked(ticket: str, text: str) -> None:
            self._spawn(self._prepare(store, ticket, text))

        while True:
            try:
                await store.listen(self._news.set, asked)
            except RedisAway:
                log.debug("aliases: redis is away")
            except Exception:
                log.exception("aliases: listening failed")  # and goes on: messages are hints, but quick ones
            await asyncio.sleep(CHECK_SECONDS)

    async def _prepare(self, store: AliasStore, ticket: str, text: str) -> None:
        """Have a blend in memory that an alias is about to point at, and say so."""
        with suppress(RedisAway):
            try:
                kept = _Kept(self._blends, self._cookbook.read(text))
            except TweenError:
                await store.answer(ticket, self._pod, False)
                return
            try:
                await store.answer(ticket, self._pod, await self._warm_up(kept))
                await asyncio.sleep(HOLD_SECONDS)
            finally:
                kept.let_go()

    async def _warm_up(self, kept: _Kept) -> bool:
        """Whether the blend is in memory, after a wait; never raises."""
        try:
            warm = await kept.is_warm()
        except Exception:
            # Whatever it is, the pod that moves the alias waits for a yes or no.
            log.exception("aliases: the blend of %s cannot be made", kept.recipe.text)
            return False
        if not warm:
            log.warning("aliases: the blend of %s is not in memory after %.0f s", kept.recipe.text, WARM_SECONDS)
        return warm

    def _recipe(self, alias: Alias) -> Recipe | None:
        """What it points at, if this bank can make it."""
        if alias.recipe is None:
            return None
        try:
            return self._cookbook.read(alias.recipe)
        except TweenError:
            return None

    def _unknown(self, name: str) -> UnknownAlias:
        there = ", ".join(alias.name for alias in self.all()[:20]) or "none yet"
        return UnknownAlias(f"no alias {name[:MAX_NAME]!r}; aliases: {there}")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Kept:
    """A recipe whose blend is being brought into memory and stays there until `let_go`."""

    def __init__(self, blends: Blends, recipe: Recipe) -> None:
        self.recipe = recipe
        self._blends = blends
        self._keeping = asyncio.create_task(blends.keep(recipe))

    async def is_warm(self) -> bool:
        """Whether it is in memory, after `WARM_SECONDS` at most; raises what its build raised."""
        await asyncio.wait([self._keeping], timeout=WARM_SECONDS)
        if self._keeping.done():
            self._keeping.result()
        return self._keeping.done()

    def let_go(self) -> None:
        if not self._keeping.done():
            self._keeping.cancel()
        elif not self._keeping.cancelled() and self._keeping.exception() is None:
            self._blends.let_go(self.recipe)


def _check_version(alias: Alias, version: int | None) -> None:
    if version is None or version == alias.version or (version == 0 and alias.recipe is None):
        return
    if alias.recipe is None:
        raise AliasConflict(
            f"alias {alias.name!r} does not exist, so it is not at version {version}; 0 stands for that"
        )
    raise AliasConflict(
        f"alias {alias.name!r} is at version {alias.version}, not {version}; look at it and decide again"
    )


def _is_forgotten(alias: Alias) -> bool:
    return alias.recipe is None and time.time() - alias.versions[-1].changed > FORGET_SECONDS
