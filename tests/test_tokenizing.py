"""Long texts are tokenized a piece at a time, and nothing is begun for callers who are gone."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pico
import pytest

from app.models.tokenizer import Row, Text, TextTokenizer
from app.serving import tokenizing
from app.serving.tokenizing import PIECE, SHORT, Tokenizing

LONG = "late order " * 1_000


class Watched(TextTokenizer):
    """Remembers what it was given, and waits until it may go on."""

    def __init__(self) -> None:
        super().__init__(pico.tokenizer(), pico.CONFIGS["bert"], 64)
        self.given: list[list[Text]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def encode(self, texts: list[Text]) -> list[Row]:
        self.given.append(list(texts))
        self.begun.set()
        assert self.go_on.wait(10)
        return super().encode(texts)


@pytest.fixture
def encoder() -> Watched:
    return Watched()


def test_rows_come_in_order_from_pieces_of_bounded_length(encoder: Watched) -> None:
    texts: list[Text] = [f"{i} {LONG}" if i % 3 else (f"{i}", LONG * 2) for i in range(40)]
    with ThreadPoolExecutor(1) as executor:
        rows = asyncio.run(Tokenizing(encoder, executor).rows(texts))
    assert rows == TextTokenizer(pico.tokenizer(), pico.CONFIGS["bert"], 64).encode(texts)
    assert [text for piece in encoder.given for text in piece] == texts
    read = [
        sum(min(len(part), 20_000) for text in p for part in ([text] if isinstance(text, str) else text))
        for p in encoder.given
    ]
    assert max(read) <= PIECE and len(read) < 20


def test_a_short_text_needs_no_thread_and_a_long_one_is_a_piece_of_its_own(encoder: Watched) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.shutdown()  # whatever is given to it fails
        assert len(asyncio.run(Tokenizing(encoder, executor).rows(["late " * (SHORT // 5)]))) == 1
        with pytest.raises(RuntimeError):
            asyncio.run(Tokenizing(encoder, executor).rows(["late " * SHORT]))
    with ThreadPoolExecutor(1) as executor:
        asyncio.run(Tokenizing(encoder, executor).rows(["x" * 10**6, "y" * 10**6]))
    assert len(encoder.given) == 2 and len(encoder.given[1]) == 2  # of each, 20,000 characters are read


def test_what_was_called_off_is_not_begun(encoder: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "PIECE", 12_000)

    async def scenario(executor: ThreadPoolExecutor) -> None:
        work = Tokenizing(encoder, executor)
        encoder.go_on.clear()
        first = asyncio.create_task(work.rows([f"first {LONG}"] * 5))
        await asyncio.to_thread(encoder.begun.wait, 10)
        waiting = asyncio.create_task(work.rows([f"waiting {LONG}"] * 5))
        patient = asyncio.create_task(work.rows([f"patient {LONG}"]))
        await asyncio.sleep(0)
        first.cancel()
        waiting.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        encoder.go_on.set()
        assert len(await patient) == 1

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
    assert [texts[0].split()[0] for texts in encoder.given] == ["first", "patient"]


def test_a_caller_with_a_long_list_leaves_room_for_others_between_its_pieces(encoder: Watched) -> None:
    async def scenario(executor: ThreadPoolExecutor) -> None:
        work = Tokenizing(encoder, executor)
        encoder.go_on.clear()
        many = asyncio.create_task(work.rows([f"many {LONG}"] * 50))
        await asyncio.to_thread(encoder.begun.wait, 10)
        one = asyncio.create_task(work.rows([f"one {LONG}"]))
        await asyncio.sleep(0)
        encoder.go_on.set()
        await asyncio.gather(many, one)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
    assert [texts[0].split()[0] for texts in encoder.given][:3] == ["many", "one", "many"]
