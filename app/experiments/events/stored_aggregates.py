"""How the sums of an experiment lie in Redis, and how they are read from there.

One hash holds them all, by path:

    PHASE/ARM/units, exposures, agreements, weight, x, xx, x_missing
    PHASE/ARM/hours/HOUR                   units by the hour since 1970 of their first exposure
    PHASE/ARM/metrics/METRIC/SUM           SUM is a field of `Moments`
    PHASE/ARM/days/DATE/units, DATE/y/METRIC, DATE/yy/METRIC
    0/-/uncounted/WHY                      outcomes that count in no phase and arm
"""

from __future__ import annotations

from collections.abc import Mapping

from app.experiments.events.aggregates import ArmSums, Day, Moments, PhaseSums
from app.experiments.events.aggregation import HOUR, UNCOUNTED
from app.experiments.experiment import Experiment


def read_sums(
    fields: Mapping[str, float], experiment: Experiment, shares: Mapping[int, Mapping[str, float]], now: float
) -> list[PhaseSums]:
    """The sums by phase. `shares` by phase and arm, as configured; a phase that nobody has met yet is empty."""
    metrics = [metric.name for metric in experiment.metrics]
    arms = [arm.name for arm in experiment.arms]
    phases = {number: PhaseSums(number, dict(shares[number]), {}) for number in sorted(shares)}
    for number, phase in phases.items():
        for arm in [*arms, *(name for name in shares[number] if name not in arms)]:
            phase.arms[arm] = ArmSums(metrics={metric: Moments() for metric in metrics})
    closed = now - experiment.window
    for path, amount in fields.items():
        if path.startswith(UNCOUNTED):
            continue
        first, arm, *rest = path.split("/")
        phase = phases.setdefault(int(first), PhaseSums(int(first), {}, {}))
        sums = phase.arms.setdefault(arm, ArmSums(metrics={metric: Moments() for metric in metrics}))
        match rest:
            case ["hours", hour]:
                sums.mature += round(amount) if (int(hour) + 1) * HOUR <= closed else 0
            case ["metrics", metric, name] if metric in sums.metrics:
                setattr(sums.metrics[metric], name, amount)
            case ["days", date, *what]:
                _note(phase.days.setdefault(date, {}).setdefault(arm, Day()), what, amount)
            case [("units" | "exposures" | "agreements") as name]:
                setattr(sums, name, round(amount))
            case [("x" | "xx" | "weight") as name]:  # the same for every metric
                for moments in sums.metrics.values():
                    setattr(moments, name, amount)
            case ["x_missing"]:
                for moments in sums.metrics.values():
                    moments.x_missing = round(amount)
    return [phases[number] for number in sorted(phases)]


def read_uncounted(fields: Mapping[str, float]) -> dict[str, int]:
    """Outcomes that count nowhere, by why."""
    found = {path.rpartition("/")[2]: round(amount) for path, amount in fields.items() if path.startswith(UNCOUNTED)}
    return {why: count for why, count in sorted(found.items()) if count}


def _note(day: Day, what: list[str], amount: float) -> None:
    match what:
        case ["units"]:
            day.units = round(amount)
        case ["y", metric]:
            day.y[metric] = amount
        case ["yy", metric]:
            day.yy[metric] = amount
