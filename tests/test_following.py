"""Documents that pods follow and change, whatever order news of them comes in; and background tasks that end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from app.cluster import cancel
from app.cluster.cancel import cancel_all
from app.cluster.replicated import ATTEMPTS, Replicated
from app.errors import AliasConflict
from app.serving.alias_history import Alias


async def ignore(alias: Alias) -> None: ...


def aliases() -> Replicated[Alias]:
    return Replicated("aliases", None, Alias.decoded, ignore, AliasConflict, "alias")


def test_who_is_late_with_an_older_version_changes_nothing() -> None:
    first = Alias("prod").moved("base", None)
    second = first.moved("angry@0.4", None)
    seen: list[Alias] = []

    async def note(alias: Alias) -> None:
        seen.append(alias)

    async def scenario() -> None:
        following = Replicated("aliases", None, Alias.decoded, note, AliasConflict, "alias")
        for alias in (first, second, first):
            await following.adopt(alias)
        assert following.known == {"prod": second} and seen == [first, second]

    asyncio.run(scenario())


def test_a_change_starts_again_from_what_another_has_made_of_it() -> None:
    async def scenario() -> None:
        following, tries = aliases(), []

        def moved(alias: Alias) -> Alias:
            tries.append(alias.version)
            if len(tries) == 1:
                following.known["prod"] = Alias("prod").moved("base", "another")
            return alias.moved("angry@0.4", "me")

        change = await following.change(Alias("prod"), None, moved)
        assert tries == [0, 1] and not change.created
        assert [version.by for version in following.known["prod"].versions] == ["another", "me"]

    asyncio.run(scenario())


def test_a_change_that_always_comes_too_late_is_given_up() -> None:
    async def scenario() -> None:
        following, tries = aliases(), []

        def moved(alias: Alias) -> Alias:
            tries.append(alias.version)
            following.known["prod"] = alias.moved(f"angry@0.{alias.version % 9}", "another")
            return alias.moved("base", "me")

        with pytest.raises(AliasConflict, match="alias 'prod' is changed by others again and again; try later"):
            await following.change(Alias("prod"), None, moved)
        assert len(tries) == ATTEMPTS

    asyncio.run(scenario())


def test_tasks_that_swallow_a_cancellation_end_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "CANCEL_SECONDS", 0.01)

    async def stubborn(times: int) -> None:
        for _ in range(times):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def scenario() -> None:
        tasks = [asyncio.create_task(stubborn(times)) for times in (0, 1, 3)]
        await asyncio.sleep(0)
        await asyncio.wait_for(cancel_all([*tasks, asyncio.create_task(asyncio.sleep(0))]), 10)
        assert all(task.cancelled() for task in tasks)
        await cancel_all([])

    asyncio.run(scenario())
