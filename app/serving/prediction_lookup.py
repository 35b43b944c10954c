"""What the predictions cache knows of one request's texts, and what it is told about the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from app.cache.prediction_cache import Known, Name, PredictionCache
from app.models.tokenizer import Row, Text
from app.serving.executor import logits_of


class PredictionLookup:
    """Logits of a request's texts by their index in it, as they become known. Without `predictions`, of none yet."""

    def __init__(self, predictions: PredictionCache | None, keys: Sequence[str], texts: Sequence[Text]) -> None:
        """Asks this process's memory; `keys` are those of the blends, one for every text."""
        self._predictions = predictions
        self._keys = keys
        self._texts = texts
        self._names: dict[int, Name] = {}
        self._known: dict[int, Known] = {}
        self.sources: dict[int, str] = {}
        """Where those that were remembered come from: `memory` or `redis`."""
        if predictions is not None:
            for index, (key, text) in enumerate(zip(keys, texts, strict=True)):
                known = predictions.recall(key, text)
                if known is not None:
                    self._known[index] = known
                    self.sources[index] = "memory"

    def __getitem__(self, index: int) -> Known:
        return self._known[index]

    def unknown(self) -> list[int]:
        return [index for index in range(len(self._texts)) if index not in self._known]

    async def look_up(self, rows: Mapping[int, Row]) -> None:
        """Ask Redis for texts that have been tokenized meanwhile."""
        if self._predictions is None or not rows:
            return
        self._names = {index: Name.of(self._keys[index], row.ids, row.types) for index, row in rows.items()}
        found = await self._predictions.look_up(list(self._names.values()))
        for index, logits in zip(rows, found, strict=True):
            if logits is not None:
                self._learn(index, rows[index], logits, None)
                self.sources[index] = "redis"

    def learn(self, rows: Mapping[int, Row], logits: Mapping[int, bytes]) -> None:
        """Note what a forward pass gave, each (C,) as the bytes of float32, and have it remembered."""
        for index, row in rows.items():
            self._learn(index, row, logits[index], self._names.get(index))

    def _learn(self, index: int, row: Row, logits: bytes, name: Name | None) -> None:
        known = self._known[index] = Known(logits, len(row), row.truncated)
        if self._predictions is not None:
            self._predictions.remember(self._keys[index], self._texts[index], known, name)

    def logits(self) -> Tensor:
        """Logits (N, C) of all N texts, once all are known."""
        return logits_of([self._known[index].logits for index in range(len(self._texts))])
