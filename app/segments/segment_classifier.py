"""From which segment a text comes, guessed from its words: a softmax over hashed words, as a sweep has fitted it.

A word's place is part of the file format, so it comes from BLAKE2b and is the same in every process and version.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from app.models.tokenizer import Text

BUCKETS = 8192
"""Places that words share; at a few thousand words that matter, a clash is rare and cheap."""
WORD = re.compile(r"\w+")
LONGEST = 2_000
"""Characters that are looked at: a longer text has told by then where it comes from."""
KEPT_WORD = 64
"""Characters of a word whose place is remembered; longer ones are rare, and many of them would fill the memory."""


def buckets_of(text: Text) -> list[int]:
    """The places of a text's different words, in ascending order."""
    whole = text if isinstance(text, str) else " ".join(text)
    words = WORD.findall(whole[:LONGEST].lower())
    return sorted({_kept_bucket(word) if len(word) <= KEPT_WORD else _bucket(word) for word in words})


def _bucket(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % BUCKETS


_kept_bucket = lru_cache(maxsize=50_000)(_bucket)


@dataclass(frozen=True, eq=False)
class SegmentClassifier:
    """p(segment | text) = softmax(x W + b), where x is 1 / sqrt(words) at the place of each different word.

    `weights` (BUCKETS, K) and `bias` (K,), K segments.
    """

    segments: tuple[str, ...]
    weights: Tensor
    bias: Tensor

    def probabilities(self, texts: Sequence[Text]) -> Tensor:
        """How likely each text (N) comes from each segment (K): (N, K); without words, by how common segments are."""
        return torch.softmax(torch.stack([self._scores(buckets_of(text)) for text in texts]), dim=-1)

    def _scores(self, buckets: list[int]) -> Tensor:
        total: Tensor = self.weights[buckets].sum(dim=0)
        return self.bias + total / math.sqrt(max(1, len(buckets)))
