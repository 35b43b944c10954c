"""The moment a unit met an arm: a prediction was served, and which arm it was could have mattered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Exposure:
    """One unit and one served prediction of one experiment."""

    id: str
    """Unique; the same exposure told twice has the same one."""
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
    """How sure the base itself is of this text, 0 to 1, which no arm can have changed; None where that is not known."""
    latency_ms: float = 0.0
    """From the request's arrival at the engine to its predictions."""


class Ledger(Protocol):
    """Where exposures go."""

    def expose(self, exposure: Exposure) -> None:
        """Take note of it; never waits and never fails."""
