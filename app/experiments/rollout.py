"""A new recipe behind an alias for a growing share of units, beside as many who keep the old one.

A rollout is an experiment that the service makes, `rollout.ALIAS`, with two arms of equal share, `old` and `new`. At a
step of 5 % its coverage is 10 %: half of those meet the new recipe, half are counted as its control, and everybody else
gets the old one uncounted. Coverage only grows, so that nobody who has met the new recipe goes back. The last step, to
everybody, moves the alias itself and ends the experiment.

Time alone takes no step: each also needs a guardrail metric, units of both arms whose window has closed, and a sample
ratio that is in order. Where one is missing the rollout waits, and says what for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.experiments.experiment import Experiment
from app.experiments.stats.report_summary import ENOUGH

OWN = "rollout."
"""What names begin with that the service itself makes."""
STEPS = (0.01, 0.05, 0.25, 0.5, 1.0)
HOUR = 3_600.0


class RolloutPlan(BaseModel):
    """How a rollout goes: shares of all units that meet the new recipe, and how long each step is watched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=STEPS,
        min_length=2,
        max_length=20,
        fail_fast=True,
        description="shares of units that meet the new recipe, the last one 1",
    )
    step_seconds: float = Field(default=HOUR, gt=0, le=30 * 24 * HOUR, description="how long each step is watched")
    step_units: int = Field(
        default=ENOUGH,
        ge=ENOUGH,
        le=10_000_000,
        description="least units of each arm whose window closes during a step; guardrails decide nothing on fewer",
    )

    @model_validator(mode="after")
    def _rises_to_everybody(self) -> Self:
        *first, last = self.steps
        if last != 1 or any(share > 0.5 for share in first) or list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps rise, at most to 0.5 where half of the units are the control, and end with 1")
        return self


@dataclass(frozen=True)
class Evidence:
    """What has been counted of a rollout so far."""

    failures: list[str]
    """A sentence for each guardrail that fails."""
    closed: int
    """Units of the smaller arm whose window has closed."""
    mismatch: str | None = None
    """The sentence about a sample ratio that is off."""
    silent: tuple[str, ...] = ()
    """Guardrails of which no outcome at all has come, though more of it is better."""


class Rollout(BaseModel):
    """Where a rollout is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alias: str
    old: str = Field(description="the recipe that the alias points at")
    new: str = Field(description="the recipe that it is to point at")
    experiment: str = Field(description="the experiment whose arm is promoted")
    arm: str
    plan: RolloutPlan
    step: int = Field(default=0, description="index of the present step")
    since: float = Field(description="when it began, seconds since 1970")
    closed: int = Field(default=0, description="units of the smaller arm whose window had closed when it began")
    outcome: Literal["going", "done", "rolled back", "cancelled"] = "going"
    why: list[str] = Field(default_factory=list, description="what ended it, in sentences")

    @property
    def share(self) -> float:
        """Of all units, those that meet the new recipe now."""
        return {"going": self.plan.steps[self.step], "done": 1.0}.get(self.outcome, 0.0)

    @property
    def is_at_last_watched_step(self) -> bool:
        return self.step + 2 >= len(self.plan.steps)

    def is_due(self, now: float) -> bool:
        return now >= self.since + self.plan.step_seconds

    def waits_for(self, evidence: Evidence, now: float) -> list[str]:
        """What the next step still needs, a sentence each; nothing: it may be taken."""
        found = []
        if not self.is_due(now):
            found.append(f"this step is watched for another {self.since + self.plan.step_seconds - now:,.0f} s")
        closed = max(0, evidence.closed - self.closed)
        if closed < self.plan.step_units:
            found.append(
                f"{closed:,} of {self.plan.step_units:,} units of each arm have closed their window since this step "
                "began"
            )
        found += [f"no outcome of {metric} has come to {OWN}{self.alias}" for metric in evidence.silent]
        return found + ([evidence.mismatch] if evidence.mismatch else [])

    def stepped_on(self, now: float, closed: int) -> Rollout:
        return self.model_copy(update={"step": self.step + 1, "since": now, "closed": closed})

    def ended(self, outcome: Literal["done", "rolled back", "cancelled"], why: list[str]) -> Rollout:
        return self.model_copy(update={"outcome": outcome, "why": why})

    def definition(self, source: Experiment, salt: str) -> Experiment:
        """The experiment at this step, with the metrics of the one whose arm is promoted."""
        arms = [
            {"name": name, "recipe": recipe, "share": 0.5} for name, recipe in (("old", self.old), ("new", self.new))
        ]
        taken_over = {"metrics": source.metrics, "window": source.window, "holdout": source.holdout}
        now = {"coverage": self.coverage, "salt": salt, "status": "running"}
        return Experiment.model_validate({"arms": arms, "control": "old", **taken_over, **now})

    @property
    def coverage(self) -> float:
        """Those who meet the new recipe, and as many controls."""
        return min(1.0, 2 * self.plan.steps[self.step])
