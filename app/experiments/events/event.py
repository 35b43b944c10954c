"""Events of an experiment: exposures and outcomes, each one line of JSON.

A pod writes an event to its spool and sends it to Redis, where one pod aggregates it. An event may be written, sent and
delivered several times; the idempotency key made from its id has it counted exactly once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Exposure:
    """A unit was served a prediction by an arm of an experiment, and which arm could have mattered."""

    id: str
    """Unique; a repeated exposure has the same id."""
    experiment: str
    phase: int
    arm: str
    unit: str
    at: float
    """When it was served, seconds since 1970."""
    propensity: float
    """The probability with which such a unit gets this arm; never 0."""
    agreed: dict[str, bool] = field(default_factory=dict)
    """By shadow arm: whether it gave the label that was shown."""
    covariate: float | None = None
    """The base's own confidence in this text, 0 to 1, which no arm can have changed; None if unknown."""
    latency_ms: float = 0.0
    """From the request's arrival at the engine to its predictions."""


class Ledger(Protocol):
    """Where exposures go."""

    def expose(self, exposure: Exposure) -> None:
        """Take note of it; never waits and never fails."""


MARK_BYTES = 9
"""72 bits: among a hundred million events, two share a mark with a probability of one in a million."""

ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a unit did. Times are seconds since 1970."""

    id: str
    experiment: str
    unit: str
    metric: str
    value: float
    at: float


def outcome_id(unit: str, metric: str, given: str) -> str:
    """The id of an outcome whose sender gave one: an order's number tells outcomes of one unit and metric apart."""
    return hashlib.blake2b(json.dumps([unit, metric, given]).encode(), digest_size=ID_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Event:
    """An exposure or an outcome, and when a pod took note of it."""

    what: Exposure | Outcome
    received: float

    @property
    def kind(self) -> Literal["exposure", "outcome"]:
        return "exposure" if isinstance(self.what, Exposure) else "outcome"

    @property
    def mark(self) -> str:
        """Stands for the id; an exposure and an outcome of the same id are two things."""
        digest = hashlib.blake2b(f"{self.kind}:{self.what.id}".encode(), digest_size=MARK_BYTES).digest()
        return base64.b64encode(digest).decode()

    def encoded(self) -> bytes:
        document = {"kind": self.kind, "received": self.received, **asdict(self.what)}
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def decoded(cls, raw: bytes) -> Event | None:
        """The event that `encoded` wrote; None for bytes that it did not write."""
        try:
            document: dict[str, Any] = json.loads(raw)
            kind, received = document.pop("kind"), float(document.pop("received"))
            what = READERS[kind](document)
            for word in (what.id, what.experiment, what.unit):
                word.encode()  # half a surrogate pair would get nowhere
            return cls(what, received)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def _exposure(document: dict[str, Any]) -> Exposure:
    what = Exposure(**document)
    return replace(what, phase=int(what.phase), at=float(what.at), agreed=dict(what.agreed), propensity=_share(what))


def _share(exposure: Exposure) -> float:
    if not 0 < exposure.propensity <= 1:
        raise ValueError("no unit gets an arm with this probability")
    return float(exposure.propensity)


def _outcome(document: dict[str, Any]) -> Outcome:
    what = Outcome(**document)
    return replace(what, value=float(what.value), at=float(what.at))


READERS: dict[str, Callable[[dict[str, Any]], Exposure | Outcome]] = {"exposure": _exposure, "outcome": _outcome}
