"""Texts to token rows, by the base's own tokenizer, in Rust and without the global lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

Text = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text as the model reads it. `truncated`: it was longer than the model can read."""

    ids: list[int]
    types: list[int]
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


class TextEncoder:
    """Tokenizes with the special tokens, cuts at `max_tokens`, and says when it did."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, max_tokens: int) -> None:
        self.max_tokens = min(max_tokens, _longest(tokenizer, config))
        # A copy, because truncation is a setting of the Rust object that others may change.
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)

    def encode(self, texts: Sequence[Text]) -> list[Row]:
        """One row per text, in order."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))  # without offsets, which nobody asks for
        return [Row(e.ids, e.type_ids, truncated=bool(e.overflowing)) for e in encodings]


def _longest(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> int:
    """The most tokens that the model can read, by its position table and its tokenizer."""
    positions: int = config.max_position_embeddings
    if config.model_type in ("roberta", "xlm-roberta"):
        # Their positions count from the padding index + 1, so the table has that many rows fewer to give.
        positions -= config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)
