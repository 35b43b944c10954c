"""Errands on a real engine with two workers: they wait for callers, though not for ever, and give what they give."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from test_sweep_routes import rows

from app.main import build_engine
from app.models.bank import BankSpec
from app.serving import background_inference
from app.serving.engine import Engine
from app.settings import Settings

TEXTS = [row["text"] for row in rows(30, 40)]
RECIPE = "angry@0.4"


@pytest.fixture
def run(spec: BankSpec, redis_url: str) -> Callable[[Callable[[Engine], Awaitable[None]]], None]:
    """Run a scenario on an engine."""
    settings = Settings(workers=2, redis_url=redis_url, memory_tier_mib=16, prediction_cache=False)

    async def main(scenario: Callable[[Engine], Awaitable[None]]) -> None:
        async with AsyncExitStack() as resources:
            await scenario(await build_engine(settings, spec, resources))

    return lambda scenario: asyncio.run(main(scenario))


def test_an_errand_waits_while_anybody_is_served_until_patience_ends(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(engine: Engine) -> None:
        recipe = engine.cookbook.read(RECIPE)
        alone = await engine.errands.logits(TEXTS, recipe)  # and learns how long a piece takes
        pieces = engine.errands.pieces
        assert pieces > 1
        monkeypatch.setattr(background_inference, "PATIENCE", 10**6)
        async with engine.compute.unit():  # a caller's; the other one is idle
            waiting = asyncio.create_task(engine.errands.logits(TEXTS, recipe))
            await asyncio.sleep(0.5)
            assert engine.errands.pieces == pieces
        assert await waiting == alone and engine.errands.pieces == 2 * pieces
        monkeypatch.setattr(background_inference, "PATIENCE", 1)
        async with engine.compute.unit():
            assert await engine.errands.logits(TEXTS, recipe) == alone

    run(scenario)


def test_an_errand_beside_callers_gives_the_same_to_the_last_bit(run: Callable[..., None]) -> None:
    async def scenario(engine: Engine) -> None:
        recipe = engine.cookbook.read(RECIPE)
        alone = await engine.errands.logits(TEXTS, recipe)
        callers = [engine.predict([text], recipe) for text in TEXTS * 3]
        beside, *_ = await asyncio.gather(engine.errands.logits(TEXTS, recipe), *callers)
        assert beside == alone

    run(scenario)
