"""`tween simulate` says what it cannot do before any customer comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service
from redis import Redis

from app.__main__ import _parser
from app.errors import SimulationFailed
from app.models.bank import BankSpec


def simulate(*words: str) -> int:
    options = _parser().parse_args(["simulate", "tone", *words])
    return int(options.run(options))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--units", "0"], "--units and --best are above 0"),
        (["--best", "nan"], "--units and --best are above 0"),
        (["--base", "7"], "--base is a share, from 0 to 1"),
        (["--late", "nan"], "--late is a share, from 0 to 1"),
        (["--lift", "-2"], "--lift is a difference of shares, from -1 to 1"),
    ],
)
def test_what_customers_cannot_do_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(SimulationFailed, match=sentence):
        simulate(*words)


def test_an_experiment_without_a_metric_has_nothing_that_customers_could_do(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis, tmp_path: Path
) -> None:
    client = serve(spec, spool=tmp_path).client
    definition = {"control": "mild", "status": "running", "arms": [{"name": "mild", "recipe": "base", "share": 1}]}
    assert client.put("/v1/experiments/tone", json=definition).status_code == 201
    with pytest.raises(SimulationFailed, match="experiment 'tone' has no metric"):
        simulate("--server", str(client.base_url), "--units", "5")
