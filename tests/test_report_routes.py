"""A report over HTTP, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.api import problems, report_routes
from app.errors import RedisUnavailable
from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment import Experiment
from app.experiments.stats.protocol import Amendment
from app.experiments.stats.report_schema import Report
from app.weights.recipe import Cookbook
from tests.units import binary_phase, halves

COUNTS = {"plain": (1000, 10_000), "warm": (1300, 10_000), "hot": (1100, 10_000)}


@dataclass
class Known:
    experiment: Experiment
    judged_from: int = 1
    left_out: Mapping[str, str] = field(default_factory=dict)
    amendments: tuple[Amendment, ...] = ()


class Definitions:
    def get(self, name: str) -> Known:
        arms = [{"name": n, "recipe": f"kind@{i / 2}", "share": 1 / 3} for i, n in enumerate(COUNTS)]
        metric = {"name": "bought", "role": "primary"}
        return Known(Experiment.model_validate({"arms": arms, "control": "plain", "metrics": [metric]}))


class Ledger:
    away = False

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def unmet(self, name: str) -> dict[str, int]:
        return {"waiting": 3, "beyond": 1_200, "outside": 7}

    async def sums(self, name: str) -> list[PhaseSums]:
        if self.away:
            raise RedisUnavailable("Redis does not answer")
        return [binary_phase(COUNTS, halves(list(COUNTS)))]

    async def uncounted(self, name: str) -> dict[str, int]:
        return {"after window": 2}

    async def latches(self, name: str) -> dict[str, str]:
        return self.kept

    async def latch(self, name: str, said: dict[str, str]) -> None:
        self.kept |= said


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def client(ledger: Ledger) -> Iterator[TestClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(report_routes.router)
    app.state.engine = SimpleNamespace(cookbook=Cookbook(["kind"]))
    app.state.experiments, app.state.ledger = Definitions(), ledger
    with TestClient(app) as client:
        yield client


def test_figures_come_as_json(client: TestClient) -> None:
    found = Report.model_validate(client.get("/v1/experiments/tone/report").json())
    assert found.sentence.startswith("warm beats plain by 1.5 to 4.5 points of bought; ")
    assert found.metrics[0].dose is not None
    assert found.uncounted == {"after window": 2}
    assert found.warnings[-1].startswith("2 outcomes count nowhere: 2 after their unit's window")


def test_what_is_said_is_kept(client: TestClient, ledger: Ledger) -> None:
    client.get("/v1/experiments/tone/report")
    kept = dict(ledger.kept)
    assert [json.loads(said)["verdict"] for said in kept.values()] == ["better"]
    found = client.get("/v1/experiments/tone/report").json()
    assert ledger.kept == kept and found["metrics"][0]["comparisons"][0]["crossed"]["verdict"] == "better"


def test_a_page_needs_no_other_file(client: TestClient) -> None:
    reply = client.get("/v1/experiments/<b>/report?format=html")
    assert reply.headers["content-type"].startswith("text/html")
    assert "warm beats plain by" in reply.text and "<svg" in reply.text
    assert "<b>/report" not in reply.text and "&lt;b&gt;" in reply.text
    assert "http" not in reply.text and "$" not in reply.text
    assert ">33.33 %<" in reply.text and "Bars: 97.5 %" in reply.text
    assert "<b>&ndash;</b><small>new units a day" in reply.text, "no day is over yet"
    assert "First decided: warm: better on 20" in reply.text


def test_another_format_is_refused(client: TestClient) -> None:
    assert client.get("/v1/experiments/tone/report?format=pdf").status_code == 422


def test_without_redis_nobody_knows(client: TestClient, ledger: Ledger) -> None:
    ledger.away = True
    reply = client.get("/v1/experiments/tone/report")
    assert reply.status_code == 503 and reply.headers["content-type"] == "application/problem+json"
