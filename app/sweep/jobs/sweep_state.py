"""What is known of a sweep while it waits, runs and when it has ended: the document that pods share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Status = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class SweepState:
    """`version` grows with every change. Times are in seconds since 1970; `texts_done` of `texts_expected` are passed.

    `bank` is the fingerprint of the bank that is asked about, `starts` how many pods have worked on it, and `shared`
    whether other pods know of it. `result` is there when it is done, `error` is a sentence when it has failed.
    """

    id: str
    bank: str
    created: float
    version: int = 1
    status: Status = "queued"
    started: float | None = None
    ended: float | None = None
    texts_done: int = 0
    texts_expected: int = 0
    starts: int = 0
    shared: bool = True
    result: dict[str, Any] | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def progress(self) -> float:
        """The share of the texts that is passed, 1 only when it is done."""
        if self.status == "done":
            return 1.0
        return min(0.99, self.texts_done / self.texts_expected) if self.texts_expected else 0.0

    def but(self, **changes: Any) -> SweepState:
        """The next version."""
        return replace(self, version=self.version + 1, **changes)

    def dump(self) -> bytes:
        """Without the result, which is large and lies beside it."""
        return json.dumps({**asdict(self), "result": None}).encode()

    @classmethod
    def load(cls, document: bytes) -> SweepState:
        """What `dump` has written."""
        return cls(**json.loads(document))
