"""The experiments of a service, as this pod knows them: who meets what now, and how that is changed.

Records are documents that all pods follow (`cluster/replicated.py`), as aliases are: replaced in one step in Redis if
they are still what a change started from, seen by every pod at once or within a second, and remembered by pods while
Redis is away. Whoever starts an experiment first has every pod that listens bring the arms' blends into memory; a pod
lets traffic meet an arm only when it has its blend (or has tried for `WARM_SECONDS`), and keeps the arms of what is
running or paused there. So no arm is slower than another because its blend was cold.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from app.cluster.document_store import DocumentStore
from app.cluster.precondition import Expected
from app.cluster.replicated import Change, Replicated
from app.errors import BadExperiment, ExperimentConflict, RedisUnavailable, TweenError, UnknownExperiment
from app.experiments.assignment import Assignment, assign
from app.experiments.events.event import Exposure, Ledger
from app.experiments.experiment import Arm, Experiment, Status, check_name, digest
from app.experiments.record import Record
from app.experiments.rollout import OWN
from app.experiments.sticky_assignment import StickyAssignment
from app.names import nfc
from app.serving.aliases import DEFAULT
from app.serving.prewarm import PinnedBlend, Prewarm
from app.weights.auto_recipe import Auto
from app.weights.recipe import Cookbook, Recipe, names_alias

log = logging.getLogger(__name__)

PREFIX = "exp:"
"""What a recipe begins with that names an experiment."""
MAX_EXPERIMENTS = 500
MAX_ARCHIVED = 1_000
CLOCK_SECONDS = 1.0
"""How often it is looked whether an experiment's time is over."""
KEPT_WARM: tuple[Status, ...] = ("running", "paused")


@dataclass(frozen=True, slots=True)
class ArmDraw:
    """What one text of a unit is to be answered with, and which arms are computed beside it and not shown."""

    unit: str | None
    assignment: Assignment
    recipe: Recipe | Auto
    shadows: Mapping[str, Recipe | Auto]
    era: int | None = None
    """Of a bandit, the phase since which units keep their arm; None where nothing but the hash decides."""


@dataclass(frozen=True)
class _Served:
    """What traffic meets: a record, and the recipe of each arm."""

    record: Record
    recipes: dict[str, Recipe | Auto]
    shadows: dict[str, Recipe | Auto]
    kept: list[PinnedBlend]


class ExperimentRegistry:
    """The experiments of a service."""

    def __init__(
        self,
        cookbook: Cookbook,
        warmth: Prewarm,
        store: DocumentStore | None,
        ledger: Ledger | None = None,
        sticky: StickyAssignment | None = None,
    ) -> None:
        """Without a `ledger`, nobody takes note of who met what; without `sticky`, this process alone knows who stays
        with which arm of a bandit."""
        self.ledger = ledger
        self._cookbook = cookbook
        self._warmth = warmth
        self._sticky = sticky or StickyAssignment(None, "")
        self._following = Replicated(
            "experiments", store, Record.decoded, self._follow, ExperimentConflict, "experiment"
        )
        self._served: dict[str, _Served] = {}
        self._rollouts: dict[str, _Served] = {}
        """What is being rolled out, by the alias."""

    @property
    def shared(self) -> bool:
        """Whether other pods see them."""
        return self._following.shared

    async def start(self) -> None:
        """Learn what experiments there are and warm up for them; from then on, follow them."""
        await self._following.start()
        self._following.spawn(self._mind_the_clock())

    async def close(self) -> None:
        await self._following.close()

    # -- what is asked of them -------------------------------------------------------------------------

    def all(self) -> list[Record]:
        """All experiments, by name; archived ones too."""
        return [record for _, record in sorted(self._following.known.items()) if record.definition is not None]

    def deleted(self) -> list[Record]:
        """What is left of those that were deleted lately."""
        return [record for record in self._following.known.values() if record.definition is None]

    def deleted_at(self, name: str) -> float:
        """When one of this name was deleted last, seconds since 1970; 0: never."""
        record = self._following.known.get(name)
        return (record.deleted or 0.0) if record else 0.0

    def get(self, name: str) -> Record:
        """One experiment; raises `UnknownExperiment`."""
        record = self._following.known.get(name)
        if record is None or record.definition is None:
            raise self._unknown(name)
        return record

    def check(self, name: str, version: Expected) -> None:
        """Raises `ExperimentConflict` or `PreconditionFailed` where an experiment is at another version here."""
        self._following.check(self.get(name), version)

    def is_served(self, record: Record) -> bool:
        """Whether traffic on this pod meets this very version; not where its bank cannot make an arm."""
        served = self._served.get(record.name)
        return served is not None and served.record == record

    def recipes(self, name: str) -> Mapping[str, Recipe | Auto]:
        """By arm, what traffic meets here; raises `UnknownExperiment`."""
        served = self._served.get(name)
        if served is None:
            raise self._unserved(name)
        return served.recipes

    def draw(self, name: str, unit: str | None, attributes: Mapping[str, str]) -> ArmDraw:
        """The arm that the hash gives a unit here and now; raises `UnknownExperiment` and `BadUnit`."""
        served = self._served.get(name)
        if served is None:
            raise self._unserved(name)
        found = assign(name, served.record.experiment, served.record.phase, unit, attributes)
        era = served.record.era if found.counts and served.record.experiment.mode == "bandit" else None
        return ArmDraw(unit, found, served.recipes[found.arm], served.shadows if found.counts else {}, era)

    async def meet(self, drawn: Sequence[ArmDraw | None], keep: bool = True) -> list[ArmDraw | None]:
        """The meetings that come of draws: units of bandits get what they drew first, as if it were now. What is drawn
        now for the first time they `keep`, unless this is only a look."""
        bandits = {(one.assignment.experiment, one.era, one.unit): one for one in drawn if one and one.era and one.unit}
        if not bandits:
            return list(drawn)
        offers = {key: one.assignment.encoded() for key, one in bandits.items()}
        recipes = {name: self._served[name].recipes for name, _, _ in bandits}
        firsts = await self._sticky.first(offers, keep)
        met: list[ArmDraw | None] = []
        for one in drawn:
            if one and one.era and one.unit:
                first = one.assignment.decoded(firsts[one.assignment.experiment, one.era, one.unit])
                recipe = recipes[first.experiment].get(first.arm)
                one = replace(one, assignment=first, recipe=recipe) if recipe else one
            met.append(one)
        return met

    def behind(self, recipe: object) -> str | None:
        """The name of the experiment that a recipe as it was given stands for, if it stands for one: `exp:NAME`, or an
        alias that is being rolled out (also the one that is meant where none is given)."""
        if recipe is None:
            return self._rolled_out(DEFAULT) if self._rollouts else None
        if not isinstance(recipe, str):
            return None
        recipe = recipe.strip()
        if recipe.startswith(PREFIX):
            return nfc(recipe.removeprefix(PREFIX).strip())
        return self._rolled_out(nfc(recipe[1:])) if self._rollouts and recipe.startswith("@") else None

    def _rolled_out(self, alias: str) -> str | None:
        """The experiment of a rollout. None as soon as the alias has moved, by it or by somebody else."""
        served = self._rollouts.get(alias)
        if served is None or self._cookbook.aliases.get(alias) != served.recipes["old"]:
            return None
        return served.record.name

    def tell(
        self, meeting: ArmDraw, at: float, agreed: dict[str, bool], covariate: float | None, latency_ms: float
    ) -> None:
        """Tell the ledger of a prediction that was served at that time, if its unit was drawn by lot."""
        found = meeting.assignment
        if self.ledger is None or not found.counts or meeting.unit is None:
            return
        self.ledger.expose(
            Exposure(
                id=uuid.uuid4().hex,
                experiment=found.experiment,
                phase=found.phase,
                arm=found.arm,
                unit=meeting.unit,
                at=at,
                propensity=found.propensity,
                agreed=agreed,
                covariate=covariate,
                latency_ms=latency_ms,
            )
        )

    def later(self, work: Coroutine[None, None, None]) -> None:
        """Have something done that nobody waits for."""
        self._following.spawn(work)

    # -- changes ---------------------------------------------------------------------------------------

    async def define(
        self, name: str, definition: Experiment, version: Expected = None, by: str | None = None
    ) -> Change[Record]:
        """Make an experiment, or give it another definition, on every pod.

        With a `version`, only if it is at that one (0: if it does not exist). Raises `BadExperiment` for an impossible
        name, what the cookbook raises for the arms, `ExperimentConflict` and `RedisUnavailable`.
        """
        definition = self._canonical(name, definition)
        return await self._change(name, version, lambda record: record.defined(definition, by))

    async def set_status(
        self, name: str, status: Status, version: Expected = None, by: str | None = None
    ) -> Change[Record]:
        """Start, pause or stop an experiment on every pod; raises `UnknownExperiment`, and as `define` does."""

        def changed(record: Record) -> Record:
            return self._existing(record).at(status, by)

        return await self._change(name, version, changed)

    async def archive(self, name: str, version: Expected = None, by: str | None = None) -> Change[Record]:
        """Put an experiment that does not run out of the way; raises as `set_status` does."""
        return await self._change(name, version, lambda record: self._existing(record).archive(by))

    async def delete(self, name: str, version: Expected = None, by: str | None = None) -> Change[Record]:
        """Delete an experiment that does not run, on every pod; raises as `set_status` does."""
        return await self._change(name, version, lambda record: self._existing(record).remove(by))

    async def note(self, name: str, action: str, by: str | None) -> None:
        """Write into an experiment's trail what was done with it elsewhere."""
        await self._change(name, None, lambda record: self._existing(record).noted(action, by))

    async def roll(self, name: str, change: Callable[[Record], Record]) -> Record:
        """Change an experiment as the service itself does; raises what `change` raises, and `RedisUnavailable`."""
        return (await self._change(name, None, change)).document

    async def apply(self, definitions: Mapping[str, Experiment], by: str) -> None:
        """Do what a file says that it has not said before, as soon as Redis answers.

        What cannot be done is logged and left: a pod must start beside an experiment that somebody has stopped.
        Raises `BadExperiment` and what the cookbook raises for a file that is wrong in itself.
        """
        canonical = {name: self._canonical(name, definition) for name, definition in definitions.items()}

        async def try_again() -> None:
            while not await self._apply(canonical, by):
                await asyncio.sleep(CLOCK_SECONDS)

        if not await self._apply(canonical, by):
            self._following.spawn(try_again())

    async def _apply(self, definitions: Mapping[str, Experiment], by: str) -> bool:
        for name, definition in definitions.items():
            said = digest(definition)
            try:
                await self._change(name, None, lambda record: record.filed(definition, said, by))  # noqa: B023
            except RedisUnavailable as reason:
                log.warning("experiments of %s wait: %s", by, reason)
                return False
            except ExperimentConflict as reason:
                log.warning("%s is not followed: %s", by, reason)
        return True

    def _canonical(self, name: str, definition: Experiment) -> Experiment:
        """The definition with every recipe in canonical text, once all of them can be made here."""
        check_name(name)
        if name.startswith(OWN):
            raise BadExperiment(f"names that begin with {OWN!r} are those of rollouts; take another one")
        arms = [arm.model_copy(update={"recipe": self._recipe(arm).text}) for arm in definition.arms]
        return definition.model_copy(update={"arms": arms})

    def _recipe(self, arm: Arm) -> Recipe | Auto:
        if names_alias(arm.recipe):
            raise BadExperiment(
                f"arm {arm.name!r} is an alias, which can be moved while the experiment runs; write the recipe itself"
            )
        try:
            return self._cookbook.wanted(arm.recipe)
        except TweenError as reason:
            raise type(reason)(f"arm {arm.name!r}: {reason}") from None

    async def _change(self, name: str, version: Expected, change: Callable[[Record], Record]) -> Change[Record]:
        def checked(before: Record) -> Record:
            after = change(before)
            if after is not before:
                self._check_room(before, after)
            return after

        def prepared(record: Record) -> AbstractAsyncContextManager[tuple[int, int]]:
            starts = record.definition is not None and record.status == "running"
            arms = record.experiment.arms if starts and not self._has_arms_of(record) else []
            return self._warmth.ahead(self._cookbook.wanted(arm.recipe) for arm in arms)

        return await self._following.change(Record(name=name), version, checked, prepared)

    def _existing(self, record: Record) -> Record:
        if record.definition is None:
            raise self._unknown(record.name)
        return record

    def _check_room(self, before: Record, record: Record) -> None:
        if record.definition is None:
            return
        others = [other for other in self.all() if other.name != record.name]
        archived = sum(other.archived is not None for other in others)
        if before.definition is None and len(others) - archived >= MAX_EXPERIMENTS:
            raise ExperimentConflict(
                f"there are {MAX_EXPERIMENTS} experiments already; archive or delete one that has stopped "
                "(tween experiment archive NAME, or delete NAME)"
            )
        if record.archived is not None and archived >= MAX_ARCHIVED:
            raise ExperimentConflict(f"there are {MAX_ARCHIVED} archived experiments already; delete one of them")
        mine = record.experiment.layer
        for other in others:
            theirs = other.experiment.layer
            if mine is None or theirs is None or mine.name != theirs.name or "stopped" in (other.status, record.status):
                continue
            if mine.low < theirs.high and theirs.low < mine.high:
                raise ExperimentConflict(
                    f"experiment {other.name!r} holds {theirs.low:g} to {theirs.high:g} of layer {mine.name!r}, which "
                    f"{mine.low:g} to {mine.high:g} would share"
                )

    def _has_arms_of(self, record: Record) -> bool:
        """Whether the arms of a record are in memory here, and so on every pod."""
        served = self._served.get(record.name)
        if served is None or served.record.status not in KEPT_WARM:
            return False
        return {arm.recipe for arm in record.experiment.arms} <= {arm.recipe for arm in served.record.experiment.arms}

    # -- following what all pods agreed on -------------------------------------------------------------

    async def _follow(self, record: Record) -> None:
        """Let traffic meet what a record says, once the arms' blends are in memory."""
        if record.definition is None:
            self._let_go(record.name)
            return
        try:
            recipes = {arm.name: self._cookbook.wanted(arm.recipe) for arm in record.experiment.arms}
        except TweenError as reason:
            log.error("experiment %r is not followed: %s", record.name, reason)
            return
        kept = self._keep(record) if record.status in KEPT_WARM else []
        await asyncio.gather(*(one.warm_up() for one in kept))
        if self._following.is_overtaken(record):
            going = kept
        else:
            shadows = {arm.name: recipes[arm.name] for arm in record.experiment.arms if arm.shadow}
            before = self._served.get(record.name)
            served = self._served[record.name] = _Served(record, recipes, shadows, kept)
            self._heed_rollout(served)
            going = before.kept if before else []
            log.info("experiment %s: version %d, %s", record.name, record.version, record.status)
        for one in going:
            one.let_go()

    def _let_go(self, name: str) -> None:
        served = self._served.pop(name, None)
        if served is None:
            return
        if served.record.rollout is not None:
            self._rollouts.pop(served.record.rollout.alias, None)
        for one in served.kept:
            one.let_go()

    def _heed_rollout(self, served: _Served) -> None:
        rollout = served.record.rollout
        if rollout is None:
            return
        if rollout.outcome == "going" and served.record.status == "running":
            self._rollouts[rollout.alias] = served
        else:
            self._rollouts.pop(rollout.alias, None)

    def _keep(self, record: Record) -> list[PinnedBlend]:
        """The arms' blends; of an arm that has a t for each text, none can be had ready."""
        wanted = {self._cookbook.wanted(arm.recipe) for arm in record.experiment.arms}
        return [self._warmth.keep(recipe) for recipe in wanted if isinstance(recipe, Recipe)]

    async def _mind_the_clock(self) -> None:
        """Stop what has come to its stop time. Units meet control from that moment on, by every pod's own clock; this
        is for the record."""
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            for record in self.all():
                stop = record.experiment.stop
                if record.status in KEPT_WARM and stop is not None and time.time() >= stop:
                    try:
                        await self.set_status(record.name, "stopped", record.version, "its stop time")
                    except TweenError as reason:  # another pod was faster, or Redis is away
                        log.debug("experiment %s: %s", record.name, reason)
                    except Exception:
                        # The others must be stopped all the same, and this one is tried again.
                        log.exception("experiment %s cannot be stopped", record.name)

    def _unknown(self, name: str) -> UnknownExperiment:
        there = ", ".join(record.name for record in self.all()[:20]) or "none yet"
        return UnknownExperiment(f"no experiment {name[:64]!r}; experiments: {there}")

    def _unserved(self, name: str) -> UnknownExperiment:
        record = self._following.known.get(name)
        if record is None or record.definition is None:
            return self._unknown(name)
        return UnknownExperiment(f"experiment {name!r} has an arm that the bank of this pod cannot make")
