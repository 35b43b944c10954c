"""Labelled texts, checked once: which column is what, which label is which, and who belongs together.

Texts that share a group (a customer, a conversation) are no independent evidence, so they are resampled and held out
together. Without a group column, texts with the same words are such a group: a phrase that occurs fifty times keeps
its weight in every score, and is not taken for fifty observations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.errors import BadData
from app.names import nfc
from app.sweep.data.file_readers import Rows, read_rows
from app.sweep.logits.logit_cache import digest_of

NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "content", "message", "review", "tweet", "comment", "utterance", "body", "input"),
    "label": ("label", "labels", "sentiment", "class", "target", "category", "gold", "y"),
    "group": ("group", "group_id", "user", "user_id", "customer", "customer_id", "conversation", "conversation_id"),
    "segment": ("segment", "domain", "channel", "source", "product", "language"),
    "time": ("time", "timestamp", "date", "datetime", "created_at"),
}
"""What a column may be called if it is not named, likeliest first; case does not matter."""

NONE = "-"
LEAST_TEXTS = 20
ADVISED_TEXTS = 200
MANY = 10
"""Values that a refusal lists at most."""


@dataclass(frozen=True)
class Columns:
    """The columns' names by role; a role that is not named is looked for, and NONE leaves it out.

    `where` keeps the rows that have a value in a column.
    """

    text: str | None = None
    label: str | None = None
    group: str | None = None
    segment: str | None = None
    time: str | None = None
    where: tuple[str, str] | None = None


@dataclass(frozen=True)
class Dataset:
    """Texts, their label indices (N,), and what else is known of each of them.

    `labels` is None for texts without labels. `groups` and `segments` are numbered from 0, `order` ranks the texts in
    time, and `repeated` counts the texts that stand there again.
    """

    name: str
    texts: tuple[str, ...]
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64]
    segments: NDArray[np.int64] | None = None
    segment_names: tuple[str, ...] = ()
    order: NDArray[np.int64] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def truth(self) -> NDArray[np.int64]:
        """The labels of texts that have some."""
        assert self.labels is not None
        return self.labels

    def subset(self, rows: NDArray[np.int64]) -> Dataset:
        """Only these texts, in this order; groups are numbered anew."""
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            labels=None if self.labels is None else self.labels[rows],
            groups=np.unique(self.groups[rows], return_inverse=True)[1],
            segments=None if self.segments is None else self.segments[rows],
            order=None if self.order is None else self.order[rows],
        )

    @property
    def digest(self) -> str:
        """A name for all of the content, labels, groups and order included."""
        digest = hashlib.sha256(digest_of(self.texts).encode())
        for numbers in (self.labels, self.groups, self.segments, self.order):
            digest.update(b"none" if numbers is None else numbers.tobytes())
        digest.update("\n".join(self.segment_names).encode())
        return digest.hexdigest()[:32]


def check_labels(problem_type: str) -> None:
    """Raises `BadData` for a bank whose texts have no one label: losses and temperatures here are of a softmax."""
    if problem_type != "single_label_classification":
        kind = {"regression": "a number", "multi_label_classification": "labels that do not exclude each other"}
        what = kind.get(problem_type, problem_type)
        raise BadData(f"this bank answers with {what}; t is chosen for banks whose texts have one label each")


def read_dataset(path: Path, labels: Sequence[str], columns: Columns | None = None, labelled: bool = True) -> Dataset:
    """The data set in a file; its name is the file's. Raises `BadData` with one sentence that names the line."""
    columns = columns or Columns()
    return dataset_of(path.stem, kept_rows(path.stem, read_rows(path), columns.where), labels, columns, labelled)


def kept_rows(name: str, rows: Rows, where: tuple[str, str] | None) -> Rows:
    """The rows whose column has the value, with a sentence if there are none."""
    if where is None:
        yield from rows
        return
    column, value = where
    seen: dict[str, None] = {}
    kept = 0
    for place, row in rows:
        if column not in row:
            raise BadData(f"{name}: no column {column[:60]!r}; columns: {', '.join(map(str, row))}")
        found = str(row[column])
        if found == value:
            kept += 1
            yield place, row
        elif len(seen) < MANY:
            seen[found] = None
    if not kept and seen:
        raise BadData(f"{name}: no row has {value!r} in column {column!r}; there are {', '.join(map(repr, seen))}")


def dataset_of(name: str, rows: Rows, labels: Sequence[str], columns: Columns, labelled: bool = True) -> Dataset:
    """A data set from rows with their places, for a bank with these label names.

    `labelled`: whether it is an error that there is no label column. Raises `BadData`.
    """
    places, records = _split(name, rows)
    found = _find(name, list(dict.fromkeys(column for record in records for column in record)), columns, labelled)
    for place, record in zip(places, records, strict=True):
        for column in found.values():
            if column not in record:
                raise BadData(f"{name}, {place}: there is no {column!r}, which other rows have")
    texts = tuple(_text(_cell(name, p, found["text"]), r[found["text"]]) for p, r in zip(places, records, strict=True))
    codes = None
    if "label" in found:
        known = {label.casefold(): index for index, label in enumerate(labels)}
        column = found["label"]
        values = [
            _label(_cell(name, p, column), r[column], known, labels) for p, r in zip(places, records, strict=True)
        ]
        codes = np.array(values, dtype=np.int64)
    distinct = len(set(texts))
    if distinct < LEAST_TEXTS:
        raise BadData(
            f"{name}: {distinct} different texts; at least {LEAST_TEXTS} are needed, {ADVISED_TEXTS} are advised"
        )
    if codes is not None and len(set(codes.tolist())) < 2:
        raise BadData(f"{name}: every label is {labels[codes[0]]!r}; texts of at least two labels are needed")
    groups, _ = _numbered([str(record[found["group"]]) for record in records] if "group" in found else texts)
    if groups.max() == 0:
        raise BadData(f"{name}: all texts are in one group of column {found['group']!r}; at least two are needed")
    segments: NDArray[np.int64] | None = None
    segment_names: tuple[str, ...] = ()
    if "segment" in found:
        segments, segment_names = _numbered([nfc(str(record[found["segment"]])) for record in records])
    order = None
    if "time" in found:
        order = _order(
            [(_cell(name, p, found["time"]), r[found["time"]]) for p, r in zip(places, records, strict=True)]
        )
    return Dataset(name, texts, codes, groups, segments, segment_names, order, found, len(texts) - distinct)


def _split(name: str, rows: Rows) -> tuple[list[str], list[Mapping[str, object]]]:
    pairs = list(rows)
    if not pairs:
        raise BadData(f"{name}: it holds no texts")
    return [place for place, _ in pairs], [record for _, record in pairs]


def _find(name: str, present: list[str], columns: Columns, labelled: bool) -> dict[str, str]:
    """The column of each role that there is."""
    found: dict[str, str] = {}
    shown = ", ".join(map(str, present))
    for role, usual in NAMES.items():
        wanted: str | None = getattr(columns, role)
        if wanted == NONE:
            continue
        if wanted is not None:
            if wanted not in present:
                raise BadData(f"{name}: no column {wanted[:60]!r}; columns: {shown}")
            found[role] = wanted
            continue
        by_name = {str(column).strip().casefold(): column for column in reversed(present)}
        match = next((by_name[candidate] for candidate in usual if candidate in by_name), None)
        if match is not None:
            found[role] = match
    for role in ("text", "label") if labelled else ("text",):
        if role not in found:
            raise BadData(f"{name}: cannot tell which column holds the {role}; name it. Columns: {shown}")
    return found


def _cell(name: str, place: str, column: str) -> str:
    """Where a value stands, for a person who has to find it."""
    return f"{name}, {place}, column {column!r}"


def _text(cell: str, value: object) -> str:
    text = "" if value is None else str(value)
    if not text.strip():
        raise BadData(f"{cell}: the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadData(f"{cell}: the text is not valid Unicode, it holds a lone surrogate") from None
    return text


def _label(cell: str, value: object, known: Mapping[str, int], labels: Sequence[str]) -> int:
    """The index of a label given by name, in any case, or by number."""
    written = "" if value is None else str(value).strip()
    index = known.get(written.casefold())
    if index is None:
        try:
            number = float(written)  # a column of whole numbers comes out of some tools as 1.0
        except ValueError:
            number = -1.0
        if number.is_integer() and 0 <= number < len(labels):
            return int(number)
        shown = f"the label {written!r} is none of the bank's" if written else "there is no label"
        raise BadData(f"{cell}: {shown}; labels: {', '.join(labels)} (or 0 to {len(labels) - 1})")
    return index


def _numbered(values: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Each value's number, and the values by number, in the order of their first appearance."""
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return np.array(codes, dtype=np.int64), tuple(numbers)


def _order(values: Sequence[tuple[str, object]]) -> NDArray[np.int64]:
    """Ranks in time of cells and their values; equal times share a rank."""
    moments = [_moment(cell, value) for cell, value in values]
    return np.unique(np.array(moments), return_inverse=True)[1].astype(np.int64)


def _moment(cell: str, value: object) -> float:
    """Seconds, from a number, an ISO 8601 text, or what parquet gives for a time."""
    try:
        if isinstance(value, datetime):
            return value.timestamp()
        try:
            return float(str(value))
        except ValueError:
            return datetime.fromisoformat(str(value).strip()).timestamp()
    except ValueError:
        raise BadData(f"{cell}: {value!r} is no time; write 2026-11-24T08:30:00 or a number") from None
