"""Passes that nobody waits for at a keyboard: a sweep's, say. They take what callers leave.

An errand's rows are run in pieces of a few milliseconds, one piece at a time whatever the number of units, and a piece
begins only while all units are idle and no caller's row waits: units share cores and memory, so a piece slows down a
pass beside it. A caller who comes meets at most one piece, and where there are several units another one is free.
Under load that never pauses an errand still gets on: a piece waits for at most PATIENCE times as long as the last one
took, and then stands in line like everybody else.

Rows are mixed from the members wherever the model allows: nothing is built, and no blend that callers use has to go.
Pieces depend on the rows alone, so that an errand that is run again gives the same logits, bit by bit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from app.errors import BlendNotPublished, NotFinite, PassFailed, TweenError
from app.models.bank import Bank
from app.models.classifier import Mix
from app.models.tokenizer import Row, Text
from app.serving.batcher import WORTH_TOKENS, Batcher
from app.serving.bisection import blamed, others_run
from app.serving.blend_provider import BlendProvider
from app.serving.executor import Executor, ExecutorPool, Vector
from app.serving.tokenizing import Tokenizing
from app.weights.recipe import Recipe

log = logging.getLogger(__name__)

PIECE_TOKENS = WORTH_TOKENS
"""Fewer are slower for each, and more would stand longer in a caller's way."""
PATIENCE = 10
LOOK_SECONDS = 0.002


class BackgroundInference:
    """Logits for whoever has time."""

    def __init__(
        self,
        bank: Bank,
        blends: BlendProvider,
        compute: ExecutorPool,
        batcher: Batcher,
        tokenizing: Tokenizing,
    ) -> None:
        self._bank = bank
        self._blends = blends
        self._compute = compute
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._one_at_a_time = asyncio.Lock()
        self._seconds = 0.0
        self.pieces = 0

    async def logits(self, texts: Sequence[Text], recipe: Recipe) -> bytes:
        """Logits (N, C) in the order of the texts, as the bytes of float32. Raises `BlendNotPublished` without
        members."""
        if not self._bank.has_members:
            raise BlendNotPublished("this pod holds no members to mix blends from; ask a pod that does")
        rows = await self._tokenizing.rows(texts)
        async with self._weights(recipe) as operand:
            return b"".join([await self._run(piece, operand) for piece in pieces(rows)])

    @asynccontextmanager
    async def _weights(self, recipe: Recipe) -> AsyncIterator[Vector | Mix]:
        if self._compute.mixes:
            yield Mix.of(recipe.weights, self._bank.arena)
        else:
            async with self._blends.lease(recipe) as weights:
                yield weights.operand

    async def _run(self, rows: Sequence[Row], operand: Vector | Mix) -> bytes:
        """Logits of one piece, when its turn has come."""
        async with self._one_at_a_time:
            await self._lull()
            async with self._compute.unit() as unit:
                logits, self._seconds = await self._forward(unit, rows, operand)
        self.pieces += 1
        if not all(logits):
            raise NotFinite(
                "a blend gives logits that are not finite for one of the texts; choose t's nearer to the members"
            )
        return b"".join(logits)

    async def _forward(self, unit: Executor, rows: Sequence[Row], operand: Vector | Mix) -> tuple[list[bytes], float]:
        """Logits and seconds of one pass. Where it fails, each row is run alone; raises `PassFailed` for the first that
        fails so and is to blame."""
        try:
            return await unit.forward(rows, [operand] * len(rows))
        except TweenError:
            raise
        except Exception as error:
            if not await others_run(unit, operand):
                raise
            log.warning("a piece of %d texts fails: %s", len(rows), error)
        logits, seconds = [], 0.0
        for row in rows:
            try:
                (values,), took = await unit.forward([row], [operand])
            except TweenError:
                raise
            except Exception as error:
                raise PassFailed(f"one of the texts: {blamed(row, error, 0)}") from error
            logits.append(values)
            seconds += took
        return logits, seconds

    async def _lull(self) -> None:
        """Until no caller waits or is served, or patience ends."""
        deadline = time.monotonic() + PATIENCE * self._seconds
        while (self._batcher.waiting_rows or self._compute.idle < self._compute.units) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)


def pieces(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Neighbours that have at most PIECE_TOKENS together; a longer row is a piece of its own."""
    start = tokens = 0
    for index, row in enumerate(rows):
        if index > start and tokens + len(row) > PIECE_TOKENS:
            yield rows[start:index]
            start, tokens = index, 0
        tokens += len(row)
    if rows:
        yield rows[start:]
