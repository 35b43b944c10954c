"""Whether a model has a row for every token that its tokenizer can give.

One that is beyond the table fails the pass of everybody whose text shares its batch, and on a GPU it is an assertion in
a kernel, after which the process can compute nothing any more. So it is looked at when the bank is loaded.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

from app.errors import BadBank


def check_token_ids(member: str, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> None:
    """Raises `BadBank` for a token, or a part of a pair, whose number is not below the rows of its embedding."""
    numbers = dict(tokenizer.get_vocab())
    pair = _plain(tokenizer).encode("a", "a")
    # A template may insert special tokens by numbers that stand in no vocabulary.
    numbers |= {token: id for token, id in zip(pair.tokens, pair.ids, strict=True) if numbers.get(token) != id}
    token, highest = max(numbers.items(), key=lambda item: item[1])
    if highest >= config.vocab_size:
        raise BadBank(
            f"{member}: its tokenizer gives {token[:60]!r} the number {highest}, and its embedding has rows 0 to "
            f"{config.vocab_size - 1}; resize the embedding (resize_token_embeddings) and save both again"
        )
    types = getattr(config, "type_vocab_size", 0)
    if types and "token_type_ids" in tokenizer.model_input_names and max(pair.type_ids) >= types:
        raise BadBank(
            f"{member}: its tokenizer gives a part of a pair the type {max(pair.type_ids)}, and its embedding has "
            f"types 0 to {types - 1}"
        )


def _plain(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy that neither pads nor cuts."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain
