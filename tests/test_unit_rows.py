from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator

from ledgers import NAME, START, TONE
from pyarrow import parquet

from app.experiments.events.aggregation import UnitRecord, fold
from app.experiments.events.event import Event, Exposure, Outcome
from app.experiments.events.export_rows import FORMATS


async def records() -> AsyncIterator[tuple[str, UnitRecord]]:
    for number in range(12_000):
        unit = f'unit "{number}", ü'
        events: list[Exposure | Outcome] = [
            Exposure(f"e{number}", NAME, 1, "warm", unit, START + number, 0.25, covariate=0.5 if number % 2 else None),
            Outcome(f"o{number}", NAME, unit, "spent", number / 1000, START + number + 1),
        ]
        record = UnitRecord()
        fold(record, [Event(event, START) for event in events], TONE)
        yield unit, record


def file_as(kind: str) -> bytes:
    async def whole() -> bytes:
        write, _ = FORMATS[kind]
        return b"".join([piece async for piece in write(records(), TONE)])

    return asyncio.run(whole())


def test_csv_and_parquet_hold_the_same_rows() -> None:
    written = list(csv.DictReader(io.StringIO(file_as("csv").decode())))
    stored = parquet.read_table(io.BytesIO(file_as("parquet"))).to_pylist()
    assert len(written) == len(stored) == 12_000
    for row, other in zip(written, stored, strict=True):
        covariate = None if row["covariate"] == "" else float(row["covariate"])
        assert list(row) == list(other)
        assert (row["unit"], row["arm"], int(row["exposures"]), covariate) == (
            other["unit"],
            other["arm"],
            other["exposures"],
            other["covariate"],
        )
        assert row["first_exposure"] == other["first_exposure"].isoformat()
        assert float(row["spent"]) == other["spent"]
    assert sum(row["spent"] for row in stored) == sum(number / 1000 for number in range(12_000))
