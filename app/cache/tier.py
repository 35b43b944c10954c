"""The Tier protocol: a place further away than this process's memory, where finished blends wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from app.cluster.circuit_breaker import CircuitBreaker


@dataclass(frozen=True)
class Stored:
    """A blend as a further tier holds it. `created` is in seconds since the epoch, `ttl` in seconds."""

    key: str
    recipe: str
    bytes: int
    created: float
    ttl: float | None


class Tier(Protocol):
    """None of the methods raises: an outage is a miss.

    `kind` says what a build is like (its method, how many members): builds of one kind cost about the same.
    """

    name: str

    async def get(self, key: str, kind: str, out: Tensor) -> bool:
        """Fill a slot (P,) with the blend, if that is the better way to get it; else `out` is undefined."""

    def built(self, kind: str, seconds: float) -> None:
        """Learn what a build took."""

    @property
    def is_writable(self) -> bool:
        """Whether any blend may be put here now."""

    async def wants(self, key: str, requests: int) -> bool:
        """Whether a blend that was asked for so many times here should be put here; notes that it was asked for."""

    async def put(self, key: str, recipe: str, vector: Tensor, called_off: Callable[[], bool]) -> float | None:
        """Store a blend; gives the seconds that it took, 0 where it was here, None where it could not be stored.

        `called_off`, called on another thread before each piece, may wait, and ends the writing by saying so.
        """

    async def renew(self, key: str) -> None:
        """Have a blend that lies here stay as long as one that is put here now."""

    async def delete(self, key: str) -> bool:
        """Remove a blend; False if it was not there."""

    async def find(self, key: str) -> Stored | None:
        """What is known of a blend without reading it."""

    async def stored(self) -> list[Stored]:
        """All blends here that belong to this bank."""

    async def is_well(self) -> bool:
        """Whether the tier answers now."""

    def counters(self) -> dict[str, int]:
        """What happened here since the process started."""

    def costs(self) -> list[tuple[str, str, float]]:
        """What each way cost: `build`, `fetch` or `write`, the kind of build (else empty), and seconds."""

    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """By name, the circuit breakers of this tier."""
