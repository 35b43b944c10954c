"""How often each name may call: counted for all pods together, and for this one alone while nobody counts for all.

A pod takes permits by the handful, more of them the faster they go, and gives back none: what it does not spend within
a second is lost to the name, so it never calls more often than it may. A name that has used up its permits is turned
away here, without another question to Redis, until there may be new ones. While Redis is away each pod allows the full
rate, and a day's quota is not counted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from app.api.auth.api_keys import ApiKey
from app.errors import LimitReached

QUICK = 0.1
"""Seconds; a handful that lasted less than this is followed by one of twice the size."""
STALE = 1.0
"""Seconds after which permits that were taken and not spent are void."""
MOST = 64
"""Permits in a handful where only a day's quota bounds it; with a rate, a tenth of what a second brings."""


class TokenGrant(Protocol):
    """Permits, seconds until there may be one if there is none, and what is left of the second and the day (-1: no
    such limit)."""

    @property
    def permits(self) -> int: ...
    @property
    def wait(self) -> float: ...
    @property
    def free(self) -> int: ...
    @property
    def left(self) -> int: ...


Take = Callable[[str, int, float | None, int | None], Awaitable[TokenGrant | None]]
"""Takes up to so many permits of a name, at its rate for a second and its quota for a day; None: nobody counts."""


@dataclass
class TokenBucket:
    """What a name may still spend here."""

    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    permits: int = 0
    taken: float = -math.inf
    size: int = 1
    shut_until: float = -math.inf
    free: int = -1
    left: int = -1
    full_at: float = -math.inf  # of the bucket that counts for this pod alone


class RateLimit:
    """Counts calls by the names of their keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Counts for this process alone until `take` is set."""
        self.take: Take | None = None
        self._clock = clock
        self._purses: dict[str, TokenBucket] = {}

    async def admit(self, key: ApiKey) -> dict[str, str]:
        """Spend a permit; what the reply's headers tell about the rest. Raises `LimitReached`."""
        purse = self._purses.setdefault(key.name, TokenBucket())
        if not self._spend(purse):
            async with purse.asking:
                if not self._spend(purse):  # perhaps whoever asked before brought enough
                    self._refuse_if_shut(key, purse)
                    await self._ask(key, purse)
                    purse.permits -= 1
        return _told(key, purse)

    def _spend(self, purse: TokenBucket) -> bool:
        if purse.permits < 1 or self._clock() - purse.taken > STALE:
            return False
        purse.permits -= 1
        return True

    async def _ask(self, key: ApiKey, purse: TokenBucket) -> None:
        """Fill the purse, or shut it."""
        now = self._clock()
        most = max(1, int(key.per_second / 10)) if key.per_second else MOST
        purse.size = min(most, purse.size * 2) if now - purse.taken < QUICK else 1
        grant = await self.take(key.name, purse.size, key.per_second, key.per_day) if self.take else None
        if grant is None:
            self._count_alone(key, purse)
            return
        purse.free, purse.left = grant.free, grant.left
        purse.permits, purse.taken = grant.permits, self._clock()
        if grant.permits < 1:
            purse.shut_until = purse.taken + grant.wait
            self._refuse_if_shut(key, purse)

    def _count_alone(self, key: ApiKey, purse: TokenBucket) -> None:
        """One permit, by a bucket of this pod's own."""
        now = self._clock()
        purse.permits, purse.taken, purse.free, purse.left = 1, now, -1, -1
        if key.per_second is None:
            return
        apart, size = 1 / key.per_second, max(1.0, key.per_second)
        full = max(now, purse.full_at) + apart
        if full - now > size * apart + 1e-9:
            purse.permits, purse.shut_until = 0, full - size * apart
            self._refuse_if_shut(key, purse)
        purse.full_at = full

    def _refuse_if_shut(self, key: ApiKey, purse: TokenBucket) -> None:
        wait = purse.shut_until - self._clock()
        if wait > 0:
            headers = _told(key, purse)
            raise LimitReached(f"{key.name!r} has made {_limit(key)} calls; try again later", math.ceil(wait), headers)


def _limit(key: ApiKey) -> str:
    rate = f"its {key.per_second:g} a second" if key.per_second else ""
    quota = f"its {key.per_day} a day" if key.per_day else ""
    return " or ".join(part for part in (rate, quota) if part)


def _told(key: ApiKey, purse: TokenBucket) -> dict[str, str]:
    """RateLimit and RateLimit-Policy, as draft-ietf-httpapi-ratelimit-headers-10 writes them; permits that lie in this
    pod's purse are left, too."""
    policies, rests = [], []
    for name, quota, window, rest in (
        ("second", key.per_second and max(1, int(key.per_second)), 1, purse.free),
        ("day", key.per_day, 86_400, purse.left),
    ):
        if quota:
            policies.append(f'"{name}";q={quota};w={window}')
            if rest >= 0:
                rests.append(f'"{name}";r={rest + purse.permits}')
    told = {"RateLimit-Policy": ", ".join(policies)}
    return told | {"RateLimit": ", ".join(rests)} if rests else told
