"""What an experiment knows, a row for each unit and phase, as CSV or parquet, without holding all of it in memory."""

from __future__ import annotations

import asyncio
import csv
import io
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import IO, Any

from app.errors import BadData
from app.experiments.events.aggregation import UnitRecord
from app.experiments.experiment import Experiment

ROWS = 5_000
"""Rows that are written at a time."""
BYTES = 256 * 1024

Records = AsyncIterator[tuple[str, UnitRecord]]
COLUMNS: dict[str, str] = {
    "unit": "string",
    "phase": "int32",
    "arm": "string",
    "first_exposure": "timestamp[us, tz=UTC]",
    "exposures": "int64",
    "propensity": "double",
    "covariate": "double",
}
"""Columns and their types in parquet; after them comes a column of doubles for each metric."""


async def as_csv(records: Records, experiment: Experiment) -> AsyncIterator[bytes]:
    """Pieces of a CSV file in UTF-8; times as ISO 8601, and nothing where nothing is known."""
    text = io.StringIO()
    names = [*COLUMNS, *(metric.name for metric in experiment.metrics)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    async for rows in _blocks(records, experiment):
        writer.writerows({**row, "first_exposure": row["first_exposure"].isoformat()} for row in rows)
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


async def as_parquet(records: Records, experiment: Experiment) -> AsyncIterator[bytes]:
    """Pieces of a parquet file. Raises `BadData` where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadData("parquet needs pyarrow on the server (pip install 'tween[sweep]'); csv does not") from error
    metrics = {metric.name: "double" for metric in experiment.metrics}
    types: dict[str, Any] = {"timestamp[us, tz=UTC]": pyarrow.timestamp("us", tz="UTC")}
    schema = pyarrow.schema(
        [(name, types.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in {**COLUMNS, **metrics}.items()]
    )
    with tempfile.TemporaryFile() as file:
        with parquet.ParquetWriter(file, schema) as writer:
            async for rows in _blocks(records, experiment):
                await asyncio.to_thread(writer.write_table, pyarrow.Table.from_pylist(rows, schema))
        async for piece in _pieces(file):
            yield piece


async def _blocks(records: Records, experiment: Experiment) -> AsyncIterator[list[dict[str, Any]]]:
    """The rows, so many at a time; at least one block, if an empty one."""
    rows: list[dict[str, Any]] = []
    async for unit, record in records:
        for phase, meeting in sorted(record.meetings.items()):
            rows.append(
                {
                    "unit": unit,
                    "phase": phase,
                    "arm": meeting.arm,
                    "first_exposure": datetime.fromtimestamp(meeting.at, UTC),
                    "exposures": meeting.exposures,
                    "propensity": meeting.propensity,
                    "covariate": meeting.covariate,
                    **{metric.name: meeting.values.get(metric.name, 0.0) for metric in experiment.metrics},
                }
            )
        if len(rows) >= ROWS:
            yield rows
            rows = []
    yield rows


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    file.seek(0)
    while piece := await asyncio.to_thread(file.read, BYTES):
        yield piece


FORMATS = {"csv": (as_csv, "text/csv; charset=utf-8"), "parquet": (as_parquet, "application/vnd.apache.parquet")}
