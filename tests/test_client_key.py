"""Commands that call a service which asks for keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from conftest import Service, running
from test_choosing_t import texts_file

from app.__main__ import _parser
from app.api.auth.api_keys import new_key
from app.client_key import VARIABLE, with_key
from app.errors import BadData, BadExperiment, BadSettings, SimulationFailed
from app.experiments.simulator import Pods
from app.models.bank import BankSpec
from app.settings import Settings

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

BOSS, ENTRY = new_key("boss", "manage")


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(ENTRY)
    with running(spec, api_keys=file, redis_url=redis_url, redis_namespace="client", memory_tier_mib=16) as made:
        yield made


def run(*command: object) -> int:
    options = _parser().parse_args([str(part) for part in command])
    status: int = options.run(options)
    return status


def test_a_sweep_at_a_service_sends_the_key(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = texts_file(tmp_path / "own.csv", 40, 1), tmp_path / "out"
    command = ["sweep", own, "--variant", "angry", "--server", service.client.base_url, "--out", out]
    with pytest.raises(BadData, match="this call needs a key"):
        run(*command)
    monkeypatch.setenv(VARIABLE, f" {BOSS}\n")
    assert run(*command) == 0 and "Serve " in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"results.json", "report.html", "curve.svg"}


def test_experiments_of_a_service_are_asked_for_with_the_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["experiment", "list", "--server", service.client.base_url]
    with pytest.raises(BadExperiment, match="this call needs a key"):
        run(*command)
    monkeypatch.setenv(VARIABLE, BOSS)
    assert run(*command) == 0


def test_synthetic_customers_come_with_the_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> object:
        with closing(Pods([str(service.client.base_url)])) as pods:
            return pods.call("GET", "/v1/experiments")

    with pytest.raises(SimulationFailed, match="this call needs a key"):
        ask()
    monkeypatch.setenv(VARIABLE, BOSS)
    assert ask() == {"experiments": []}


def test_what_cannot_be_a_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("tween_s3cret\nX-Tween-Actor: root", "tween_s3cret\u00e9"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(BadSettings, match="TWEEN_API_KEY is no key") as refusal:
            with_key(Request("http://127.0.0.1"))
        assert "s3cret" not in str(refusal.value)


def test_the_key_is_not_carried_to_where_a_service_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, BOSS)
    with answering() as (elsewhere, there), answering(elsewhere) as (named, here):
        urlopen(with_key(Request(named)), timeout=30).close()
    assert here == [f"Bearer {BOSS}"] and there == [None]


def test_the_key_of_a_caller_is_no_setting_of_a_service() -> None:
    assert Settings.from_environment({VARIABLE: BOSS}) == Settings()


@contextmanager
def answering(redirect: str | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """A server of one answer: where it is, and the keys that it was sent."""
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            self.send_response(307 if redirect else 204)
            if redirect:
                self.send_header("Location", redirect)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """What it was asked is not for the terminal."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", keys
        server.shutdown()
        thread.join()
