"""Which arm a unit meets: the same on every pod, with nothing to look up.

Everything follows from one number, which is uniform in 0..1 and says nothing about itself under another salt:

    u(salt, unit) = the first 53 bits of BLAKE2b-512(salt ":" unit, in UTF-8), read as a fraction

so that every language with doubles gets the same number. Several salts ask independent questions of a unit:

    tween/holdout     whether no experiment may touch it; the same salt for all, so it is out of all of them
    layer/LAYER       where it lies in a layer: experiments of one layer hold ranges that do not meet
    SALT/in           whether it is in: u < coverage, so a coverage that grows adds units and moves none
    SALT/arm          which arm it meets, by the arms' shares one after another

With a single hash and ranges of coverage times share, growing from 10 to 50 % moves half of those who are in to
another arm. A change of the shares themselves must move units. It begins a new phase, whose arms are drawn anew
(`SALT/2/arm` and so on), so that no phase mixes units that came under different shares. Where a bandit changes them,
units that were there keep their first draw, with its phase (`sticky_assignment.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from app.errors import BadUnit
from app.experiments.experiment import Experiment

HOLDOUT_SALT = "tween/holdout"
BITS = 53
"""Of a double: more would round, the highest values up to 1."""
MAX_UNIT = 256

Reason = Literal[
    "assigned",
    "override",
    "no unit",
    "draft",
    "paused",
    "stopped",
    "not yet",
    "holdout",
    "layer",
    "targeting",
    "coverage",
]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm that a request meets, and why. Only `assigned` is an exposure: elsewhere nothing was drawn by lot."""

    experiment: str
    phase: int
    arm: str
    propensity: float
    """The probability with which the lot gives this arm; 1 where none was drawn."""
    reason: Reason

    @property
    def counts(self) -> bool:
        return self.reason == "assigned"

    def encoded(self) -> str:
        """What was drawn by lot, as text."""
        return json.dumps([self.phase, self.arm, self.propensity], separators=(",", ":"))

    def decoded(self, draw: str) -> Assignment:
        """This assignment with the draw that `encoded` wrote."""
        phase, arm, propensity = json.loads(draw)
        return replace(self, phase=phase, arm=arm, propensity=propensity)


def u(salt: str, unit: str) -> float:
    """A number in [0, 1) that is the unit's under this salt."""
    digest = hashlib.blake2b(f"{salt}:{unit}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - BITS)) / (1 << BITS)


def assign(
    name: str,
    experiment: Experiment,
    phase: int,
    unit: str | None,
    attributes: Mapping[str, str] | None = None,
    now: float | None = None,
) -> Assignment:
    """The arm that a unit meets in a phase of an experiment (the first is 1); control where it is not in.

    Raises `BadUnit` for what can be nobody's name.
    """
    if unit is not None:
        check_unit(unit)
    if unit in experiment.overrides and experiment.status != "stopped":
        return Assignment(name, phase, experiment.overrides[unit], 1.0, "override")
    reason = why_not(name, experiment, unit, attributes or {}, time.time() if now is None else now)
    if reason is not None or unit is None:
        return Assignment(name, phase, experiment.control, 1.0, reason or "no unit")
    return _draw(name, experiment, phase, u(arm_salt(name, experiment, phase), unit))


def why_not(
    name: str, experiment: Experiment, unit: str | None, attributes: Mapping[str, str], now: float
) -> Reason | None:
    """The first reason for which a unit is not in; None if it is."""
    if experiment.status != "running":
        return experiment.status
    if experiment.start is not None and now < experiment.start:
        return "not yet"
    if experiment.stop is not None and now >= experiment.stop:
        return "stopped"
    if unit is None:
        return "no unit"
    if any(attributes.get(attribute) not in values for attribute, values in experiment.targeting.items()):
        return "targeting"
    return _outside(name, experiment, unit)


def can_be_drawn(name: str, experiment: Experiment, unit: str) -> bool:
    """Whether some request of this unit would be drawn an arm, as the experiment is defined now."""
    return _outside(name, experiment, unit) is None


def _outside(name: str, experiment: Experiment, unit: str) -> Reason | None:
    """What the hash alone says."""
    if experiment.holdout and u(HOLDOUT_SALT, unit) < experiment.holdout:
        return "holdout"
    layer = experiment.layer
    if layer is not None and not layer.low <= u(f"layer/{layer.name}", unit) < layer.high:
        return "layer"
    if experiment.coverage < 1 and u(f"{salt_of(name, experiment)}/in", unit) >= experiment.coverage:
        return "coverage"
    return None


def salt_of(name: str, experiment: Experiment) -> str:
    return name if experiment.salt is None else experiment.salt


def arm_salt(name: str, experiment: Experiment, phase: int) -> str:
    """What arms are drawn with; another one in every phase, while who is in stays as it is."""
    salt = salt_of(name, experiment)
    return f"{salt}/arm" if phase == 1 else f"{salt}/{phase}/arm"


def check_unit(unit: str) -> None:
    """Raises `BadUnit` for what can be nobody's name."""
    if not unit or len(unit) > MAX_UNIT:
        raise BadUnit(
            f"a unit has 1 to {MAX_UNIT} characters, not {len(unit)}; it is a customer's or conversation's id"
        )
    try:
        unit.encode()
    except UnicodeEncodeError:
        raise BadUnit("the unit is not valid Unicode: it holds a lone surrogate") from None


def _draw(name: str, experiment: Experiment, phase: int, lot: float) -> Assignment:
    """The arm whose part of 0..1 the lot falls into."""
    possible = [arm for arm in experiment.shown if arm.share]
    ends = accumulate(arm.share for arm in possible)
    # Shares that add up to a little less than 1 leave a lot that no arm holds: it is the last one's.
    arm = next((arm for arm, end in zip(possible, ends, strict=True) if lot < end), possible[-1])
    return Assignment(name, phase, arm.name, arm.share, "assigned")
