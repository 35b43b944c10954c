"""The one door: texts and a recipe in, predictions out. Every dialect ends here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from app.errors import BadTexts
from app.models.bank import Bank
from app.models.checkpoint import safetensors_stream
from app.models.tokens import Row, Text, TextEncoder
from app.serving.batcher import Batcher
from app.serving.blends import Blends
from app.weights.arena import BASE
from app.weights.recipe import Cookbook, Recipe

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}
"""What turns logits (B, C) into the scores of a reply."""

DEFAULT_FUNCTION = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


@dataclass(frozen=True)
class Prediction:
    """Scores (C,) of one text, in the order of the bank's labels."""

    scores: list[float]
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Timings:
    """Milliseconds: waiting in the queue, getting the blend, tokenizing, the forward pass, all of it."""

    queue: float
    blend: float
    tokenize: float
    forward: float
    total: float


@dataclass(frozen=True)
class Answer:
    """Predictions in the order of the texts, and the blend that made them."""

    predictions: list[Prediction]
    recipe: Recipe
    key: str
    source: str
    timings: Timings


class Engine:
    """Ties the bank, its blends and the batcher together."""

    def __init__(
        self,
        bank: Bank,
        cookbook: Cookbook,
        blends: Blends,
        batcher: Batcher,
        encoder: TextEncoder,
        tokenizing: Executor,
        default_recipe: Recipe,
        max_texts: int,
    ) -> None:
        self.bank = bank
        self.cookbook = cookbook
        self.blends = blends
        self.batcher = batcher
        self.default_recipe = default_recipe
        self.max_tokens = encoder.max_tokens
        self._encoder = encoder
        self._tokenizing = tokenizing
        self._max_texts = max_texts

    async def predict(self, texts: Sequence[Text], recipe: Recipe, function: str | None = None) -> Answer:
        """Classify texts with the blend of a recipe.

        `function` is a key of FUNCTIONS; None takes the one that fits how the bank was trained. Raises
        `BadTexts` for texts that cannot be read and `Overloaded` when too many wait.
        """
        started = time.perf_counter()
        self._check(texts)
        rows, tokenize = await self._tokenize(texts)
        async with self.blends.lease(recipe) as weights:
            scored = await self.batcher.submit(rows, weights.vector)
        scores = self._scores(scored.logits, function)
        total = (time.perf_counter() - started) * 1e3
        return Answer(
            [Prediction(s, len(row), row.truncated) for s, row in zip(scores, rows, strict=True)],
            recipe,
            weights.key,
            weights.source,
            Timings(scored.queue_ms, weights.milliseconds, tokenize, scored.forward_ms, total),
        )

    async def weights_file(self, key: str) -> tuple[int, AsyncIterator[bytes]]:
        """A cached blend as a safetensors file: its length in bytes, and its bytes; raises `UnknownBlend`.

        The blend stays in its slot until the last byte is taken or the iterator is closed.
        """
        recipe = self.cookbook.read((await self.blends.find(key)).recipe)
        layout, metadata = self.bank.arena.layout, {"recipe": recipe.text, "bank": self.bank.fingerprint}
        length, _ = safetensors_stream(layout, self.bank.arena[BASE], metadata)

        async def pieces() -> AsyncIterator[bytes]:
            async with self.blends.lease(recipe) as weights:
                for piece in safetensors_stream(layout, weights.vector, metadata)[1]:
                    yield piece

        return length, pieces()

    def _check(self, texts: Sequence[Text]) -> None:
        if not texts:
            raise BadTexts("texts is empty; send at least one text")
        if len(texts) > self._max_texts:
            raise BadTexts(f"{len(texts)} texts in one call; at most {self._max_texts} are taken")
        for index, text in enumerate(texts):
            parts = [text] if isinstance(text, str) else text
            if not all(part.strip() for part in parts):
                raise BadTexts(f"text {index} is empty; every text needs at least one visible character")
            try:
                "".join(parts).encode()
            except UnicodeEncodeError:
                # JSON can write half of a character (a lone surrogate), which no tokenizer can read.
                raise BadTexts(f"text {index} is not valid Unicode: it holds a lone surrogate") from None

    async def _tokenize(self, texts: Sequence[Text]) -> tuple[list[Row], float]:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._tokenizing, self._encoder.encode, texts)
        return rows, (time.perf_counter() - started) * 1e3

    def _scores(self, logits: Tensor, function: str | None) -> list[list[float]]:
        name = function or DEFAULT_FUNCTION[self.bank.problem_type]
        scores: list[list[float]] = FUNCTIONS[name](logits).tolist()
        return scores
