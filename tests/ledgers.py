"""Ledgers without a service around them, traffic to put into them, and what must come of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.cluster.redis_client import connect
from app.cluster.redis_headroom import Headroom
from app.cluster.redis_url import RedisUrl
from app.errors import RedisUnavailable
from app.experiments.events.aggregates import ArmSums, Day, Moments, PhaseSums
from app.experiments.events.event import Exposure, Outcome
from app.experiments.events.event_ledger import EventLedger
from app.experiments.events.ledger_store import LedgerStore
from app.experiments.events.spool import Spool
from app.experiments.experiment import Experiment

NAME = "tone"
START = 1_790_000_000.0
"""When traffic begins, seconds since 1970: a day in September 2026."""
TONE = Experiment.model_validate(
    {
        "arms": [
            {"name": "plain", "recipe": "base", "share": 0.5},
            {"name": "warm", "recipe": "polite@0.4", "share": 0.5},
            {"name": "other", "recipe": "angry@0.4", "share": 0, "shadow": True},
        ],
        "control": "plain",
        "metrics": [
            {"name": "bought", "role": "primary"},
            {"name": "clicks", "kind": "count", "cap": 5},
            {"name": "spent", "kind": "continuous", "cap": 50},
            {"name": "spent_per_click", "kind": "continuous", "per": "clicks"},
        ],
        "window": 1000,
        "status": "running",
    }
)
SHARES = {1: {"plain": 0.5, "warm": 0.5}, 2: {"plain": 0.2, "warm": 0.8}}


class Known:
    """A pod's definitions: one experiment."""

    def __init__(self) -> None:
        self.deletions: dict[str, float] = {}
        self.is_expired = False

    def names(self) -> Iterable[str]:
        return [NAME]

    def definition(self, name: str) -> Experiment | None:
        return TONE if name == NAME else None

    def deleted_at(self, name: str) -> float:
        return self.deletions.get(name, 0.0)

    def deleted(self) -> Iterable[tuple[str, int]]:
        return []

    def expired(self) -> Iterable[tuple[str, int]]:
        return [(NAME, 2)] if self.is_expired else []

    def phase(self, name: str) -> int:
        return 2

    def shares(self, name: str) -> Mapping[int, Mapping[str, float]]:
        return SHARES


@asynccontextmanager
async def ledger(
    url: str, folder: Path, mib: float = 64, headroom: Headroom | None = None
) -> AsyncIterator[EventLedger]:
    client = connect(RedisUrl.parse(url))
    made = EventLedger(LedgerStore(client.redis, "tween"), Spool(folder, int(mib * 2**20)), Known(), headroom)
    await made.start()
    try:
        yield made
    finally:
        await made.close()
        await client.aclose()


def traffic(seed: int, units: int = 60) -> list[Exposure | Outcome]:
    """Exposures and outcomes of units, some of them in two phases, in the order in which they happened."""
    chooser = random.Random(seed)
    events: list[Exposure | Outcome] = []
    for number in range(units):
        unit = f"unit-{number}-ü"
        for phase in chooser.choice([(), (1,), (2,), (1, 2)]):
            arm = chooser.choice(["plain", "warm"])
            for _ in range(chooser.choice([1, 1, 3])):
                at = START + chooser.uniform(0, 400) + 600 * (phase - 1)
                events.append(
                    Exposure(
                        id=f"e{len(events)}",
                        experiment=NAME,
                        phase=phase,
                        arm=arm,
                        unit=unit,
                        at=at,
                        propensity=SHARES[phase][arm],
                        agreed={"other": chooser.random() < 0.8},
                        covariate=chooser.choice([None, chooser.random()]),
                    )
                )
        for _ in range(chooser.choice([0, 1, 2, 9])):
            metric = chooser.choice(TONE.metrics).name
            value = chooser.choice([0.0, 1.0, 2.0, round(chooser.uniform(-3, 30), 2)])
            at = START + chooser.uniform(-100, 2500)
            events.append(Outcome(f"o{len(events)}", NAME, unit, metric, value, at))
    return sorted(events, key=lambda event: event.at)


def expected(events: Iterable[Exposure | Outcome], now: float) -> list[PhaseSums]:
    """What the sums must be, straight from their definition, unit by unit."""
    distinct = list({(type(event), event.id): event for event in events}.values())
    exposures = [event for event in distinct if isinstance(event, Exposure)]
    outcomes = [event for event in distinct if isinstance(event, Outcome)]
    phases = {
        number: PhaseSums(
            number,
            shares,
            {arm.name: ArmSums(metrics={metric.name: Moments() for metric in TONE.metrics}) for arm in TONE.arms},
        )
        for number, shares in SHARES.items()
    }
    firsts: dict[tuple[str, int], Exposure] = {}
    for event in sorted(exposures, key=lambda exposure: exposure.at):
        firsts.setdefault((event.unit, event.phase), event)
        phases[event.phase].arms[event.arm].exposures += 1
        for shadow, agreed in event.agreed.items():
            phases[event.phase].arms[shadow].exposures += 1
            phases[event.phase].arms[shadow].agreements += agreed
    for (unit, number), first in firsts.items():
        phase = phases[number]
        others = [other.at for (owner, _), other in firsts.items() if owner == unit and other is not first]
        end = min([first.at + TONE.window, *(at - 1e-9 for at in others if at > first.at)])
        start = first.at if any(at < first.at for at in others) else first.at - 60
        values = {
            metric.name: _value(metric, [o for o in outcomes if o.unit == unit and start <= o.at <= end])
            for metric in TONE.metrics
        }
        arm = phase.arms[first.arm]
        date = datetime.fromtimestamp(first.at, UTC).date().isoformat()
        day = phase.days.setdefault(date, {}).setdefault(first.arm, Day())
        arm.units += 1
        arm.mature += (first.at // 3600 + 1) * 3600 + TONE.window <= now
        day.units += 1
        for metric in TONE.metrics:
            y, x, weight = values[metric.name], first.covariate, 1 / first.propensity
            z = values[metric.per] if metric.per else 0.0
            moments = arm.metrics[metric.name]
            for name, amount in {
                "y": y, "yy": y * y, "z": z, "zz": z * z, "yz": y * z, "weight": weight,
                "weighted_y": weight * y, "weighted_yy": weight * y * y,
                **({"x_missing": 1} if x is None else {"x": x, "xx": x * x, "xy": x * y, "y_with_x": y}),
            }.items():  # fmt: skip
                setattr(moments, name, getattr(moments, name) + amount)
            if y:
                day.y[metric.name] = day.y.get(metric.name, 0.0) + y
                day.yy[metric.name] = day.yy.get(metric.name, 0.0) + y * y
    return list(phases.values())


def _value(metric: Any, outcomes: list[Outcome]) -> float:
    values = [outcome.value for outcome in outcomes if outcome.metric == metric.name]
    value = float(any(one > 0 for one in values)) if metric.kind == "binary" else sum(values)
    return value if metric.cap is None else min(value, metric.cap)


def same(found: list[PhaseSums], wanted: list[PhaseSums]) -> None:
    """Compare all of it, numbers to what adding them up in another order may change."""
    ours, theirs = (_flat({str(phase.phase): asdict(phase) for phase in phases}) for phases in (found, wanted))
    assert {path for path, amount in ours.items() if abs(amount) > 1e-6} <= set(theirs)
    assert {path: ours.get(path, 0.0) for path in theirs} == pytest.approx(theirs, rel=1e-9, abs=1e-7)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}/{name}") if isinstance(value, Mapping) else {f"{prefix}/{name}": value}
    return flat


async def tell(where: EventLedger, events: Iterable[Exposure | Outcome]) -> None:
    for event in events:
        if isinstance(event, Exposure):
            where.expose(event)
        else:
            await where.record(NAME, TONE, [event])


async def until_folded(where: EventLedger, events: Iterable[Exposure | Outcome], seconds: float = 20) -> None:
    """Wait until the sums are what they must be; fails with the difference."""
    wanted = list(events)
    for _ in range(int(seconds / 0.05)):
        await asyncio.sleep(0.05)
        try:
            same(await where.sums(NAME), expected(wanted, START + 1e6))
            return
        except (AssertionError, RedisUnavailable):
            continue  # not all of it yet, or nobody to ask
    same(await where.sums(NAME), expected(wanted, START + 1e6))


async def until_counted(pods: Iterable[EventLedger], folded: int, duplicates: int = 0) -> None:
    """Wait until pods together have folded so many events, and no more."""
    total: Counter[str] = Counter()
    for _ in range(600):
        total = sum((pod.counts for pod in pods), Counter())
        if total["folded"] + total["duplicates"] >= folded + duplicates:
            break
        await asyncio.sleep(0.05)
    assert (total["folded"], total["duplicates"]) == (folded, duplicates)
