"""What is kept of an experiment: its definition now, its phases, and who changed what and when.

    draft -> running <-> paused, and from either to stopped, which is the end

A record is never changed in place: every change gives the next version of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import ExperimentConflict
from app.experiments.experiment import Experiment, Status
from app.experiments.rollout import Rollout
from app.experiments.stats.protocol import Amendment, amended, check_counting
from app.experiments.stats.thompson import shares_without

ENTRIES = 200
"""Entries of the audit trail that are kept, and phases."""
NEXT: dict[Status, tuple[Status, ...]] = {
    "draft": ("running",),
    "running": ("paused", "stopped"),
    "paused": ("running", "stopped"),
    "stopped": (),
}
DID: dict[Status, str] = {"draft": "drafted", "running": "started", "paused": "paused", "stopped": "stopped"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Part):
    """One change: what was done, and each field that it changed, before and after."""

    version: int
    at: float = Field(description="seconds since 1970")
    by: str | None = Field(description="the `X-Tween-Actor` header of who did it")
    action: str
    changes: dict[str, tuple[Any, Any]] = Field(default_factory=dict, description="by field: before, after")


class Phase(_Part):
    """The time from `began` on, during which who meets what did not change."""

    number: int
    began: float | None = Field(description="seconds since 1970; null: not running yet")
    shares: dict[str, float] = Field(description="by arm that is shown")
    era: int | None = Field(
        default=None, description="bandit: the phase since which units keep their arm; null: this one"
    )
    left_out: dict[str, str] = Field(
        default_factory=dict, description="bandit: arms that get no new units, and the guardrail that failed"
    )


class Record(_Part):
    """An experiment of this name at this version. At version 0 there has never been one; without a definition it was
    deleted, which is a version too, so that numbers of versions and phases only ever rise."""

    name: str
    version: int = 0
    definition: Experiment | None = None
    phases: tuple[Phase, ...] = ()
    audit: tuple[Entry, ...] = ()
    amendments: tuple[Amendment, ...] = Field(
        default=(), description="changes of the plan while it ran; the first stays"
    )
    rollout: Rollout | None = None
    archived: float | None = Field(default=None, description="when it was archived, seconds since 1970")
    deleted: float | None = Field(
        default=None, description="when one of this name was deleted; events from before belong to that"
    )
    file: str | None = Field(default=None, description="what a file last said of it, as a digest")
    looked: float = Field(default=0.0, description="bandit: when shares were last worked out, seconds since 1970")

    @property
    def experiment(self) -> Experiment:
        assert self.definition is not None, "there is no experiment at version 0, and none that was deleted"
        return self.definition

    @property
    def gone_since(self) -> float | None:
        """When it was deleted, seconds since 1970; 0: it has never existed; None: it exists."""
        return None if self.definition is not None else self.deleted or 0.0

    @property
    def status(self) -> Status:
        return self.experiment.status

    @property
    def phase(self) -> int:
        return self.phases[-1].number

    @property
    def era(self) -> int:
        """The phase since which people have not changed who meets what; through these, units of a bandit keep their
        arm."""
        return self.phases[-1].era or self.phase

    @property
    def left_out(self) -> Mapping[str, str]:
        """Of a bandit: arms that get no new units, and why, in a sentence."""
        return self.phases[-1].left_out

    @property
    def judged_from(self) -> int:
        """The first phase that tells about what units meet now: of a bandit, that since which people have not changed
        it; of a rollout, the present one, as those before it brought other recipes behind the alias."""
        if self.rollout is not None:
            return self.phase
        return self.era if self.experiment.mode == "bandit" else 1

    @property
    def is_guarded(self) -> bool:
        """Whether it is a running bandit with an arm that a guardrail may still leave out."""
        return (
            self.experiment.mode == "bandit"
            and self.status == "running"
            and self.has_begun
            and any(metric.role == "guardrail" for metric in self.experiment.metrics)
            and any(arm.name not in {self.experiment.control, *self.left_out} for arm in self.experiment.shown)
        )

    def is_due(self, now: float) -> bool:
        """Whether it is a bandit whose shares are to be worked out."""
        began = self.phases[-1].began
        if self.experiment.mode != "bandit" or self.status != "running" or began is None:
            return False
        return now >= max(began, self.looked) + self.experiment.period

    @property
    def ended_at(self) -> float | None:
        """When it stopped, seconds since 1970; None where it has not."""
        if self.definition is None or self.status != "stopped":
            return None
        return next((entry.at for entry in reversed(self.audit) if "status" in entry.changes), self.audit[-1].at)

    @property
    def has_begun(self) -> bool:
        """Whether units may have met it."""
        return bool(self.phases) and self.phases[-1].began is not None

    def defined(self, new: Experiment, by: str | None, action: str = "changed") -> Record:
        """The record with this definition; itself, if that is the one it has.

        A definition that does not name a status leaves it as it is, and that of a bandit which has begun its shares.
        Raises `ExperimentConflict` where the status cannot become the one it names, where the experiment has stopped,
        and where what it has counted would become wrong.
        """
        before = self.definition
        if before and self.has_begun and _goes_on(before, new):
            new = _with_shares(new, {arm.name: arm.share for arm in before.shown})
        if "status" not in new.model_fields_set:
            new = new.model_copy(update={"status": before.status if before else "draft"})
        if new == before:
            return self
        if before is None:
            if new.status not in ("draft", "running"):
                raise ExperimentConflict(f"there is no experiment {self.name!r} that could be {new.status}")
            return self._with(new, by, "started" if new.status == "running" else "drafted")
        self._check_not_archived()
        if before.status == "stopped":
            raise ExperimentConflict(
                f"experiment {self.name!r} has stopped, and what it was stays as it is; give the new one another name"
            )
        self._check_step(new.status)
        if self.has_begun:
            check_counting(self.name, before, new)
        after = self._with(new, by, action if new.status == before.status else DID[new.status])
        return after.model_copy(update={"amendments": self._amended(new, by, after.audit[-1].at)})

    def filed(self, new: Experiment, file: str, by: str | None) -> Record:
        """The record with the definition of a file; itself, if that file has said the same before, whatever was
        changed since. Raises as `defined` does."""
        if self.file == file:
            return self
        after = self.defined(new, by)
        if after is self:
            after = self._with(self.experiment, by, "confirmed")
        return after.model_copy(update={"file": file})

    def at(self, status: Status, by: str | None) -> Record:
        """The record with this status; itself, if it has that. Raises as `defined` does."""
        self._check_not_archived()
        if self.status == status:
            return self
        self._check_step(status)
        after = self._with(self.experiment.model_copy(update={"status": status}), by, DID[status])
        if self.rollout is None or self.rollout.outcome != "going" or status == "paused":
            return after
        if status == "stopped":
            rollout = self.rollout.ended("cancelled", [f"stopped by {by or 'somebody'}"])
        else:
            rollout = self.rollout.model_copy(update={"since": time.time()})  # the step is watched anew
        return after.model_copy(update={"rollout": rollout})

    def noted(self, action: str, by: str | None) -> Record:
        """The record with an entry in its trail and no other change."""
        return self._with(self.experiment, by, action)

    def rolled(self, new: Experiment, rollout: Rollout, by: str | None, action: str) -> Record:
        """The record of a rollout with what it is now, whatever it was before: one alias is rolled out many times."""
        return self._with(new, by, action).model_copy(update={"rollout": rollout, "archived": None})

    def archive(self, by: str | None) -> Record:
        """The record out of the way: with what it said, but without new events. Raises `ExperimentConflict`."""
        if self.archived is not None:
            return self
        self._check_idle("archived")
        after = self._with(self.experiment, by, "archived")
        return after.model_copy(update={"archived": after.audit[-1].at})

    def remove(self, by: str | None) -> Record:
        """What is left of an experiment that is deleted: numbers that the next one of its name goes on from, and who
        did it. Raises `ExperimentConflict`."""
        self._check_idle("deleted")
        now = time.time()
        entry = Entry(version=self.version + 1, at=now, by=by, action="deleted")
        phase = Phase(number=self.phase + 1, began=None, shares={})
        gone = Record(name=self.name, version=entry.version, phases=(phase,), audit=(entry,), deleted=now)
        return gone.model_copy(update={"file": self.file})  # what the file said is done, and not done again

    def _check_idle(self, what: str) -> None:
        if self.status in ("running", "paused"):
            raise ExperimentConflict(f"experiment {self.name!r} is {self.status}; stop it before it is {what}")

    def _check_not_archived(self) -> None:
        if self.archived is not None:
            raise ExperimentConflict(
                f"experiment {self.name!r} is archived and stays as it is; delete it to use its name again"
            )

    def reckoned(self, shares: Mapping[str, float], now: float, by: str) -> Record:
        """The record of a bandit with other shares, in a new phase of the same era; or if they are as they were, only
        with the note that somebody looked."""
        new = _with_shares(self.experiment, shares)
        if new == self.experiment:
            return self.model_copy(update={"version": self.version + 1, "looked": now})
        after = self._with(new, by, "worked out shares", now)._of_one_era(self.era, self.left_out)
        return after.model_copy(update={"looked": now})

    def without(self, failing: Mapping[str, str], by: str) -> Record:
        """The record of a bandit that gives no more units to these arms, with the sentence that says why; in a new
        phase of the same era."""
        left_out = {**self.left_out, **failing}
        new = _with_shares(self.experiment, shares_without(self.experiment, left_out))
        action = "; ".join(f"left out {arm}: {why}" for arm, why in failing.items())
        return self._with(new, by, action)._of_one_era(self.era, left_out)

    def _of_one_era(self, era: int, left_out: Mapping[str, str]) -> Record:
        """With a last phase that units do not draw anew in."""
        *past, phase = self.phases
        return self.model_copy(
            update={"phases": (*past, phase.model_copy(update={"era": era, "left_out": dict(left_out)}))}
        )

    def _check_step(self, status: Status) -> None:
        now = self.status
        if status != now and status not in NEXT[now]:
            possible = " or ".join(NEXT[now]) or "no more: this is its end"
            raise ExperimentConflict(f"experiment {self.name!r} is {now} and cannot become {status}; only {possible}")

    def _with(self, new: Experiment, by: str | None, action: str, now: float | None = None) -> Record:
        now = time.time() if now is None else now
        entry = Entry(version=self.version + 1, at=now, by=by, action=action, changes=_changes(self.definition, new))
        return self.model_copy(
            update={
                "version": entry.version,
                "definition": new,
                "phases": self._phases(new, now)[-ENTRIES:],
                "audit": (*self.audit, entry)[-ENTRIES:],
            }
        )

    def _amended(self, new: Experiment, by: str | None, now: float) -> tuple[Amendment, ...]:
        what = amended(self.experiment, new) if self.has_begun else ""
        if not what:
            return self.amendments
        fresh = Amendment(at=now, by=by, what=what, planned_units=self.experiment.planned_units)
        return (*self.amendments[:1], *self.amendments[1:][-ENTRIES:], fresh)

    def _phases(self, new: Experiment, now: float) -> tuple[Phase, ...]:
        shares = {arm.name: arm.share for arm in new.shown}
        begins = now if new.status == "running" else None
        if not self.has_begun:
            return (*self.phases[:-1], Phase(number=self.phase if self.phases else 1, began=begins, shares=shares))
        if who_meets_what(new) == who_meets_what(self.experiment):
            return self.phases
        return (*self.phases, Phase(number=self.phase + 1, began=now, shares=shares))

    def encoded(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def decoded(cls, name: str, raw: bytes) -> Record | None:
        """The record that `encoded` wrote; None if that cannot be. Fields that a newer version of the service has
        written are left out, so that pods of both can run side by side."""
        try:
            record = cls.model_validate_json(raw, extra="ignore")
        except ValidationError:
            return None
        is_one = record.definition is not None or record.deleted is not None
        return record if record.name == name and record.phases and is_one else None


def who_meets_what(experiment: Experiment) -> object:
    """What begins a new phase where it changes: other figures would be mixed with those that were counted."""
    return experiment.salt, experiment.mode, [(arm.name, arm.recipe, arm.share) for arm in experiment.shown]


def _goes_on(before: Experiment, after: Experiment) -> bool:
    """Whether a bandit goes on: units meet what they met, at most in other shares."""
    same = before.salt == after.salt and before.mode == after.mode == "bandit"
    return same and [(a.name, a.recipe) for a in before.shown] == [(a.name, a.recipe) for a in after.shown]


def _with_shares(experiment: Experiment, shares: Mapping[str, float]) -> Experiment:
    arms = [arm.model_copy(update={"share": shares.get(arm.name, arm.share)}) for arm in experiment.arms]
    return experiment.model_copy(update={"arms": arms})


def _changes(before: Experiment | None, after: Experiment) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as JSON has them."""
    if before is None:
        return {}
    old, new = (json.loads(experiment.model_dump_json()) for experiment in (before, after))
    return {field: (old[field], new[field]) for field in new if old[field] != new[field]}
