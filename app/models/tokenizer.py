"""Texts to token rows, by the base's own tokenizer, in Rust and without the global lock.

A text is cut twice. Before it is tokenized, at so many characters, because each of them costs time and memory whether
the model reads it or not. Afterwards, at so many tokens; both halves of a pair as transformers' `longest_first` cuts
them. The library could do that as well, but it keeps what it cuts off and makes every combination of these pieces of
both halves, which takes memory by the square of a pair's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

from app.errors import BadBank

MAX_CHARACTERS = 20_000
"""Read of a text at most unless a setting says otherwise: far more than 512 tokens have."""
EXAMPLES = ("a 1.", "2 b c")
"""Two texts that every tokenizer makes tokens of, and not the same."""
Text = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""
Part = TypeVar("Part", str, list[int])


@dataclass(frozen=True, slots=True)
class Row:
    """One text as the model reads it. `truncated`: it was longer than the model can read."""

    ids: list[int]
    types: list[int]
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


class TextTokenizer:
    """Tokenizes with the special tokens, cuts at `max_characters` and `max_tokens`, and says when it did."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        config: PreTrainedConfig,
        max_tokens: int,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        """Raises `BadBank` for a tokenizer whose special tokens do not stand around and between the texts."""
        self.max_tokens = min(max_tokens, _longest(tokenizer, config))
        self.max_characters = max_characters
        self._keeps_the_end = tokenizer.truncation_side == "left"
        # A copy, because its settings are those of the Rust object, which others may change.
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = tokenizer.split_special_tokens
        self._frames = {parts: _Frame.of(self._tokenizer, parts) for parts in (1, 2)}

    @property
    def limits(self) -> str:
        """Where texts are cut, as a part of names of what was made of them."""
        return f"{self.max_tokens}-{self.max_characters}"

    def encode(self, texts: Sequence[Text]) -> list[Row]:
        """One row per text, in order."""
        given = [(text,) if isinstance(text, str) else text for text in texts]
        read = [self._kept(part, self.max_characters) for parts in given for part in parts]
        # Without offsets, which nobody asks for.
        encodings = iter(self._tokenizer.encode_batch_fast(read, add_special_tokens=False))
        return [self._row(parts, [next(encodings).ids for _ in parts]) for parts in given]

    def _row(self, texts: Sequence[str], ids: Sequence[list[int]]) -> Row:
        frame = self._frames[len(ids)]
        lengths = longest_first([len(part) for part in ids], self.max_tokens - frame.tokens)
        kept = [self._kept(part, length) for part, length in zip(ids, lengths, strict=True)]
        cut = any(len(text) > self.max_characters for text in texts) or sum(lengths) < sum(map(len, ids))
        return Row(*frame.around(kept), truncated=cut)

    def _kept(self, part: Part, length: int) -> Part:
        """As much of a text, or of its ids, as is read: the beginning, unless the tokenizer keeps the end."""
        if len(part) <= length:
            return part
        return part[len(part) - length :] if self._keeps_the_end else part[:length]


@dataclass(frozen=True)
class _Frame:
    """Special tokens and their types: before each text and after the last one; and the type of each text's tokens."""

    ids: list[list[int]]
    types: list[list[int]]
    kinds: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, parts: int) -> _Frame:
        """That of one text or of a pair, read from what the tokenizer puts around an example."""
        plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in EXAMPLES[:parts]]
        whole = tokenizer.encode(EXAMPLES[0], EXAMPLES[1] if parts == 2 else None)
        found = cls([[] for _ in range(parts + 1)], [[] for _ in range(parts + 1)], [0] * parts)
        texts = 0
        for token, kind, text in zip(whole.ids, whole.type_ids, whole.sequence_ids, strict=True):
            if text is None:
                found.ids[texts].append(token)
                found.types[texts].append(kind)
            else:
                texts = min(text + 1, parts)
                found.kinds[text] = kind
        if not all(plain) or found.around(plain) != (whole.ids, whole.type_ids):
            raise BadBank("the base's tokenizer puts its special tokens elsewhere than around and between texts")
        return found

    @property
    def tokens(self) -> int:
        """Special tokens in all."""
        return sum(map(len, self.ids))

    def around(self, texts: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """Ids and types of a row with these texts in it."""
        ids, types = list(self.ids[0]), list(self.types[0])
        for index, text in enumerate(texts):
            ids += text + self.ids[index + 1]
            types += [self.kinds[index]] * len(text) + self.types[index + 1]
        return ids, types


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """How much is kept of one text or of the two of a pair, so that all fits into `room` tokens: the longer one is
    shortened, and where both are longer than half of it, both to half."""
    room = max(room, 0)
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    shorter = min(first, second, room // 2)
    return [room - shorter, shorter] if first > second else [shorter, room - shorter]


def _longest(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> int:
    """The most tokens that the model can read, by its position table and its tokenizer."""
    positions: int = config.max_position_embeddings
    if config.model_type in ("roberta", "xlm-roberta"):
        # Their positions count from the padding index + 1, so the table has that many rows fewer to give.
        positions -= config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)


def check_token_ids(member: str, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> None:
    """Check that the embedding has a row for every token and pair type of the tokenizer; raises `BadBank`.

    A token beyond the table would fail the pass of every text in its batch; on a GPU it is an assertion in a kernel,
    after which the process can compute nothing. So loading a bank checks it.
    """
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
