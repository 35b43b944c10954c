"""Sweeps, segments and barriers of banks whose texts have no one label are refused in one sentence, whoever asks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service
from redis import Redis
from test_bank import edit_config
from test_choosing_t import texts_file
from test_command_line import tween
from test_http import predict, problem
from test_sweep_routes import rows

from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


@pytest.fixture(scope="module")
def independent(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank file of a bank of labels that do not exclude each other."""
    root = tmp_path_factory.mktemp("independent") / "bank"
    shutil.copytree(folders, root)
    for member in ("base", "angry", "polite"):
        edit_config(root / member, problem_type="multi_label_classification")
    return root / "bank.toml"


def test_a_sweep_over_http_is_refused_and_predictions_take_a_temperature(
    serve: Callable[..., Service], independent: Path, redis: Redis
) -> None:
    client = serve(BankSpec.from_toml(independent)).client
    refused = problem(client.post("/v1/sweeps", json={"data": rows(40, 1), "variant": "angry"}), 422)
    assert refused.startswith(
        "this bank answers with labels that do not exclude each other; t is chosen for banks whose"
    )
    warm, plain = (
        predict(client, texts="late order", recipe=f"angry@0.4{temperature}", function=None)["predictions"][0]
        for temperature in (";temperature=2", "")
    )
    assert sum(plain["probabilities"].values()) != pytest.approx(1, abs=1e-3), "a sigmoid for each label"
    for label, probability in plain["probabilities"].items():
        odds = (probability / (1 - probability)) ** 0.5
        assert warm["probabilities"][label] == pytest.approx(odds / (1 + odds), abs=1e-4)


@pytest.mark.parametrize("command", ["sweep", "segments", "barrier"])
def test_commands_refuse_it(independent: Path, tmp_path: Path, command: str) -> None:
    own = texts_file(tmp_path / "own.csv", 40, 1)
    done = tween(command, str(own), "--variant", "angry", "--bank", str(independent), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 2 and "labels that do not exclude each other" in done.stderr, done.stderr
