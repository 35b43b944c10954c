"""From events to what they mean: a record for each unit, and what the record adds to its arm's sums.

A unit's record holds everything that its sums follow from, so the order in which events arrive does not matter:

- Its arm in a phase is that of its earliest exposure there, and so are its propensity and covariate. Further exposures
  are only counted.
- An outcome belongs to the phase that the unit had met last before it, and counts there if it falls into the window
  after the unit's first exposure in that phase. One that lies up to `SKEW` before the unit's first exposure of all
  belongs to that: the clock of whoever posted it may be slow. Others count nowhere, and are counted by why.
- Its value of a metric is the sum of its outcomes (binary: 1 if any is above 0), at most the metric's cap.

A unit that has not been met yet has a record too: its outcomes wait for the exposure, which may come later by another
way. After so many outcomes a unit's record takes no more of them: nobody does that much, it is a bot.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from app.experiments.events.event import Event, Exposure, Outcome
from app.experiments.experiment import Experiment

MOST_OUTCOMES = 1_000
HOUR = 3_600
SKEW = 60.0
"""Seconds that an outcome may lie before its unit's first exposure and count all the same."""
UNCOUNTED = "0/-/uncounted"
"""Where sums have the outcomes that count nowhere, by why: a phase and an arm that no experiment has."""

Why = Literal["not met", "before exposure", "after window", "too many"]

Sums = dict[str, float]
"""By path, such as `1/warm/units`; what the paths mean is in `aggregates.py`."""


@dataclass
class UnitPhase:
    """A unit in one phase: its first exposure, and how many there were."""

    id: str
    at: float
    arm: str
    propensity: float
    covariate: float | None
    exposures: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """By metric; those that are 0 are left out."""


@dataclass
class UnitRecord:
    """What is known of one unit."""

    events: int = 0
    """Folded so far: no two states of a record are equal."""
    meetings: dict[int, UnitPhase] = field(default_factory=dict)
    outcomes: list[tuple[float, str, float]] = field(default_factory=list)
    """Time, metric, value."""
    surplus: int = 0
    """Outcomes beyond the most that are kept."""
    uncounted: dict[Why, int] = field(default_factory=dict)
    """Outcomes that count nowhere, by why."""

    def encoded(self) -> str:
        meetings = {
            phase: [m.id, m.at, m.arm, m.propensity, m.covariate, m.exposures, m.values]
            for phase, m in self.meetings.items()
        }
        # Versions before `uncounted` read records of four parts, and may still run beside this one.
        parts = [self.events, meetings, self.outcomes, self.surplus, *([self.uncounted] if self.uncounted else [])]
        return json.dumps(parts, separators=(",", ":"))

    @classmethod
    def decoded(cls, raw: str | bytes) -> UnitRecord:
        events, meetings, outcomes, surplus, *uncounted = json.loads(raw)
        return cls(
            events,
            {int(phase): UnitPhase(*parts) for phase, parts in meetings.items()},
            [(at, metric, value) for at, metric, value in outcomes],
            surplus,
            *uncounted,
        )


def fold(record: UnitRecord, events: Iterable[Event], experiment: Experiment) -> Sums:
    """Take events of one unit into its record; gives what that adds to the sums."""
    before = contribution(record, experiment)
    added: Sums = {}
    for event in events:
        record.events += 1
        if isinstance(event.what, Exposure):
            _meet(record, event.what)
            _add(added, _exposed(event.what))
        else:
            _keep(record, event.what)
    _settle(record, experiment)
    _add(added, contribution(record, experiment))
    _add(added, {path: -amount for path, amount in before.items()})
    return {path: amount for path, amount in added.items() if amount}


def contribution(record: UnitRecord, experiment: Experiment) -> Sums:
    """What a unit adds to the sums over units."""
    sums: Sums = {f"{UNCOUNTED}/{why}": count for why, count in record.uncounted.items()}
    for phase, meeting in record.meetings.items():
        day = datetime.fromtimestamp(meeting.at, UTC).date().isoformat()
        x, weight = meeting.covariate, 1 / meeting.propensity
        arm: Sums = {"units": 1, f"hours/{int(meeting.at // HOUR)}": 1, f"days/{day}/units": 1, "weight": weight}
        arm |= {"x_missing": 1} if x is None else {"x": x, "xx": x * x}
        for metric in experiment.metrics:
            y = meeting.values.get(metric.name, 0.0)
            z = meeting.values.get(metric.per, 0.0) if metric.per else 0.0
            moments = {"y": y, "yy": y * y, "z": z, "zz": z * z, "yz": y * z}
            moments |= {"weighted_y": weight * y, "weighted_yy": weight * y * y}
            if x is not None:
                moments |= {"xy": x * y, "y_with_x": y}
            arm |= {f"metrics/{metric.name}/{name}": amount for name, amount in moments.items()}
            arm |= {f"days/{day}/y/{metric.name}": y, f"days/{day}/yy/{metric.name}": y * y}
        sums |= {f"{phase}/{meeting.arm}/{path}": amount for path, amount in arm.items() if amount}
    return sums


def _exposed(exposure: Exposure) -> Sums:
    """What each exposure adds, be it the unit's first or not."""
    sums: Sums = {f"{exposure.phase}/{exposure.arm}/exposures": 1}
    for shadow, agreed in exposure.agreed.items():
        sums[f"{exposure.phase}/{shadow}/exposures"] = 1
        sums[f"{exposure.phase}/{shadow}/agreements"] = int(agreed)
    return sums


def _meet(record: UnitRecord, new: Exposure) -> None:
    known = record.meetings.get(new.phase)
    if known is None or (new.at, new.id) < (known.at, known.id):
        count = known.exposures if known else 0
        known = UnitPhase(new.id, new.at, new.arm, new.propensity, new.covariate, count)
        record.meetings[new.phase] = known
    known.exposures += 1


def _keep(record: UnitRecord, outcome: Outcome) -> None:
    if len(record.outcomes) < MOST_OUTCOMES:
        record.outcomes.append((outcome.at, outcome.metric, outcome.value))
    else:
        record.surplus += 1


def _settle(record: UnitRecord, experiment: Experiment) -> None:
    """Work out what the unit did in each phase."""
    found: dict[int, dict[str, list[float]]] = {phase: {} for phase in record.meetings}
    uncounted: Counter[Why] = Counter()
    for at, metric, value in record.outcomes:
        phase, why = _phase_of(record, at, experiment.window)
        if why is None:
            found[phase].setdefault(metric, []).append(value)
        else:
            uncounted[why] += 1
    if record.surplus:
        uncounted["too many"] = record.surplus
    record.uncounted = dict(uncounted)
    for phase, meeting in record.meetings.items():
        meeting.values = {}
        for definition in experiment.metrics:
            values = sorted(found[phase].get(definition.name, []))  # the same sum in whatever order they came
            value = float(any(one > 0 for one in values)) if definition.kind == "binary" else sum(values)
            if definition.cap is not None:
                value = min(value, definition.cap)
            if value:
                meeting.values[definition.name] = value


def _phase_of(record: UnitRecord, at: float, window: float) -> tuple[int, Why | None]:
    """The phase that an outcome at this time counts in, or why it counts in none."""
    met = sorted((meeting.at, phase) for phase, meeting in record.meetings.items())
    if not met:
        return 0, "not met"
    if at < met[0][0] - SKEW:
        return 0, "before exposure"
    first, phase = max((one for one in met if one[0] <= at), default=met[0])
    return phase, None if at <= first + window else "after window"


def _add(sums: Sums, more: Sums) -> None:
    for path, amount in more.items():
        sums[path] = sums.get(path, 0.0) + amount
