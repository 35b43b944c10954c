"""Documents that pods follow, whatever order news of them comes in."""

from __future__ import annotations

import asyncio

from app.cluster.replicated import Replicated
from app.serving.alias_history import Alias


def test_who_is_late_with_an_older_version_changes_nothing() -> None:
    first = Alias("prod").moved("base", None)
    second = first.moved("angry@0.4", None)
    seen: list[Alias] = []

    async def note(alias: Alias) -> None:
        seen.append(alias)

    async def scenario() -> None:
        following = Replicated("aliases", None, Alias.decoded, note)
        for alias in (first, second, first):
            await following.adopt(alias)
        assert following.known == {"prod": second} and seen == [first, second]

    asyncio.run(scenario())
