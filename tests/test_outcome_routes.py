"""Outcomes, exports and counters over HTTP."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Service
from pyarrow import parquet
from redis import Redis
from servers import until

from app.api.outcome_routes import MOST_OUTCOMES
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

PATH = "/v1/experiments/tone"
DEFINITION = {
    "arms": [{"name": "mild", "recipe": "base", "share": 0.5}, {"name": "firm", "recipe": "angry@0.4", "share": 0.5}],
    "control": "mild",
    "metrics": [{"name": "bought", "role": "primary"}, {"name": "spent", "kind": "continuous"}],
    "status": "running",
}


@pytest.fixture
def service(serve: Callable[..., Service], spec: BankSpec, redis: Redis, tmp_path: Path) -> Service:
    service = serve(spec, spool=tmp_path)
    assert service.client.put(PATH, json=DEFINITION).status_code == 201
    return service


def post(service: Service, *outcomes: dict[str, Any]) -> int:
    reply = service.client.post(f"{PATH}/outcomes", json=outcomes)
    assert reply.status_code == 202, reply.text
    return int(reply.json()["accepted"])


def counts(service: Service) -> dict[str, float]:
    lines = service.client.get("/metrics").text.splitlines()
    found = [line.partition('tween_ledger_events_total{event="')[2] for line in lines]
    return {line.partition('"')[0]: float(line.rpartition(" ")[2]) for line in found if line}


def test_what_units_did_is_counted_once_and_exported(service: Service) -> None:
    units = [f"customer-{number}" for number in range(30)]
    body = {"texts": ["late order"] * 30, "recipe": "exp:tone", "unit": units}
    arms = [met["arm"] for met in service.client.post("/v1/predict", json=body).json()["experiment"]]
    assert post(service, *({"unit": unit, "metric": "bought", "id": f"order-{unit}"} for unit in units[:20])) == 20
    assert post(service, *({"unit": unit, "metric": "bought", "id": f"order-{unit}"} for unit in units[:20])) == 20
    assert post(service, {"unit": units[0], "metric": "spent", "value": 2.5, "at": time.time() + 5}) == 1
    assert post(service, {"unit": units[0], "metric": "spent", "value": 9, "at": time.time() - 99}) == 1
    assert post(service, {"unit": units[0], "metric": "spent", "value": 1, "id": f"order-{units[0]}"}) == 1
    assert post(service, {"unit": "never met", "metric": "bought"}) == 1
    until(lambda: counts(service)["folded"] == 54 and counts(service)["duplicates"] == 20)
    assert service.client.get(f"{PATH}/report").json()["uncounted"] == {"before exposure": 1, "not met": 1}
    written = service.client.get(f"{PATH}/export")
    assert written.headers["content-type"].startswith("text/csv")
    rows = {row["unit"]: row for row in csv.DictReader(io.StringIO(written.text))}
    assert [rows[unit]["arm"] for unit in units] == arms
    assert [rows[unit]["bought"] for unit in units] == ["1.0"] * 20 + ["0.0"] * 10
    assert rows[units[0]]["spent"] == "3.5", (
        "what was done long before the exposure is not counted, one id of two metrics is"
    )
    stored = service.client.get(f"{PATH}/export", params={"format": "parquet"})
    assert {row["unit"] for row in parquet.read_table(io.BytesIO(stored.content)).to_pylist()} == set(units)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "bougt"}, "no metric 'bougt'; metrics: bought, spent"),
        ({"value": 1e10}, "value"),
        ({"unit": ""}, "1 to 256 characters"),
        ({"unit": "half \ud800 a pair"}, "Unicode"),
        ({"id": "half \ud800 a pair"}, "nicode"),
        ({"id": ""}, "id"),
        ({"at": -1}, "at"),
        ({"weight": 1}, "weight"),
    ],
)
def test_what_cannot_be_counted_is_refused_as_a_whole(service: Service, change: dict[str, Any], words: str) -> None:
    outcomes = [{"unit": "ada", "metric": "bought"}, {"unit": "ada", "metric": "bought", **change}]
    headers = {"Content-Type": "application/json"}  # httpx would not write half a pair
    reply = service.client.post(f"{PATH}/outcomes", content=json.dumps(outcomes), headers=headers)
    assert reply.status_code == 422 and words in reply.json()["detail"], reply.text
    assert counts(service)["outcomes"] == 0


def test_too_many_outcomes_and_unknown_experiments_are_refused(service: Service) -> None:
    outcome = {"unit": "ada", "metric": "bought"}
    assert service.client.post(f"{PATH}/outcomes", json=[outcome] * (MOST_OUTCOMES + 1)).status_code == 422
    for call in (
        lambda: service.client.post("/v1/experiments/other/outcomes", json=[outcome]),
        lambda: service.client.get("/v1/experiments/other/export"),
    ):
        reply = call()
        assert reply.status_code == 404 and "no experiment 'other'; experiments: tone" in reply.json()["detail"]
