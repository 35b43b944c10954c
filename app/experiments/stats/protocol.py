"""What an experiment fixes when it begins (a trial's protocol), and what becomes of changes to it.

Sums are folded by the window and by each metric's kind, denominator and cap. A change of those would leave what was
folded before it in the sums for good, so it is refused.

The plan and what decides may change, but group-sequential bounds hold only for a plan that was made in advance. Such a
change is an *amendment*: from then on the report judges by the confidence sequence, which holds whenever it is looked
at, and says since when and why. An amendment begins no phase: units would be drawn anew, or be counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from app.errors import ExperimentConflict
from app.experiments.experiment import Experiment
from app.experiments.stats.thompson import decisive

COUNTED_BY = ("kind", "per", "cap")
"""Fields of a metric that its sums follow from."""


class Amendment(BaseModel):
    """A change of the plan, or of what decides, after units may have met the experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float = Field(description="seconds since 1970")
    by: str | None = Field(description="who did it")
    what: str = Field(description="what was changed, from what to what", examples=["planned_units from 20000 to 5000"])
    planned_units: int | None = Field(description="the plan until then")


def check_counting(name: str, before: Experiment, after: Experiment) -> None:
    """Refuse what would corrupt the sums of an experiment that has begun; raises `ExperimentConflict`."""
    if before.window != after.window:
        raise ExperimentConflict(
            f"experiment {name!r} has begun and counts with a window of {before.window:g} s, which stays; "
            "make another experiment for another window"
        )
    now = {metric.name: metric for metric in after.metrics}
    for metric in before.metrics:
        if metric.name not in now:
            raise ExperimentConflict(
                f"experiment {name!r} has begun, so its metric {metric.name!r} stays; as secondary it decides nothing"
            )
        for field in COUNTED_BY:
            if getattr(metric, field) != getattr(now[metric.name], field):
                raise ExperimentConflict(
                    f"experiment {name!r} has begun and counts metric {metric.name!r} with {field} "
                    f"{getattr(metric, field)!r}, which stays; give the new metric another name, or make another "
                    "experiment"
                )
    known = {metric.name for metric in before.metrics}
    for metric in after.metrics:
        if metric.name not in known and metric.per in known:
            raise ExperimentConflict(
                f"experiment {name!r} has begun, and {metric.per!r} of units before now would be missing in metric "
                f"{metric.name!r}; make another experiment"
            )


def amended(before: Experiment, after: Experiment) -> str:
    """What a change amends, in words; empty if nothing."""
    if before.mode == after.mode == "bandit":
        return ""  # there is no plan, and guardrails are watched by confidence sequences anyway
    return ", ".join(_amended(before, after))


def _amended(before: Experiment, after: Experiment) -> Iterator[str]:
    fields = {field: (getattr(before, field), getattr(after, field)) for field in ("planned_units", "control", "mode")}
    fields["the deciding metric"] = (_decisive(before), _decisive(after))
    fields["arms"] = (_arms(before), _arms(after))
    recipes = {arm.name: arm.recipe for arm in after.shown}
    for arm in before.shown:
        fields[f"the recipe of arm {arm.name}"] = (arm.recipe, recipes.get(arm.name, arm.recipe))
    roles = {metric.name: metric.role for metric in after.metrics}
    for metric in before.metrics:
        fields[f"the role of {metric.name}"] = (metric.role, roles.get(metric.name))
    for field, (old, new) in fields.items():
        if old != new:
            yield f"{field} from {'none' if old is None else old} to {'none' if new is None else new}"


def _arms(experiment: Experiment) -> str:
    return "/".join(arm.name for arm in experiment.shown)


def _decisive(experiment: Experiment) -> str | None:
    metric = decisive(experiment)
    return metric.name if metric else None
