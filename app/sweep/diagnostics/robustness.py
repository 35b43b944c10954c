"""Robustness along t: labels that flip, and accuracy, when texts are perturbed or attacked.

Perturbations keep the meaning: typos, another casing, a dropped word, odd spaces. A text and a seed always give the
same perturbed text, which runs through the same blends. They are written here because libraries for this bring other
models or word lists to download. The attack is a white-box figure: one step of the
fast gradient method on the input embeddings (Miyato et al., arXiv 1605.07725), which no client can make through text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from app.sweep.choose_t import interval
from app.sweep.data.dataset import Dataset
from app.sweep.data.weighted_pool import WeightedPool
from app.sweep.logits.line import Line
from app.sweep.logits.logit_cache import LogitCache
from app.sweep.sweep_result import Steadiness, Value
from app.weights.recipe import Recipe

Perturbation = Callable[[str, Random], str]

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    letter: [row[i] for i in (index - 1, index + 1) if 0 <= i < len(row)]
    for row in ROWS
    for index, letter in enumerate(row)
}
"""Letters beside each other on a keyboard."""

TYPO_RATE = 0.1
"""Typos per word, at least one to a text."""

LONG_ENOUGH = 3
"""Letters of a word that gets a typo, and words of a text that loses one, at least."""


def typos(text: str, random: Random) -> str:
    """Letters swapped, dropped, doubled or replaced by a neighbour on the keyboard, never the first of a word."""
    words = text.split(" ")
    able = [index for index, word in enumerate(words) if sum(map(str.isalpha, word)) >= LONG_ENOUGH]
    count = min(len(able), max(1, round(TYPO_RATE * len(words))))
    for index in random.sample(able, count):
        words[index] = _typo(words[index], random)
    return " ".join(words)


def _typo(word: str, random: Random) -> str:
    places = [i for i in range(1, len(word)) if word[i].isalpha()]
    place = random.choice(places)
    letter = word[place]
    match random.choice(("swap", "drop", "double", "neighbour")):
        case "swap" if place > 1:
            return word[: place - 1] + letter + word[place - 1] + word[place + 1 :]
        case "drop":
            return word[:place] + word[place + 1 :]
        case "double":
            return word[:place] + letter + word[place:]
        case _:
            hit = random.choice(NEIGHBOURS.get(letter.lower(), [letter]))
            return word[:place] + (hit.upper() if letter.isupper() else hit) + word[place + 1 :]


def casing(text: str, random: Random) -> str:
    """Upper, lower or title case."""
    return random.choice((str.upper, str.lower, str.title))(text)


def dropped_word(text: str, random: Random) -> str:
    """One word less, if the text has three or more."""
    words = text.split()
    if len(words) < LONG_ENOUGH:
        return text
    del words[random.randrange(len(words))]
    return " ".join(words)


def spaces(text: str, random: Random) -> str:
    """Doubled, before punctuation, or one missing between two words."""
    gaps = [index for index, letter in enumerate(text) if letter == " "]
    if not gaps:
        return f" {text} "
    place = random.choice(gaps)
    return text[:place] + random.choice(("", "  ", "\n", "\t ")) + text[place + 1 :]


PERTURBATIONS: dict[str, Perturbation] = {
    "typos": typos,
    "casing": casing,
    "dropped word": dropped_word,
    "spaces": spaces,
}


def perturbed(text: str, name: str, seed: int) -> str:
    """The text after a perturbation, or the text itself if nothing would be left."""
    made = PERTURBATIONS[name](text, Random(f"{seed} {name} {text}"))
    return made if made.strip() else text


TS = (0.0, 0.2, 0.5, 0.8, 1.0)
MOST_TEXTS = 500
ATTACK = "embeddings"

Attack = Callable[[Sequence[str], NDArray[np.int64], Recipe], NDArray[np.float32]]
"""Logits (N, C) of texts with these labels under attack."""


def robustness(
    line: Line, dataset: Dataset, ts: Sequence[float], passes: LogitCache, seed: int = 0, attack: Attack | None = None
) -> dict[str, list[Steadiness]]:
    """By perturbation, at each t; with an `attack`, that one too, under the name ATTACK."""
    sample = _sample(dataset, seed)
    pool = WeightedPool.of([sample])
    changed = {name: [perturbed(text, name, seed) for text in sample.texts] for name in PERTURBATIONS}
    passes.expect((1 + len(changed)) * len(ts) * len(sample))
    found: dict[str, list[Steadiness]] = {name: [] for name in (*changed, *([ATTACK] if attack else []))}
    for t in ts:
        recipe = line.at(t)
        plain = passes.logits(sample.texts, recipe).argmax(axis=1)
        for name, texts in changed.items():
            found[name].append(_steadiness(t, plain, passes.logits(texts, recipe).argmax(axis=1), pool, seed))
        if attack is not None:
            attacked = attack(sample.texts, sample.truth, recipe).argmax(axis=1)
            found[ATTACK].append(_steadiness(t, plain, attacked, pool, seed))
    return found


def _sample(dataset: Dataset, seed: int) -> Dataset:
    """At most MOST_TEXTS of the texts."""
    if len(dataset) <= MOST_TEXTS:
        return dataset
    return dataset.subset(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:MOST_TEXTS]))


def _steadiness(
    t: float, plain: NDArray[np.int64], now: NDArray[np.int64], pool: WeightedPool, seed: int
) -> Steadiness:
    parts = np.stack([now != plain, now == pool.labels], axis=-1)[None].astype(np.float64)  # (1, N, 2)
    flips, accuracy = pool.mean(parts)[0]
    low, high = interval(pool.resampled(parts, seed=seed)[:, 0])
    return Steadiness(
        t, Value(float(flips), float(low[0]), float(high[0])), Value(float(accuracy), float(low[1]), float(high[1]))
    )
