"""`tween experiment` against a real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service
from pyarrow import parquet
from redis import Redis
from test_experiments import FILE

from app.__main__ import main
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


@pytest.fixture
def tween(
    serve: Callable[..., Service],
    spec: BankSpec,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run `tween experiment` and give what it prints; errors are a sentence and status 2."""
    url = str(serve(spec).client.base_url)

    def run(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["tween", "experiment", *arguments, "--server", url, "--actor", "ada"])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert end.value.code == status, printed.err
        return printed.err if status else printed.out

    return run


def test_an_experiment_by_its_commands(tween: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(FILE.format(coverage=0.5))
    line = "tone: running, version 1, phase 1: mild base 50%, firm angry@0.4 50%\n"
    assert tween("apply", str(file)) == tween("apply", str(file)) == tween("list") == line
    assert tween("erase", "ada") == tween("erase", "ada", "--experiment", "tone") == "tone: not known\n"
    assert "stop it before it is archived" in tween("archive", "tone", status=2)
    assert tween("pause", "tone").startswith("tone: paused, version 2")
    assert tween("start", "tone").startswith("tone: running, version 3")
    assert tween("promote", "tone", "--arm", "firm") == "@prod -> angry@0.4, now\n"
    assert "by experiment rollout.prod" in tween("promote", "tone", "--arm", "mild", "--guarded", "--force")
    assert tween("stop", "tone").startswith("tone: stopped")
    assert tween("archive", "tone").startswith("tone: stopped")
    assert tween("erase", "ada") == "rollout.prod: not known\ntone: not known\n", "archived ones too"
    shown = json.loads(tween("show", "tone"))
    assert (shown["status"], shown["definition"]["coverage"]) == ("stopped", 0.5)
    assert {entry["by"] for entry in shown["audit"]} == {"ada"}
    assert shown["audit"][-1]["action"] == "started"
    assert tween("delete", "tone") == "tone: deleted\n"
    assert "no experiment 'tone'" in tween("show", "tone", status=2)


def test_what_units_did_is_exported(tween: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(FILE.format(coverage=1))
    tween("apply", str(file))
    head = "unit,phase,arm,first_exposure,exposures,propensity,covariate"
    assert tween("export", "tone").startswith(head)
    out = tmp_path / "tone.parquet"
    assert tween("export", "tone", "--format", "parquet", "--out", str(out)) == f"Written to {out}\n"
    assert parquet.read_table(out).column_names[: len(head.split(","))] == head.split(",")
    assert "nothing to print; name a file by --out" in tween("export", "tone", "--format", "parquet", status=2)
    assert "no experiment 'none'" in tween("export", "none", "--out", str(tmp_path / "none.csv"), status=2)
    assert "cannot be written" in tween("export", "tone", "--out", str(tmp_path / "no" / "tone.csv"), status=2)
    assert {path.name for path in tmp_path.iterdir()} >= {"experiments.toml", "tone.parquet"}
    assert not list(tmp_path.glob("*.partial")) and not (tmp_path / "none.csv").exists()


def test_what_is_refused_is_one_sentence(tween: Callable[..., str], tmp_path: Path) -> None:
    assert tween("list") == ""
    assert tween("start", "tone", status=2) == "tween: no experiment 'tone'; experiments: none yet\n"
    assert "cannot be read" in tween("apply", str(tmp_path / "none.toml"), status=2)


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["tween", "experiment", "list", "--server", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "no service answers at http://127.0.0.1:1" in capsys.readouterr().err
