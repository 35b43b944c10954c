"""Texts and recipes in, predictions out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.cache.prediction_cache import Known, Lookup, PredictionCache
from app.cluster.redis_client import RedisClient
from app.errors import BadTexts, NotFinite, PassFailed
from app.models.bank import Bank
from app.models.checkpoint import safetensors_stream
from app.models.tokenizer import Row, Text
from app.serving.aliases import DEFAULT, Aliases
from app.serving.background_inference import BackgroundInference
from app.serving.batcher import Batcher
from app.serving.blend_provider import MIXED, BlendProvider
from app.serving.executor import ExecutorPool, Vector, logits_of
from app.serving.histogram import SECONDS, Histogram
from app.serving.request_queue import RowLogits
from app.serving.tokenizing import Tokenizing
from app.spans import spent
from app.weights.auto_recipe import Auto
from app.weights.recipe import MICRO, Cookbook, Recipe

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}
"""What turns logits (B, C), divided by the recipe's temperature, into the scores of a reply."""

DEFAULT_FUNCTION = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


@dataclass(frozen=True)
class Prediction:
    """Scores (C,) of one text, in the order of the bank's labels, and the recipe of its weights.

    `cached`: they were remembered, and no weights were needed.
    """

    scores: list[float]
    recipe: Recipe
    tokens: int
    truncated: bool
    cached: bool


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
    """Predictions in the order of the texts, the key of each one's blend, and where the weights came from.

    Where every prediction was remembered, `source` is where they were.
    """

    predictions: list[Prediction]
    keys: list[str]
    source: str
    timings: Timings


@dataclass(frozen=True)
class _Part:
    """What became of the rows of one recipe."""

    source: str
    blend_ms: float
    scored: RowLogits


class Engine:
    """Ties the bank, its blends and the batcher together."""

    def __init__(
        self,
        bank: Bank,
        cookbook: Cookbook,
        blends: BlendProvider,
        compute: ExecutorPool,
        batcher: Batcher,
        tokenizing: Tokenizing,
        predictions: PredictionCache | None,
        aliases: Aliases,
        default_recipe: Recipe,
        max_texts: int,
        errands: BackgroundInference,
        redis: RedisClient | None,
    ) -> None:
        """Without `predictions`, every text is run."""
        self.bank = bank
        self.cookbook = cookbook
        self.blends = blends
        self.compute = compute
        self.batcher = batcher
        self.predictions = predictions
        self.aliases = aliases
        self.errands = errands
        self.redis = redis
        self.stages = {stage: Histogram(SECONDS) for stage in ("queue", "blend", "tokenize", "forward")}
        self.max_tokens = tokenizing.encoder.max_tokens
        self.limits = tokenizing.encoder.limits
        self._default_recipe = default_recipe
        self._tokenizing = tokenizing
        self.max_texts = max_texts

    @property
    def default_recipe(self) -> Recipe | Auto:
        """The recipe of requests that name none: `@prod` if there is such an alias, else the configured one."""
        return self.cookbook.aliases.get(DEFAULT, self._default_recipe)

    async def predict(
        self, texts: Sequence[Text], recipes: Recipe | Sequence[Recipe], function: str | None = None, cache: bool = True
    ) -> Answer:
        """Classify texts with the blend of a recipe, or each with that of its own.

        `function` is a key of FUNCTIONS; None takes the one that fits how the bank was trained. Without `cache`,
        predictions are neither looked up nor remembered. Raises `BadTexts` for texts that cannot be read and
        `Overloaded` when too many wait.
        """
        started = time.perf_counter()
        each = [recipes] * len(texts) if isinstance(recipes, Recipe) else list(recipes)
        self.check(texts, len(each))
        keys = self._keys(each)
        tokenize = 0.0

        async def rows_of(indices: Sequence[int]) -> dict[int, Row]:
            nonlocal tokenize
            rows, tokenize = await self._tokenize({index: texts[index] for index in indices})
            return rows

        predictions = self.predictions if cache else None
        if predictions is not None:
            found = await predictions.lookup(keys, texts, rows_of)
        else:
            found = Lookup({}, {}, await rows_of(range(len(texts))), {})
        parts, fresh = await self._run_misses(found.misses, each)
        if predictions is not None and fresh:
            predictions.store(keys, texts, found, fresh)
        known = found.hits | fresh
        logits = logits_of([known[index].logits for index in range(len(texts))])
        scores = self._scores(_tempered(logits, each), function)
        self._note_stages(tokenize, parts)
        return Answer(
            [
                Prediction(scores[i], each[i], known[i].tokens, known[i].truncated, cached=i in found.hits)
                for i in range(len(texts))
            ],
            keys,
            _common([part.source for part in parts] or list(found.sources.values())),
            Timings(
                queue=max((part.scored.queue_ms for part in parts), default=0.0),
                blend=max((part.blend_ms for part in parts), default=0.0),
                tokenize=tokenize,
                forward=max((part.scored.forward_ms for part in parts), default=0.0),
                total=(time.perf_counter() - started) * 1e3,
            ),
        )

    async def _run_misses(
        self, rows: Mapping[int, Row], recipes: Sequence[Recipe]
    ) -> tuple[list[_Part], dict[int, Known]]:
        """Run the rows that no cache knows, by their recipes."""
        if not rows:
            return [], {}
        by_recipe: dict[Recipe, list[int]] = {}
        for index in rows:
            by_recipe.setdefault(recipes[index].blend, []).append(index)
        logits: dict[int, bytes] = {}
        parts = await self._run(by_recipe, rows, logits)
        fresh = {index: Known(logits[index], len(row.ids), row.truncated) for index, row in rows.items()}
        return list(parts.values()), fresh

    async def _run(
        self, by_recipe: Mapping[Recipe, list[int]], rows: Mapping[int, Row], logits: dict[int, bytes]
    ) -> dict[Recipe, _Part]:
        """The rows of each recipe, side by side. Each holds its own blend and no other, so that no two requests can
        wait for slots that the other one holds; where one is refused, the rest is called off."""

        waits = False  # whether rows of this request are in line

        async def run(recipe: Recipe, indices: list[int]) -> _Part:
            nonlocal waits
            mine = [rows[index] for index in indices]
            begun = time.perf_counter()
            async with self.blends.use(recipe, sum(len(row) for row in mine)) as weights:
                joined = time.perf_counter()
                follows, waits = waits, True
                try:
                    scored = await self.batcher.submit(mine, weights, follows)
                except PassFailed as error:
                    raise PassFailed(f"text {indices[error.row]}: {error}") from error
                _check_finite(dict(zip(indices, scored.logits, strict=True)), recipe)
            taken = joined + scored.queue_ms / 1e3
            spent("blend", begun, joined)
            spent("queue", joined, taken)
            spent("forward", taken, taken + scored.forward_ms / 1e3)
            logits.update(zip(indices, scored.logits, strict=True))
            return _Part(weights.source, weights.milliseconds, scored)

        if len(by_recipe) == 1:
            ((recipe, indices),) = by_recipe.items()
            return {recipe: await run(recipe, indices)}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {recipe: group.create_task(run(recipe, indices)) for recipe, indices in by_recipe.items()}
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return {recipe: task.result() for recipe, task in tasks.items()}

    async def weights_file(self, key: str, temperature: float = 1.0) -> tuple[int, AsyncIterator[bytes]]:
        """A cached blend as a safetensors file: its length in bytes, and its bytes; raises `UnknownBlend`, and
        `BadRecipe` for a temperature that no recipe may name.

        With a temperature, the layer that gives the logits is divided by it, which divides the logits: it is linear.
        The blend stays in its slot until the last byte is taken or the iterator is closed.
        """
        text = (await self.blends.find(key)).recipe
        recipe = self.cookbook.read(f"{text};temperature={temperature!r}")
        layout, metadata = self.bank.arena.layout, {"recipe": recipe.text, "bank": self.bank.fingerprint}
        divisors = {} if temperature == 1 else dict.fromkeys(self.bank.output_parameters, temperature)
        length, file = safetensors_stream(layout, self.bank.arena.rows.dtype, metadata, divisors)
        async with self.blends.lease(recipe):
            pass  # what cannot be had is refused before the first byte

        async def pieces() -> AsyncIterator[bytes]:
            async with self.blends.lease(recipe) as weights:
                assert isinstance(weights.operand, Vector)
                for piece in file(weights.operand.values):
                    yield piece

        return length, pieces()

    def check_lengths(self, texts: int, recipes: int | None = None) -> None:
        """Raises `BadTexts` where there are too many texts, or a list of recipes that has not one for each of them;
        to be asked before any of these is looked at."""
        if not texts:
            raise BadTexts("texts is empty; send at least one text")
        if texts > self.max_texts:
            raise BadTexts(f"{texts} texts in one call; at most {self.max_texts} are taken")
        if recipes is not None and recipes != texts:
            raise BadTexts(f"{texts} texts and {recipes} recipes; a list of recipes has one for every text")

    def check(self, texts: Sequence[Text], recipes: int | None = None) -> None:
        """Raises `BadTexts` as `check_lengths` does, and for a text that cannot be read."""
        self.check_lengths(len(texts), recipes)
        for index, text in enumerate(texts):
            parts = [text] if isinstance(text, str) else text
            if not all(part.strip() for part in parts):
                raise BadTexts(f"text {index} is empty; every text needs at least one visible character")
            try:
                "".join(parts).encode()
            except UnicodeEncodeError:
                # JSON can write half of a character (a lone surrogate), which no tokenizer can read.
                raise BadTexts(f"text {index} is not valid Unicode: it holds a lone surrogate") from None

    def _keys(self, recipes: Sequence[Recipe]) -> list[str]:
        """The key of each one's blend."""
        keys = {recipe: self.blends.key(recipe) for recipe in dict.fromkeys(recipes)}
        return [keys[recipe] for recipe in recipes]

    async def _tokenize(self, texts: Mapping[int, Text]) -> tuple[dict[int, Row], float]:
        """A row for each text, and the milliseconds that they took; raises `Overloaded` before any is tokenized."""
        if not texts:
            return {}, 0.0
        self.batcher.admit(len(texts))
        started = time.perf_counter()
        rows = await self._tokenizing.rows(list(texts.values()))
        spent("tokenize", started)
        return dict(zip(texts, rows, strict=True)), (time.perf_counter() - started) * 1e3

    def _note_stages(self, tokenize_ms: float, parts: Sequence[_Part]) -> None:
        self.stages["tokenize"].note(tokenize_ms / 1e3)
        for part in parts:
            self.stages["queue"].note(part.scored.queue_ms / 1e3)
            self.stages["blend"].note(part.blend_ms / 1e3)
            self.stages["forward"].note(part.scored.forward_ms / 1e3)

    def _scores(self, logits: Tensor, function: str | None) -> list[list[float]]:
        name = function or DEFAULT_FUNCTION[self.bank.problem_type]
        scores: list[list[float]] = FUNCTIONS[name](logits).tolist()
        return scores


def _tempered(logits: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    """Logits (N, C), each row divided by the temperature of its recipe."""
    temperatures = [recipe.temperature for recipe in recipes]
    if temperatures.count(MICRO) == len(temperatures):
        return logits
    tempered = logits / (torch.tensor(temperatures) / MICRO)[:, None]
    if not bool(tempered.isfinite().all()):
        raise NotFinite("logits divided by so small a temperature are not finite; name a larger one")
    return tempered


def _check_finite(logits: Mapping[int, bytes], recipe: Recipe) -> None:
    """Raises `NotFinite` for the first text without logits; `logits` by the text's number."""
    for index, values in logits.items():
        if not values:
            raise NotFinite(
                f"text {index}: the blend {recipe.text} gives logits that are not finite, so there is no answer; "
                "choose a t nearer to the members"
            )


def _common(sources: Sequence[str]) -> str:
    """The one source that all parts share, else `mixed`."""
    return sources[0] if len(set(sources)) == 1 else MIXED
