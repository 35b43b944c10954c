"""The scripts of k8s/components/sentinels, run: three servers, three Sentinels, a master that dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kustomize import ROOT, of_kind
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import free_port, until

from app.cluster.embedded_redis import find_server
from app.cluster.redis_client import RedisCallFailed, connect
from app.cluster.redis_url import RedisUrl

pytestmark = pytest.mark.service

PASSWORD = "hunter2"
SERVERS = ["127.0.0.10", "127.0.0.11", "127.0.0.12"]
SENTINELS = ["127.0.0.20", "127.0.0.21", "127.0.0.22"]
"""What stands here for the pods' names: each has an address of its own, as there, and all have one port."""


def asked(address: str, port: int) -> Redis:
    """A client that does not wait for a server which is not there yet: `until` does."""
    return Redis(address, port, password=PASSWORD, decode_responses=True, retry=Retry(NoBackoff(), 0))


class Pods:
    """The pods of both StatefulSets, as processes."""

    def __init__(self, folder: Path) -> None:
        self.port, self.sentinel_port = free_port(), free_port()
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._scripts = {
            stateful["metadata"]["name"]: stateful["spec"]["template"]["spec"]["containers"][0]["command"]
            for stateful in of_kind("sentinels", "StatefulSet")
        }

    def start(self, address: str) -> None:
        shell, option, script = self._scripts["redis" if address in SERVERS else "redis-sentinel"]
        server = find_server()
        assert server is not None
        data = self._folder / address
        data.mkdir(exist_ok=True)
        config = (ROOT / "k8s/components/redis/redis.conf").read_text(encoding="utf-8")
        config = config.replace("dir /data", f"dir {data}") + f"port {self.port}\nbind {address}\n"
        (data / "redis.conf").write_text(config, encoding="utf-8")
        for there, here in {
            "$(hostname).redis-sentinel": address,
            "$(hostname).redis": address,
            "redis-[0-9]*": "127.0.0.1[0-9]",
            "redis-0.redis": SERVERS[0],
            "-h redis-sentinel": f"-h {SENTINELS[1]}",
            "redis-cli": str(Path(server).with_name("redis-cli")),
            "redis-server": server,
            "/config/redis.conf": str(data / "redis.conf"),
            "/data": str(data),
            "port 26379": f"port {self.sentinel_port}\nbind {address}",
            "26379": str(self.sentinel_port),
            "6379": str(self.port),
            " 5000": " 700",
            " 30000": " 3000",
        }.items():
            script = script.replace(there, here)
        environ = {**os.environ, "REDISCLI_AUTH": PASSWORD}
        self._processes[address] = subprocess.Popen([shell, option, script], env=environ, stdout=subprocess.DEVNULL)

    def kill(self, address: str) -> None:
        process = self._processes.pop(address)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for address in list(self._processes):
            self.kill(address)

    def role(self, address: str) -> str:
        with asked(address, self.port) as client:
            return str(client.info("replication")["role"])

    def replicas(self, address: str) -> int:
        with asked(address, self.sentinel_port) as client:
            (master,) = client.sentinel_masters().values()
            return int(master["num-slaves"]) if master["num-other-sentinels"] == 2 else 0

    @property
    def url(self) -> str:
        nodes = ",".join(f"{address}:{self.sentinel_port}" for address in SENTINELS)
        return f"redis+sentinel://:{PASSWORD}@{nodes}/tween?sentinel_password={PASSWORD}"


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def test_a_master_that_dies_is_replaced_and_comes_back_as_a_replica(pods: Pods) -> None:
    async def goes_on(key: str) -> None:
        """Until a write arrives, wherever the Sentinels lead."""
        client = connect(RedisUrl.parse(pods.url))
        try:
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(RedisCallFailed):
                        await client.call(lambda redis: redis.set(key, "there"))
                        return
                    await asyncio.sleep(0.1)
        finally:
            await client.aclose()

    for address in SERVERS:
        pods.start(address)
    until(lambda: [pods.role(address) for address in SERVERS] == ["master", "slave", "slave"])
    with asked(SERVERS[0], pods.port) as master:
        until(lambda: master.info("replication")["connected_slaves"] == 2)
    for address in SENTINELS:
        pods.start(address)
    # They look for replicas every ten seconds.
    until(lambda: all(pods.replicas(address) == 2 for address in SENTINELS), seconds=30)
    asyncio.run(goes_on("before"))
    pods.kill(SERVERS[0])
    until(lambda: sorted(pods.role(address) for address in SERVERS[1:]) == ["master", "slave"], seconds=30)
    asyncio.run(goes_on("after"))
    pods.start(SERVERS[0])
    until(lambda: pods.role(SERVERS[0]) == "slave", seconds=30)
    with asked(SERVERS[0], pods.port) as back:
        until(lambda: back.mget("before", "after") == ["there", "there"])


def test_the_address_that_the_manual_makes_leads_to_the_sentinels() -> None:
    manual = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"```sh\n(.*?)```", manual, re.DOTALL) if "sentinels=" in block]
    script = f"password={PASSWORD}\n{lines}printf %s $url"
    url = RedisUrl.parse(subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout)
    (stateful,) = (made for made in of_kind("sentinels", "StatefulSet") if made["metadata"]["name"] == "redis-sentinel")
    name, service = stateful["metadata"]["name"], stateful["spec"]["serviceName"]
    pods = range(stateful["spec"]["replicas"])
    assert url.nodes == tuple((f"{name}-{number}.{service}", 26379) for number in pods)
    assert (url.service, url.sentinel_login) == ("tween", {"password": PASSWORD})
