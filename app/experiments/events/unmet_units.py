"""Outcomes of units that nobody has met: how many are kept, whose, and for how long.

An outcome may come before the exposure that it belongs to, by another way, so it is kept. But whoever may post outcomes
may invent units, and each would take room in Redis that nothing frees. So before an outcome is written down, Redis is
asked in one step whether its unit was met. One that was not holds a place until it is, or is given up; and where the
hash says that no such unit can be met, nothing is kept. While Redis is away nobody can tell: then all are taken, as far
as the disk goes.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.cluster.circuit_breaker import CircuitBreaker
from app.cluster.redis_client import FAULTS, RedisCallFailed
from app.experiments.assignment import can_be_drawn
from app.experiments.events.event import Outcome
from app.experiments.events.ledger_store import LedgerStore
from app.experiments.experiment import DAY, Experiment

MOST = 10_000
"""Outcomes of units that were not met, of one experiment: about 6 MB in Redis."""
MOST_OF_ONE = 5_000
"""Of these, by one key."""
WAIT_SECONDS = 3 * DAY
"""For so long at most an outcome waits for its unit to be met: over a weekend."""
UNITS_AT_ONCE = 500
"""Asked for in one step, for which Redis serves nobody else: about two milliseconds."""
MOST_REMEMBERED = 20_000
"""Units that were met here, and of which Redis may not know yet."""

WHY = {
    "draft": "the experiment has not begun, so no unit has met it",
    "outside": "the hash of the unit lies outside coverage, layer or holdout, so it cannot have met the experiment",
    "beyond": f"units that nobody has met keep {MOST:,} outcomes, and {MOST_OF_ONE:,} of one key, until they are met",
}
"""Why outcomes are not taken."""


@dataclass
class Admitted:
    """The outcomes that are taken, and how many are not, by why."""

    outcomes: list[Outcome] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class Unmet:
    """Decides which outcomes are kept. Lives on one event loop."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._breaker = CircuitBreaker()
        self._met: OrderedDict[tuple[str, str], None] = OrderedDict()

    def met(self, experiment: str, unit: str) -> None:
        """A unit was met here just now."""
        self._met[experiment, unit] = None
        self._met.move_to_end((experiment, unit))
        if len(self._met) > MOST_REMEMBERED:
            self._met.popitem(last=False)

    async def admit(self, name: str, experiment: Experiment, outcomes: Sequence[Outcome], who: str | None) -> Admitted:
        """Which outcomes are taken; `who` tells of them, None where there are no keys. Never fails."""
        if experiment.status == "draft" and outcomes:
            return Admitted(dropped=Counter(draft=len(outcomes)))
        counts = Counter(one.unit for one in outcomes if (name, one.unit) not in self._met)
        allowed: dict[str, int] = {}
        units = list(counts)
        for start in range(0, len(units), UNITS_AT_ONCE):
            some = units[start : start + UNITS_AT_ONCE]
            allowed |= zip(
                some, await self._ask(name, experiment, [(unit, counts[unit]) for unit in some], who), strict=True
            )
        admitted = Admitted()
        for one in outcomes:
            left = allowed.get(one.unit, 1)
            if left > 0:
                admitted.outcomes.append(one)
                if one.unit in allowed:
                    allowed[one.unit] -= 1
            else:
                admitted.dropped["outside" if left < 0 else "beyond"] += 1
        return admitted

    async def _ask(
        self, name: str, experiment: Experiment, counts: list[tuple[str, int]], who: str | None
    ) -> list[int]:
        """How many outcomes of each unit are taken; all of them where Redis does not say."""
        if not self._breaker.allows():
            return [count for _, count in counts]
        asked = [(unit, count, can_be_drawn(name, experiment, unit)) for unit, count in counts]
        until = time.time() + waits(experiment)
        most_of_one = MOST if who is None else MOST_OF_ONE
        try:
            answer = await self._store.admit(name, who or "", until, MOST, most_of_one, asked)
        except FAULTS as error:
            self._breaker.failed(RedisCallFailed.because(error).timed_out)
            return [count for _, count in counts]
        self._breaker.succeeded()
        return answer


def waits(experiment: Experiment) -> float:
    """Seconds for which outcomes wait for their unit to be met."""
    return min(experiment.window, WAIT_SECONDS)
