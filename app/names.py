"""Names in any script: of variants, aliases, arms, metrics, experiments and segments.

Unicode spells one name in several ways: `é` is one character or two. Names are normalised to NFC wherever they are
read, so that both are one recipe, one key and one document. A name is made of what a reader sees: letters, their marks,
and digits. Blanks, control characters and what is invisible or steers other characters are refused, and so is what
recipes give a meaning to. NFC and no more: `Ａ` (full width) and `A` look different and are two names.
"""

from __future__ import annotations

import unicodedata

MAX_NAME = 64
MAX_WRITTEN = 2_000
"""Characters beyond which nothing is normalised, as it can be no name or recipe: the time goes by the square of a run
of combining marks."""
INVISIBLE = frozenset(
    map(
        chr,
        (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, *range(0xFE00, 0xFE10), 0xFFA0)
        + tuple(range(0xE0100, 0xE01F0)),
    )
)
"""Letters and marks by their category that show nothing (Default_Ignorable_Code_Point)."""


def nfc(text: str) -> str:
    """The text in the one spelling that is compared and kept."""
    return text if text.isascii() or len(text) > MAX_WRITTEN else unicodedata.normalize("NFC", text)


def is_name(text: str, first: str = "_", further: str = "_-") -> bool:
    """Whether a text in NFC is a name: letters, marks and digits of any script, and a few of ASCII's signs; `first` are
    those that it may begin with."""
    if not 0 < len(text) <= MAX_NAME or not (text[0] in first or _kind(text[0]) in "LN"):
        return False
    return all(character in further or _kind(character) in "LMN" for character in text)


def _kind(character: str) -> str:
    """L: letter, M: mark, N: number, C: invisible, and others."""
    return "C" if character in INVISIBLE else unicodedata.category(character)[0]
