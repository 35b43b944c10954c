"""A sweep by several processes that are told which share of it is theirs, such as the pods of an indexed Job.

Each runs its share of the passes that are sure to be needed and keeps the logits in Redis. The last one collects: it
waits for what the others have not stored yet, runs what does not come, chooses, and reports. The shares follow from the
data and the number of processes alone, so that one that is started again does what its predecessor left.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.errors import BadData
from app.sweep.jobs.sweep_store import SweepStore
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import chunks_of, pass_name
from app.sweep.logits.logit_curve import planned
from app.sweep.sweep_spec import SweepSpec
from app.weights.recipe import Recipe

PATIENCE_SECONDS = 300.0
"""For which the last process waits after the latest chunk of another one."""
LOOK_SECONDS = 0.2


class Shard:
    """One process's share of a sweep; to the one that collects, a provider of what all of them have run."""

    def __init__(self, text: str, provider: LocalProvider, store: SweepStore) -> None:
        """`text` is which of how many, such as `0/4`; raises `BadData`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        self.index, self.count = map(int, match.groups()) if match else (0, 0)
        if not self.index < self.count:
            raise BadData(f"--share {text}: write which of how many, from 0/4 to 3/4 for four")
        self._provider = provider
        self._store = store
        self._loop = asyncio.Runner()
        self._foreign: set[str] = set()
        self._heard = time.monotonic()

    @property
    def collects(self) -> bool:
        return self.index == self.count - 1

    def run(self, spec: SweepSpec) -> int:
        """Run this share, unless it is stored; gives how many chunks it has."""
        chunks = [
            (chunk, spec.line.at(t))
            for t in planned(spec.grid)
            for dataset in spec.datasets
            for chunk in chunks_of(dataset.texts)
        ]
        mine = chunks[self.index :: self.count]
        for texts, recipe in mine:
            if self._stored(texts, recipe) is None:
                self._run(texts, recipe)
        self._foreign = {self._name(*chunk) for chunk in chunks} - {self._name(*chunk) for chunk in mine}
        self._heard = time.monotonic()
        return len(mine)

    def key(self, recipe: Recipe) -> str:
        return self._provider.key(recipe)

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        """What was stored, by whichever process; what is not another one's, or does not come, is run here."""
        while True:
            found = self._stored(texts, recipe)
            if found is not None:
                self._heard = time.monotonic()
                return found
            if self._name(texts, recipe) not in self._foreign or self._is_tired:
                return self._run(texts, recipe)
            time.sleep(LOOK_SECONDS)

    @property
    def _is_tired(self) -> bool:
        return time.monotonic() - self._heard > PATIENCE_SECONDS

    def _stored(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32] | None:
        found = self._loop.run(self._store.logits(self._name(texts, recipe)))
        classes = len(self._provider.labels)
        if found is None or len(found) != 4 * classes * len(texts):
            return None
        return np.frombuffer(found, dtype=np.float32).reshape(len(texts), classes)

    def _run(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        logits = self._provider.logits(texts, recipe)
        self._loop.run(self._store.keep_logits(self._name(texts, recipe), logits.tobytes()))
        return logits

    def _name(self, texts: Sequence[str], recipe: Recipe) -> str:
        return pass_name(self.key(recipe), texts)
