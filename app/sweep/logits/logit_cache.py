"""Forward passes over a data set, made once: the logits of a blend on some texts are kept under its key and theirs.

This is the seam between choosing t and whatever runs models: a `LogitProvider` gives logits, a `LogitStore` keeps them.
Another metric, another lambda or another run after a crash asks the store first and costs no pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import NotFinite
from app.weights.recipe import Recipe

CHUNK = 256
"""Texts asked for at once: progress is told, and a sweep can be called off, between chunks."""

Asked = tuple[Sequence[str], Recipe]
"""Texts and the blend that they are to run through."""

Progress = Callable[[int, int], None]
"""Called with the texts done and the texts expected. It may raise to end the sweep; finished passes stay stored."""


class LogitProvider(Protocol):
    """Runs texts through a blend."""

    def key(self, recipe: Recipe) -> str:
        """A name for all that decides the logits besides the texts."""
        ...

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        """Logits (N, C) in the order of the texts."""
        ...


class LogitStore(Protocol):
    """Keeps logits by name; what it lost is computed again."""

    def get(self, name: str) -> NDArray[np.float32] | None: ...

    def put(self, name: str, logits: NDArray[np.float32]) -> None: ...


class FolderLogitStore:
    """A file for each pass."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> NDArray[np.float32] | None:
        try:
            with (self._folder / f"{name}.npy").open("rb") as file:
                logits: NDArray[np.float32] = np.load(file, allow_pickle=False)
                return logits
        except (OSError, ValueError, EOFError):
            return None

    def put(self, name: str, logits: NDArray[np.float32]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=self._folder, prefix="writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, logits, allow_pickle=False)
            os.replace(partial, self._folder / f"{name}.npy")
        except OSError:
            # A full disk costs the next run a pass, and this one nothing.
            with contextlib.suppress(OSError):
                os.unlink(partial)


class MemoryLogitStore:
    """For as long as the object lives."""

    def __init__(self) -> None:
        self._logits: dict[str, NDArray[np.float32]] = {}

    def get(self, name: str) -> NDArray[np.float32] | None:
        return self._logits.get(name)

    def put(self, name: str, logits: NDArray[np.float32]) -> None:
        self._logits[name] = logits


class LogitCache:
    """Gives the logits of blends on texts, from the store or by a pass that is then stored.

    `recipes` are the blends that were asked for, `run` those of them that cost a pass now.
    """

    def __init__(
        self,
        provider: LogitProvider,
        store: LogitStore,
        on_progress: Progress = lambda done, expected: None,
        on_foreseen: Callable[[Sequence[Asked]], None] = lambda chunks: None,
    ) -> None:
        """`on_foreseen` hears of chunks before they are asked for one by one, so that others may begin with them."""
        self.provider = provider
        self.recipes: dict[Recipe, None] = {}
        self.run: dict[Recipe, None] = {}
        self._store = store
        self._on_progress = on_progress
        self._on_foreseen = on_foreseen
        self._done = 0
        self._expected = 0

    def expect(self, texts: int) -> None:
        """Tell the progress that so many more texts are going to be asked for."""
        self._expected += texts
        self._on_progress(self._done, self._expected)

    def foresee(self, asked: Sequence[Asked]) -> None:
        """Tell that all of this is going to be asked for."""
        missing = [(texts, recipe) for texts, recipe in asked if self._store.get(self._name(texts, recipe)) is None]
        self._on_foreseen([(chunk, recipe) for texts, recipe in missing for chunk in chunks_of(texts)])

    def logits(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float64]:
        """Logits (N, C) in the order of the texts."""
        self.recipes[recipe] = None
        name = self._name(texts, recipe)
        found = self._store.get(name)
        if found is None or len(found) != len(texts) or not np.isfinite(found).all():
            self.run[recipe] = None
            found = self._pass(texts, recipe)
            if not np.isfinite(found).all():
                raise NotFinite(f"the blend {recipe.text} gives logits that are not finite for some of the texts")
            self._store.put(name, found)
        else:
            self._tell(len(texts))
        return found.astype(np.float64)

    def _pass(self, texts: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        """Each different text once."""
        chunks = chunks_of(texts)
        self._on_foreseen([(chunk, recipe) for chunk in chunks])
        parts = []
        for chunk in chunks:
            parts.append(self.provider.logits(chunk, recipe))
            self._tell(len(chunk))
        place = {text: index for index, text in enumerate(text for chunk in chunks for text in chunk)}
        self._tell(len(texts) - len(place))
        return np.concatenate(parts)[[place[text] for text in texts]]

    def _name(self, texts: Sequence[str], recipe: Recipe) -> str:
        return pass_name(self.provider.key(recipe), texts)

    def _tell(self, texts: int) -> None:
        self._done += texts
        self._expected = max(self._expected, self._done)
        self._on_progress(self._done, self._expected)


def chunks_of(texts: Sequence[str]) -> list[list[str]]:
    """Each different text once, short ones first, so that the texts of a chunk are of like length."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    return [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]


def pass_name(blend: str, texts: Sequence[str]) -> str:
    """What the logits of these texts on the blend of that name are kept under, by whichever process runs them."""
    return f"{blend}-{digest_of(texts)}"


def digest_of(texts: Sequence[str]) -> str:
    """A name for these texts in this order: 32 hex digits."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]
