"""Promotion: an arm's recipe behind an alias, at once or step by step.

A rollout lies in the record of its experiment, so whatever pod looks at it can take the next step, in one
compare-and-set. One does, the one that holds a lease of a few seconds; when it dies, another goes on.

Each second it asks the guardrails. Where one fails, the experiment stops, which gives the old recipe to everybody on
every pod: the alias itself has not moved yet. A report that cannot be had lets no step be taken, nor does one that has
too little to say (`Rollout.waits_for`). When somebody else moves the alias meanwhile, the rollout ends and what they
did stands.

An arm that its report speaks against is promoted only by force, and the audit says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from app.cluster.document_store import DocumentStore
from app.cluster.leader_loop import run_as_leader
from app.cluster.precondition import Expected
from app.cluster.replicated import Change
from app.errors import AliasConflict, ExperimentConflict, RedisUnavailable, UnknownExperiment
from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment_registry import ExperimentRegistry
from app.experiments.record import Record
from app.experiments.rollout import OWN, Evidence, Rollout, RolloutPlan
from app.experiments.stats import report_builder
from app.serving.alias_history import Alias
from app.serving.aliases import Aliases

log = logging.getLogger(__name__)

ACTOR = "rollout"


class Judge(Protocol):
    """Says what was counted; may raise where nobody can tell."""

    async def evidence(self, name: str) -> Evidence:
        """On a rollout, by the name of its experiment."""

    async def objections(self, name: str, arm: str) -> list[str]:
        """What an experiment's report says against one of its arms, in sentences."""


class Rollouts:
    """Brings arms behind aliases."""

    def __init__(
        self,
        experiments: ExperimentRegistry,
        aliases: Aliases,
        store: DocumentStore | None,
        judge: Judge,
    ) -> None:
        self.judge = judge
        self._experiments = experiments
        self._aliases = aliases
        self._store = store

    async def promote(
        self,
        name: str,
        arm: str,
        alias: str,
        by: str | None = None,
        force: bool = False,
        version: Expected = None,
    ) -> Change[Alias]:
        """Point the alias at the arm's recipe, on every pod at once; raises as `Aliases.move` does, and
        `ExperimentConflict` where the report speaks against it and no `force` is used, or the experiment is at another
        `version`."""
        self._experiments.check(name, version)
        recipe = self._recipe(name, arm)
        against = await self._against(name, arm, force)
        move = await self._aliases.move(alias, recipe, by=by)
        await self._experiments.note(name, f"promoted arm {arm!r} to @{alias}{against}", by)
        return move

    async def _against(self, name: str, arm: str, force: bool) -> str:
        """What is written down of what the report says against an arm, if that is overruled."""
        try:
            against = await self.judge.objections(name, arm)
        except RedisUnavailable as reason:
            if not force:
                raise
            against = [f"the report could not be had: {reason}"]
        if against and not force:
            raise ExperimentConflict(
                f"the report of {name!r} speaks against arm {arm!r}: {' '.join(against)} To do it all the same, send "
                "'force': true"
            )
        return f" by force against: {' '.join(against)}" if against else ""

    async def begin(
        self,
        name: str,
        arm: str,
        alias: str,
        plan: RolloutPlan,
        by: str | None = None,
        force: bool = False,
        version: Expected = None,
    ) -> Record:
        """Begin to move an alias that exists, step by step; gives the experiment that does it. Raises as `promote`
        does, and `ExperimentConflict` where there is no guardrail metric that could stop it."""
        self._experiments.check(name, version)
        recipe = self._recipe(name, arm)
        now = self._aliases.get(alias).recipe
        assert now is not None
        if now == recipe:
            raise ExperimentConflict(f"alias {alias!r} points at {recipe!r} already")
        rollout = Rollout(alias=alias, old=now, new=recipe, experiment=name, arm=arm, plan=plan, since=time.time())
        source = self._experiments.get(name).experiment
        if not any(metric.role == "guardrail" for metric in source.metrics):
            raise ExperimentConflict(
                f"experiment {name!r} has no guardrail metric, so nothing would guard its rollout; give it a metric "
                "with the role 'guardrail', or promote the arm without 'guarded'"
            )
        against = await self._against(name, arm, force)

        def begun(record: Record) -> Record:
            if record.rollout and record.rollout.outcome == "going":
                raise ExperimentConflict(
                    f"@{alias} is being rolled out to {record.rollout.new!r} already; "
                    f"stop experiment {record.name!r} first"
                )
            # Another salt each time, or the same units would be the first to meet everything that is new.
            definition = rollout.definition(source, salt=f"{record.name}/{record.version + 1}")
            return record.rolled(definition, rollout, by, f"began to roll out {recipe}")

        record = await self._experiments.roll(OWN + alias, begun)
        await self._experiments.note(name, f"began to promote arm {arm!r} to @{alias}{against}", by)
        return record

    async def waits_for(self, record: Record) -> list[str]:
        """What the next step of a rollout under way still needs, a sentence each."""
        if record.rollout is None:
            return []
        if record.status != "running":
            return [f"it is {record.status}"]
        try:
            return record.rollout.waits_for(await self.judge.evidence(record.name), time.time())
        except RedisUnavailable as reason:
            return [f"the report cannot be had: {reason}"]

    async def run(self) -> None:
        """Take the steps that are due, until cancelled."""
        expected = (RedisUnavailable, ExperimentConflict, AliasConflict, UnknownExperiment)
        await run_as_leader(self._going, self._store, self._look_after, expected)

    def _going(self) -> list[Record]:
        return [one for one in self._experiments.all() if _is_going(one)]

    async def _look_after(self, record: Record) -> None:
        """What is to be done now, if anything is."""
        rollout = record.rollout
        assert rollout is not None
        alias = next((alias for alias in self._aliases.all() if alias.name == rollout.alias), None)
        recipe = alias.recipe if alias else None
        if recipe == rollout.new:  # whoever moved it has not come to writing it down
            await self._end(record, rollout.ended("done", []))
            return
        if alias is None or recipe != rollout.old:
            why = f"@{rollout.alias} was moved to {recipe}" if recipe else f"@{rollout.alias} was deleted"
            await self._end(record, rollout.ended("cancelled", [why]))
            return
        evidence, now = await self.judge.evidence(record.name), time.time()
        if evidence.failures:
            log.warning("%s is rolled back: %s", record.name, "; ".join(evidence.failures))
            await self._end(record, rollout.ended("rolled back", evidence.failures))
        elif rollout.waits_for(evidence, now):
            return
        elif rollout.is_at_last_watched_step:
            await self._aliases.move(rollout.alias, rollout.new, alias.version, ACTOR)
            await self._end(record, rollout.ended("done", []))
        else:
            await self._step_on(record, rollout.stepped_on(now, evidence.closed))

    async def _step_on(self, record: Record, rollout: Rollout) -> None:
        def grown(current: Record) -> Record:
            _check_same(current, record)
            definition = current.experiment.model_copy(update={"coverage": rollout.coverage})
            return current.rolled(definition, rollout, ACTOR, f"went on to {rollout.share:.0%}")

        await self._experiments.roll(record.name, grown)

    async def _end(self, record: Record, rollout: Rollout) -> None:
        def ended(current: Record) -> Record:
            _check_same(current, record)
            definition = current.experiment.model_copy(update={"status": "stopped"})
            return current.rolled(definition, rollout, ACTOR, ": ".join([rollout.outcome, *rollout.why]))

        await self._experiments.roll(record.name, ended)

    def _recipe(self, name: str, arm: str) -> str:
        experiment = self._experiments.get(name).experiment
        if name.startswith(OWN):
            raise ExperimentConflict(f"{name!r} is a rollout itself; promote the arm of an experiment")
        for one in experiment.arms:
            if one.name == arm:
                return str(one.recipe)
        there = ", ".join(one.name for one in experiment.arms)
        raise UnknownExperiment(f"experiment {name!r} has no arm {arm[:64]!r}; arms: {there}")


def _check_same(current: Record, record: Record) -> None:
    """Whoever was faster has decided on what is there now."""
    if current.version != record.version:
        raise ExperimentConflict(f"experiment {record.name!r} was changed meanwhile")


def _is_going(record: Record) -> bool:
    return record.rollout is not None and record.rollout.outcome == "going" and record.status == "running"


class Counted(Protocol):
    """What units did, and what reports go on saying; raises `RedisUnavailable` where nobody can tell."""

    async def sums(self, name: str) -> Sequence[PhaseSums]: ...

    async def latches(self, name: str) -> Mapping[str, str]: ...


class LedgerJudge:
    """Judges rollouts and promotions by what units did."""

    def __init__(self, experiments: ExperimentRegistry, ledger: Counted) -> None:
        self._experiments = experiments
        self._ledger = ledger

    async def evidence(self, name: str) -> Evidence:
        """On a rollout, by its name; raises `RedisUnavailable` and `UnknownExperiment`."""
        record = self._experiments.get(name)
        # Intervals take some milliseconds of numpy, which requests should not wait for.
        return await asyncio.to_thread(report_builder.rollout_evidence, record.experiment, await self._judged(record))

    async def objections(self, name: str, arm: str) -> list[str]:
        """What the report says against an arm, in sentences; raises as `evidence` does. Without a Redis nothing is
        counted, so nothing speaks against any arm."""
        if not self._experiments.shared:
            return []
        record = self._experiments.get(name)
        sums, latched = await self._judged(record), await self._ledger.latches(name)
        found, _ = await asyncio.to_thread(
            report_builder.judge, record.experiment, sums, time.time(), None, None, record.amendments, latched
        )
        against = report_builder.objections(found, arm)
        return against or [why for one, why in record.left_out.items() if one == arm]

    async def _judged(self, record: Record) -> list[PhaseSums]:
        return [phase for phase in await self._ledger.sums(record.name) if phase.phase >= record.judged_from]
