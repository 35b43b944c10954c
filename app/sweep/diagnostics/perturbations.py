"""What people do to a text without changing its meaning: typos, other capitals, a word left out, odd spaces.

A text and a seed give one perturbed text, always the same. A small module, because the libraries for this bring other
models, word lists to download, or both.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

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
"""Letters of a word that typos are made in, and words of a text that one is left out of."""


def typos(text: str, random: Random) -> str:
    """Letters swapped, left out, doubled or hit beside, never the first of a word."""
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
    """All in capitals, in none, or every word with one."""
    return random.choice((str.upper, str.lower, str.title))(text)


def dropped_word(text: str, random: Random) -> str:
    """One word less, where three or more stand there."""
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
    """The text after a perturbation; what would be left empty stays as it is."""
    made = PERTURBATIONS[name](text, Random(f"{seed} {name} {text}"))
    return made if made.strip() else text
