"""Tokenizes for the event loop: short texts at once, long ones on a thread of their own and a piece at a time.

All callers share that thread. A call has one piece in its line and no more, so that others come in between. One that
is cancelled, because its deadline has passed or its caller is gone, begins no other, and the executor drops what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

from app.models.tokenizer import Row, Text, TextTokenizer

SHORT = 1_000
"""Characters that are tokenized at once (40 us for a sentence): going to another thread and back takes longer."""
PIECE = 50_000
"""Characters of a piece, some 50 ms; a longer text is a piece of its own."""


class Tokenizing:
    """The encoder, and the thread that it works on."""

    def __init__(self, encoder: TextTokenizer, executor: Executor) -> None:
        self.encoder = encoder
        self._executor = executor

    async def rows(self, texts: Sequence[Text]) -> list[Row]:
        """A row for each text, in order."""
        if sum(map(self._read, texts)) <= SHORT:
            return self.encoder.encode(texts)
        loop, rows = asyncio.get_running_loop(), list[Row]()
        for piece in self._pieces(texts):
            rows += await loop.run_in_executor(self._executor, self.encoder.encode, piece)
        return rows

    def _pieces(self, texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
        start = characters = 0
        for index, text in enumerate(texts):
            length = self._read(text)
            if index > start and characters + length > PIECE:
                yield texts[start:index]
                start, characters = index, 0
            characters += length
        yield texts[start:]

    def _read(self, text: Text) -> int:
        """Characters that the encoder reads of a text."""
        parts = [text] if isinstance(text, str) else text
        return sum(min(len(part), self.encoder.max_characters) for part in parts)
