"""Hostile requests of every class against a real service: what `make chaos` does with 10,000, in short."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from attacks import ATTACKS, Aim, attack
from hostile_load import GROWTH_MIB, MIB, under_attack

from app.main import create_app
from app.models.bank import BankSpec
from app.settings import Settings

pytestmark = pytest.mark.service


def test_hostile_requests_cost_no_5xx_no_memory_and_no_answer(tmp_path: Path) -> None:
    seen = asyncio.run(under_attack(tmp_path, count=378, warm_up=120, polling=False, TWEEN_WORKERS="0"))
    assert not seen.faults, "\n".join(seen.faults[:20])
    assert seen.is_same, "it predicts something else than before"
    assert all(met.attacks == 83 for met in seen.met.values())
    assert (seen.bytes_after - seen.bytes_before) / MIB < GROWTH_MIB


def test_an_attack_is_told_by_its_number(spec: BankSpec) -> None:
    app = create_app(Settings(), spec, print)
    calls = [call[:2] for call in app.state.routes.listed()]
    keys = {"none": b"", "predict": b"X-API-Key: p", "manage": b"X-API-Key: m"}
    one, other = (Aim(app.openapi(), calls, keys) for _ in range(2))
    for number in range(5 * len(ATTACKS)):
        assert attack(one, 1, number) == attack(other, 1, number)
        assert attack(one, 1, number) != attack(one, 2, number)


def test_every_route_is_attacked_with_the_key_of_every_role(spec: BankSpec) -> None:
    calls = [call[:2] for call in create_app(Settings(), spec, print).state.routes.listed()]
    aim = Aim({"paths": {}}, calls, {"none": b"", "predict": b"X-API-Key: p", "manage": b"X-API-Key: m"})
    numbers = range(list(ATTACKS).index("roles"), 11_000, len(ATTACKS))
    met = {attack(aim, 1, number).why.partition(", ")[0] for number in numbers}
    assert met >= {f"{role}: {path}" for _, path in calls for role in aim.keys}
