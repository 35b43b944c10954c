"""Rows of a file of labelled texts: CSV, JSON lines or parquet, each row with the place that a message can name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from app.errors import BadData

Rows = Iterator[tuple[str, Mapping[str, object]]]
"""Each row's place, such as `line 7`, and its values by column."""

DELIMITERS = ",;\t"


def read_rows(path: Path) -> Rows:
    """The rows of a file, read as they are asked for. Raises `BadData` for a file that cannot be read."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadData(f"{path.name}: cannot tell what it is; its name should end in one of {', '.join(READERS)}")
    try:
        yield from reader(path)
    except FileNotFoundError as error:
        raise BadData(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path.name} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror or error}") from error


def csv_rows(name: str, file: TextIO, most_columns: int | None = None) -> Rows:
    """The rows of a CSV file of that name, whatever separates its fields.

    Each row has an entry for every column, even where it is one empty line; so there may be a limit."""
    header = file.readline()
    file.seek(0)
    reader = csv.DictReader(file, delimiter=max(DELIMITERS, key=header.count))
    line = 2
    try:
        columns = len(reader.fieldnames or ())
        if most_columns is not None and columns > most_columns:
            raise BadData(f"{name}: {columns} columns; at most {most_columns} are read here")
        for row in reader:
            if None in row:
                raise BadData(f"{name}, line {line}: more fields than the header names")
            yield f"line {line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadData(f"{name}, line {line}: {error}") from error


def _csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv_rows(path.name, file)


def _json_lines(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadData(f"{path.name}, line {number}: not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise BadData(f"{path.name}, line {number}: every line must be an object with a text and a label")
            yield f"line {number}", row


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadData(f"{path.name}: parquet needs pyarrow (pip install 'tween[sweep]'), or save it as CSV") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise BadData(f"{path.name} is not a sound parquet file: {str(error).splitlines()[0]}") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
