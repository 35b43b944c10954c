"""Where a sweep's passes are run: the seam between a sweep and whatever has time for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from app.serving.background_inference import BackgroundInference
from app.sweep.logits.logit_cache import Asked
from app.weights.recipe import Recipe


class JobRunner(Protocol):
    """Runs chunks of texts through blends."""

    async def begin(self, chunks: Sequence[Asked]) -> None:
        """These are going to be asked for, one by one; a runner that can do several at a time begins."""

    def has_begun(self, texts: Sequence[str], recipe: Recipe) -> bool:
        """Whether a chunk is being run because it was foreseen."""
        ...

    async def logits(self, texts: Sequence[str], recipe: Recipe) -> bytes:
        """Logits (N, C) in the order of the texts, as the bytes of float32."""
        ...


class LocalRunner:
    """In this pod, whenever callers leave it time."""

    def __init__(self, errands: BackgroundInference) -> None:
        self._errands = errands

    async def begin(self, chunks: Sequence[Asked]) -> None:
        """One chunk at a time is as much as there is time for."""

    def has_begun(self, texts: Sequence[str], recipe: Recipe) -> bool:
        return False

    async def logits(self, texts: Sequence[str], recipe: Recipe) -> bytes:
        return await self._errands.logits(texts, recipe)
