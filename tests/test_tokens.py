from __future__ import annotations

import pico
import pytest

from app.models.tokens import TextEncoder


@pytest.fixture
def encoder() -> TextEncoder:
    return TextEncoder(pico.tokenizer(), pico.CONFIGS["bert"], max_tokens=512)


def test_rows_are_what_the_tokenizer_makes(encoder: TextEncoder) -> None:
    texts = ["the refund came late.", "Thanks!"]
    expected = pico.tokenizer()(texts)["input_ids"]
    assert [row.ids for row in encoder.encode(texts)] == expected


def test_a_pair_is_read_together(encoder: TextEncoder) -> None:
    (row,) = encoder.encode([("is it late?", "yes it is")])
    expected = pico.tokenizer()("is it late?", "yes it is")
    assert row.ids == expected["input_ids"]
    assert row.types == expected["token_type_ids"] and set(row.types) == {0, 1}


def test_truncation_is_done_and_reported(encoder: TextEncoder) -> None:
    # 64 positions, two of them for the special tokens.
    fits, long = encoder.encode(["late " * 62, "late " * 63])
    assert (len(fits), fits.truncated) == (64, False)
    assert (len(long), long.truncated) == (64, True)
    assert long.ids[-1] == pico.tokenizer().sep_token_id


def test_the_limit_is_the_smallest_of_setting_positions_and_tokenizer() -> None:
    bert, roberta = pico.CONFIGS["bert"], pico.CONFIGS["roberta"]
    assert TextEncoder(pico.tokenizer(), bert, max_tokens=10).max_tokens == 10
    assert TextEncoder(pico.tokenizer(), bert, max_tokens=512).max_tokens == 64
    # RoBERTa's positions start after the padding index.
    assert TextEncoder(pico.tokenizer(), roberta, max_tokens=512).max_tokens == 63


def test_very_long_and_odd_texts_are_read(encoder: TextEncoder) -> None:
    rows = encoder.encode(["late " * 20_000, "\x00\x01", "🙂 ünïcode", "\n\t late \r\n"])
    assert rows[0].truncated and all(len(row) >= 2 for row in rows)
