from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from app.cluster.embedded_redis import EmbeddedRedis, find_server

pytestmark = pytest.mark.service

SCRIPT = """
import time
from app.cluster.embedded_redis import EmbeddedRedis, find_server
private = EmbeddedRedis(find_server(), 16)
print(private.url, flush=True)
time.sleep(60)
"""


def server() -> str:
    found = find_server()
    assert found is not None
    return found


def test_it_is_a_real_redis_that_ends_on_request() -> None:
    private = EmbeddedRedis(server(), maxmemory_mib=16)
    client = Redis.from_url(private.url)
    assert client.set("a", 1) and client.get("a") == b"1"
    assert client.config_get("maxmemory") == {"maxmemory": str(16 * 1024 * 1024)}
    assert client.config_get("port") == {"port": "0"}
    pid = client.info("server")["process_id"]
    client.close()
    private.stop()
    assert not Path(private.url.removeprefix("unix://")).parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_with_its_owner_even_when_that_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with Redis.from_url(owner.stdout.readline().strip()) as client:
        pid = client.info("server")["process_id"]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the private redis-server outlived its owner")


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(OSError, match="does not start"):
        EmbeddedRedis(str(broken), maxmemory_mib=16)


def test_a_redis_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(own)
