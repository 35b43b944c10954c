"""What an engine keeps warm, without HTTP around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pico
import pytest

from app.main import build_engine
from app.models.bank import BankSpec
from app.serving.engine import Engine
from app.settings import Settings


def with_engine(spec: BankSpec, scenario: Callable[[Engine], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as resources:
            settings = Settings(memory_tier_mib=1, redis_blends="never", workers=0, prediction_cache=False)
            await scenario(await build_engine(settings, spec, resources))

    asyncio.run(main())


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_a_recipe_that_is_kept_stays_warm_whatever_else_is_asked(tmp_path: Path, architecture: str) -> None:
    async def scenario(engine: Engine) -> None:
        kept = engine.cookbook.read("angry@0.5")
        await engine.blends.keep(kept)
        for number in range(40):
            await engine.predict(["late order"] * 8, engine.cookbook.read(f"polite@{number / 50 + 0.01}"))
        assert (await engine.predict(["late order"], kept)).source == "memory"
        assert engine.blends.counters()["memory"]["kept"] == 1
        engine.blends.let_go(kept)
        assert engine.blends.counters()["memory"]["kept"] == 0

    with_engine(BankSpec.from_toml(pico.write_bank(tmp_path, architecture) / "bank.toml"), scenario)


def test_where_every_slot_is_kept_others_are_mixed(spec: BankSpec) -> None:
    async def scenario(engine: Engine) -> None:
        slots = engine.blends.counters()["memory"]["slots"]
        for number in range(slots):
            await engine.blends.keep(engine.cookbook.read(f"angry@{(number + 1) / 1000}"))
        hot = engine.cookbook.read("polite@0.3")
        assert {(await engine.predict(["late order"] * 64, hot)).source for _ in range(50)} == {"mixed"}
        assert engine.blends.counters()["memory"]["evictions"] == 0

    with_engine(spec, scenario)


def test_a_member_is_kept_without_a_slot(spec: BankSpec) -> None:
    async def scenario(engine: Engine) -> None:
        member = engine.cookbook.read("angry")
        await engine.blends.keep(member)
        assert engine.blends.counters()["memory"]["blends"] == 0
        engine.blends.let_go(member)

    with_engine(spec, scenario)
