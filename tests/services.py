"""The real service in a thread of the test's own process, and a client for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
from fastapi import FastAPI

from app.api.http_server import drain_server
from app.main import create_app, create_server
from app.models.bank import BankSpec
from app.settings import Settings

drain_server.LAST_CALL_SECONDS = 0.0  # for clients that connect in that moment; a test's client has gone by then


@dataclass
class Service:
    """A running service: a client for it, its application, and why its bank could not be loaded."""

    client: httpx.Client
    app: FastAPI
    failures: list[Exception]


@contextmanager
def running(spec: BankSpec, wait: bool = True, **settings: object) -> Iterator[Service]:
    """A real service on a free port, until the context closes; without `workers` it computes in a thread. Its memory is
    small, because touching a GiB of it is most of what starting a service would take, and more than machines have."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    failures: list[Exception] = []
    values = Settings.model_validate({"workers": 0, "port": port, "memory_tier_mib": 16, **settings})
    app = create_app(values, spec, failures.append)
    server = create_server(values, app)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, verify=False) as client:
            if wait:
                _until_ready(client, failures)
            yield Service(client, app, failures)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@contextmanager
def services(redis_url: str) -> Iterator[Callable[..., Service]]:
    """They remember no predictions unless asked to: tests repeat texts, and mean to run them."""
    usual = {"redis_url": redis_url, "redis_blends": "always", "prediction_cache": False}
    with ExitStack() as stack:
        yield lambda spec, **options: stack.enter_context(running(spec, **{**usual, **options}))


def _until_ready(client: httpx.Client, failures: list[Exception]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not failures:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"the service did not become ready: {failures}")
