"""Which recipes get a slot of their own, and which are mixed row by row.

A row can run in two ways. On a finished blend it costs one product per linear layer. Mixed from the members it
costs one product per member that takes part, and needs nothing built: any t, at once. So a blend is worth
building when the products that it will save take longer than the build:

    (tokens now + tokens expected) * (members - 1) * seconds per token  >  seconds of a build

What a recipe will bring is guessed from what it has brought lately, with a half-life. Of a recipe never seen
before only the traffic as a whole tells: if nearly all requests name recipes that were seen before, this one
will be seen again, and is built at first sight; if every request brings its own t, none is built. A blend
takes the place of another only if it is expected to bring more. Both costs are measured at start-up, and the
build's again at every build.

That is for linear recipes. Rows of any other method cannot be mixed, so their blend is always built.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from app.models.tokenizer import Row
from app.serving.executor import ExecutorPool, Vector
from app.weights.arena import Share
from app.weights.recipe import LINEAR

HALF_LIFE = 60.0
"""Seconds after which what a recipe brought counts half."""
REMEMBERED = 10_000
"""Recipes whose traffic is remembered; the one unseen longest is forgotten first."""
LEARNING = 0.05
"""How much one request moves the averages over all requests."""
TIMES = 3
"""How often a cost is measured at start-up."""


@dataclass
class Costs:
    """Seconds of a build, and seconds of a forward pass per token and member."""

    build: float
    token: float


@dataclass
class _Traffic:
    tokens: float
    at: float


class BuildPolicy:
    """Remembers what recipes brought, and weighs it against the costs."""

    def __init__(self, costs: Costs, clock: Callable[[], float] = time.monotonic) -> None:
        self.costs = costs
        self._clock = clock
        self._traffic: OrderedDict[str, _Traffic] = OrderedDict()
        # Optimistic at the start: a service that is asked for its first recipe will be asked for it again.
        self.reuse = 0.95
        self._tokens_per_request = 32.0

    def heat(self, key: str) -> float:
        """Tokens that a recipe brought lately."""
        traffic = self._traffic.get(key)
        return self._decayed(traffic) if traffic else 0.0

    def expect(self, key: str, tokens: int) -> float:
        """Note a request of that many tokens; gives the tokens that its recipe is expected to bring from now on."""
        known = key in self._traffic
        self.reuse += LEARNING * (known - self.reuse)
        self._tokens_per_request += LEARNING * (tokens - self._tokens_per_request)
        # Requests in a row that name a known recipe, were each known with probability `reuse`.
        typical = self.reuse / (1.0 - min(self.reuse, 0.999)) * self._tokens_per_request
        before = self.heat(key)
        self._traffic[key] = _Traffic(before + tokens, self._clock())
        self._traffic.move_to_end(key)
        if len(self._traffic) > REMEMBERED:
            self._traffic.popitem(last=False)
        return tokens + (before if known else typical)

    def pays(self, expected: float, members: int) -> bool:
        """Whether a build costs less than mixing that many tokens from that many members."""
        return expected * (members - 1) * self.costs.token > self.costs.build

    def built(self, seconds: float) -> None:
        """Learn from the build of a linear blend what builds cost."""
        self.costs.build += 0.2 * (seconds - self.costs.build)

    def _decayed(self, traffic: _Traffic) -> float:
        return float(traffic.tokens * 0.5 ** ((self._clock() - traffic.at) / HALF_LIFE))


async def measure(compute: ExecutorPool, weights: Mapping[str, Share] | None, slot: Tensor, rows: list[Row]) -> Costs:
    """Time a build of these weights in a free slot (P,), and a forward pass of these rows on it, on one unit.

    The fastest of a few: the first one meets cold memory, and any may be disturbed. Without weights, because there
    is nothing to build from, the pass runs on what lies in the slot, and a build takes for ever.
    """
    async with compute.unit() as unit:
        builds = [await unit.build(LINEAR, weights, slot) for _ in range(TIMES)] if weights else []
        passes = [await unit.forward(rows, [Vector(slot, "")] * len(rows)) for _ in range(TIMES)]
    return Costs(min(builds, default=math.inf), min(seconds for _, seconds in passes) / sum(len(row) for row in rows))
