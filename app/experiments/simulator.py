"""Simulates an experiment: synthetic customers call a running service over HTTP, on one pod or several.

It uses the public API alone, as a client does: it asks for predictions, posts outcomes, retries unanswered calls, and
keeps its own record of every unit, which is printed beside the counts of the service.

The effect of t is planted, and so known: a customer's mean is `base + lift * (1 - ((t - best) / best)^2)`, `base` at
t = 0, highest at `best`, less beyond it. A binary metric is 1 with that probability, a count is Poisson with three
times it as its mean, a continuous one is normal around twenty times it. Everything follows from the seed and the
customer's name, so that two runs with the same customers plant the same.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from app.client_key import key_headers
from app.errors import SimulationFailed
from app.experiments.assignment import assign
from app.experiments.experiment import Experiment, Metric

TEXTS = (
    "The parcel came late and the box was broken.",
    "Thanks, that works great again.",
    "Third call and still no answer.",
    "The price is fine, but the order never came.",
    "Please help with this refund.",
    "It is slow and awful.",
    "Good call, fast answer.",
    "Is it broken or not?",
)
SCALE = {"binary": 1.0, "count": 3.0, "continuous": 20.0}
SPREAD = 5.0
"""Standard deviation of a continuous metric within an arm."""


@dataclass(frozen=True)
class Planted:
    """How t moves customers, and how unpleasant they are."""

    base: float = 0.3
    lift: float = 0.06
    best: float = 0.4
    late: float = 0.3
    """Share of customers whose outcomes come long after, in another order."""
    twice: float = 0.1
    """Share whose outcomes are posted twice, with the same id."""
    bots: float = 0.002
    """Share that ask twenty times, and post the same outcome as often."""

    def level(self, t: float) -> float:
        return min(1.0, max(0.0, self.base + self.lift * (1 - ((t - self.best) / self.best) ** 2)))

    def mean(self, kind: str, t: float) -> float:
        """Expected value of one customer."""
        return SCALE[kind] * self.level(t)


@dataclass
class Customer:
    """One unit: what it asks, and what it does when it has been answered."""

    unit: str
    planted: Planted
    seed: int
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.seed}:{self.unit}")
        self.text = self._chance.choice(TEXTS)
        self.is_bot = self._chance.random() < self.planted.bots
        self.is_late = self._chance.random() < self.planted.late
        self.posts = 20 if self.is_bot else 2 if self._chance.random() < self.planted.twice else 1

    def outcomes(self, metrics: Sequence[Metric], t: float) -> list[dict[str, Any]]:
        """What it does, once; an id for each, so that repetitions are harmless."""
        return [
            {
                "unit": self.unit,
                "metric": metric.name,
                "value": value,
                "id": f"{self.seed}:{self.unit}:{metric.name}",
            }
            for metric in metrics
            if (value := self._value(metric.kind, t))
        ]

    def _value(self, kind: str, t: float) -> float:
        mean = self.planted.mean(kind, t)
        if kind == "binary":
            return float(self._chance.random() < mean)
        return float(self._poisson(mean)) if kind == "count" else round(self._chance.gauss(mean, SPREAD), 2)

    def _poisson(self, mean: float) -> int:
        """By products of uniform numbers (Knuth); fine for small means."""
        count, product = 0, self._chance.random()
        while product > math.exp(-mean):
            count, product = count + 1, product * self._chance.random()
        return count


GROUP = 50
"""Customers in one call."""
CALLERS = 4
TIMEOUT = 30.0
PATIENCE = 60.0
"""Seconds for which a call that gets no answer is repeated."""
REST = 0.2
AGAIN = {429, 502, 503, 504}


@dataclass
class ArmAccount:
    """What was planted in one arm: its units and what they did, each outcome once."""

    t: float = 0.0
    units: int = 0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Pods:
    """Some pods behind one face: whoever does not answer is left for another."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [urlsplit(url if "://" in url else f"http://{url}") for url in urls]
        self._idle: list[tuple[str, http.client.HTTPConnection]] = []
        self._headers = key_headers()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer to a call, repeated until there is one. Raises `SimulationFailed` where the service refuses."""
        deadline = time.monotonic() + PATIENCE
        payload = None if body is None else json.dumps(body)
        headers = {**self._headers, **({"Content-Type": "application/json"} if payload else {})}
        while True:
            url = random.choice(self._urls)
            connection = self._connection(url)
            try:
                connection.request(method, url.path.rstrip("/") + path, payload, headers)
                reply = connection.getresponse()
                content = reply.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status, reason = 0, type(error).__name__
            else:
                self._idle.append((url.netloc, connection))
                status, reason = reply.status, f"status {reply.status}"
                if status < 300:
                    return json.loads(content)
            if status and status not in AGAIN:
                raise SimulationFailed(f"{method} {path} was refused: {_detail(content) or reason}")
            if time.monotonic() > deadline:
                raise SimulationFailed(f"{url.netloc} does not answer {method} {path} ({reason})")
            time.sleep(REST)

    def _connection(self, url: SplitResult) -> http.client.HTTPConnection:
        """One that waits for work, or a new one. Threads take and give them back in single steps of a list."""
        for _ in range(len(self._idle)):
            try:
                place, connection = self._idle.pop()
            except IndexError:
                break
            if place == url.netloc:
                return connection
            self._idle.insert(0, (place, connection))
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        return kind(url.netloc, timeout=TIMEOUT)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


def _detail(content: bytes) -> str:
    """The sentence of a problem, if that is what the service has sent."""
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


def _why_nobody_can_come(experiment: Experiment) -> str:
    if experiment.status != "running":
        return f"is {experiment.status}; start it first"
    if not experiment.metrics:
        return 'has no metric that customers could move; give it one, such as {"name": "solved", "role": "primary"}'
    return ""


class Simulation:
    """Customers of one experiment. Raises `SimulationFailed` where the service refuses what they do."""

    def __init__(self, urls: Sequence[str], experiment: str, planted: Planted, seed: int = 1) -> None:
        self.arms: dict[str, ArmAccount] = defaultdict(ArmAccount)
        self.outcomes = 0
        """Different ones, repetitions not counted."""
        self.pods = Pods(urls)
        self.planted = planted
        self._name = experiment
        self._path = f"/v1/experiments/{quote(experiment, safe='')}"
        self._seed = seed
        self._lock = threading.Lock()
        self._late: list[list[dict[str, Any]]] = []
        found = self.pods.call("GET", self._path)
        self.experiment = Experiment.model_validate(found["definition"])
        self._phase: int = found["phase"]
        if reason := _why_nobody_can_come(self.experiment):
            self.pods.close()
            raise SimulationFailed(f"experiment {experiment!r} {reason}")

    def run(self, units: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Have so many customers meet the experiment, and all that they do posted."""
        groups = [range(start, min(start + GROUP, units)) for start in range(0, units, GROUP)]
        with ThreadPoolExecutor(CALLERS) as callers:
            for number, _ in enumerate(callers.map(self._group, groups), start=1):
                progress(min(number * GROUP, units))
            list(callers.map(self._post, self._late))
        self._late.clear()
        self.pods.close()

    def _group(self, numbers: Sequence[int]) -> None:
        customers = [Customer(f"customer-{self._seed}-{number}", self.planted, self._seed) for number in numbers]
        asked = [customer for customer in customers for _ in range(20 if customer.is_bot else 1)]
        reply = self.pods.call(
            "POST",
            "/v1/predict",
            {
                "texts": [customer.text for customer in asked],
                "recipe": f"exp:{self._name}",
                "unit": [customer.unit for customer in asked],
            },
        )
        met = {
            customer.unit: (found["arm"], sum(map(_middle, prediction["t"].values())))
            for customer, found, prediction in zip(asked, reply["experiment"], reply["predictions"], strict=True)
            if assign(self._name, self.experiment, self._phase, customer.unit).counts
        }
        now: list[dict[str, Any]] = []
        for customer in customers:
            if customer.unit in met:
                arm, t = met[customer.unit]
                done = customer.outcomes(self.experiment.metrics, t)
                self._note(arm, t, done)
                if customer.is_late:
                    with self._lock:
                        self._late.insert(random.randrange(len(self._late) + 1), done * customer.posts)
                else:
                    now += done * customer.posts
        self._post(now)
        with self._lock:
            due = [self._late.pop() for _ in range(len(self._late) // 2)]
        self._post([outcome for some in due for outcome in some])

    def _note(self, arm: str, t: float, done: list[dict[str, Any]]) -> None:
        with self._lock:
            account = self.arms[arm]
            account.t = t
            account.units += 1
            self.outcomes += len(done)
            for outcome in done:
                account.sums[outcome["metric"]] += outcome["value"]

    def _post(self, outcomes: list[dict[str, Any]]) -> None:
        if outcomes:
            self.pods.call("POST", f"{self._path}/outcomes", outcomes)

    def report(self) -> dict[str, Any]:
        """What the service says of it now."""
        found: dict[str, Any] = self.pods.call("GET", f"{self._path}/report")
        return found


def _middle(t: float | list[float]) -> float:
    """One t for a ramp over the layers: halfway."""
    return sum(t) / len(t) if isinstance(t, list) else t
