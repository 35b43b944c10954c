"""A real service under steady load while its Redis is killed, stopped, filled, flushed, damaged and cut off.

Every recipe of the load needs a blend (this architecture mixes no rows) and there are four times as many recipes as
slots, so Redis is read and written all the time. For each fault: no prediction fails and none is wrong, the slow
ones wait for one time-out and no more, and afterwards the cache is used again. With `-rP` pytest prints how slow.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pico
import pytest
import torch
from conftest import Service, running
from redis import Redis
from servers import Server, line_to, server, until

from app import bootstrap
from app.cache.bulk_transfer import CHUNK_SECONDS, BulkTransfer
from app.cluster.redis_client import WHOLE
from app.models.bank import BankSpec

RECIPES = [f"angry@{number / 100}+polite@{0.8 - number / 100}" for number in range(1, 61)]
CALLERS = 3
PHASE_SECONDS = 0.5
ENOUGH = 100
TIMEOUT = max(WHOLE, CHUNK_SECONDS)
NOISE = 1.0
"""Seconds that a machine which does other things too may add to a 99th percentile."""


@dataclass
class Answers:
    """What callers got in one phase: seconds, and everything that was not a right prediction."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98]


class Load:
    """Callers who ask one after the other, each time with another recipe, and check every answer."""

    def __init__(self, service: Service, expected: dict[str, dict[str, float]]) -> None:
        self.answers = Answers()
        self._service = service
        self._expected = expected
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def next_phase(self, seconds: float = 0.0) -> Answers:
        """The answers since the last call and for at least so long from now, enough of them for a percentile."""
        time.sleep(seconds)
        until(lambda: len(self.answers.seconds) >= ENOUGH)
        answers, self.answers = self.answers, Answers()
        return answers

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        chooser = random.Random(seed)
        with httpx.Client(base_url=self._service.client.base_url, timeout=30) as client:
            while not self._stop.is_set():
                recipe = chooser.choice(RECIPES)
                started = time.perf_counter()
                try:
                    problem = check(probabilities(client, recipe), self._expected[recipe])
                except (httpx.HTTPError, AssertionError) as error:
                    problem = repr(error)
                answers = self.answers
                answers.seconds.append(time.perf_counter() - started)
                if problem:
                    answers.failures.append(problem)


def probabilities(client: httpx.Client, recipe: str) -> dict[str, float]:
    reply = client.post("/v1/predict", json={"texts": "the refund came late", "recipe": recipe})
    assert reply.status_code == 200, reply.text
    result: dict[str, float] = reply.json()["predictions"][0]["probabilities"]
    return result


def check(got: dict[str, float], expected: dict[str, float]) -> str | None:
    return None if got == pytest.approx(expected, abs=1e-5) else f"{got} instead of {expected}"


@dataclass
class World:
    """A service, its Redis, and what every recipe should answer."""

    service: Service
    server: Server
    expected: dict[str, dict[str, float]]

    @property
    def redis(self) -> Redis:
        return self.server.client()

    def counters(self) -> dict[str, int]:
        result: dict[str, int] = self.service.client.get("/v1/blends").json()["tiers"]["redis"]
        return result

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """The fault happens inside; load runs before, meanwhile and after."""
        self.is_well()
        load = Load(self.service, self.expected)
        try:
            healthy = load.next_phase(PHASE_SECONDS)
            yield
            during = load.next_phase()
            after = load.next_phase(PHASE_SECONDS)
        finally:
            load.stop()
        answers = len(during.seconds)
        print(f"p99 {healthy.p99 * 1e3:.0f} ms before, {during.p99 * 1e3:.0f} ms in {answers} answers during")
        assert not healthy.failures + during.failures + after.failures
        assert during.p99 <= 2 * healthy.p99 + TIMEOUT + NOISE, (healthy.p99, during.p99)
        self.is_well()

    def is_well(self) -> None:
        """Redis is called healthy, and blends come out of it again."""
        until(lambda: self.service.client.get("/readyz").json()["redis"] == "ok")
        before = self.counters()
        recipes = itertools.cycle(RECIPES)

        def is_used() -> bool:
            probabilities(self.service.client, next(recipes))
            now = self.counters()
            return now["hits"] > before["hits"] and now["writes"] > 0

        until(is_used)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for two threads, which would wait for each other on a machine with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unmixable(tmp_path_factory: pytest.TempPathFactory) -> BankSpec:
    """A bank whose every recipe needs a blend of its own."""
    return BankSpec.from_toml(pico.write_bank(tmp_path_factory.mktemp("chaos"), "deberta-v2") / "bank.toml")


@contextlib.contextmanager
def serving(unmixable: BankSpec, url: str, **settings: object) -> Iterator[Service]:
    """A service with few slots that uses Redis whatever it costs, in chunks small enough for many in a blend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "BulkTransfer", functools.partial(BulkTransfer, size=20_000))
        usual = {"redis_url": url, "redis_blends": "always", "memory_tier_mib": 1, "prediction_cache": False}
        with running(unmixable, **{**usual, **settings}) as service:
            yield service


@pytest.fixture(scope="module")
def expected(unmixable: BankSpec) -> dict[str, dict[str, float]]:
    """What the recipes answer where there is no Redis."""
    with serving(unmixable, "unix:///nowhere.sock", redis_blends="never") as service:
        slots = service.client.get("/v1/blends").json()["tiers"]["memory"]["slots"]
        assert slots * 3 < len(RECIPES)
        return {recipe: probabilities(service.client, recipe) for recipe in RECIPES}


@pytest.fixture(scope="module")
def world(
    unmixable: BankSpec, expected: dict[str, dict[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """One world for all faults: it must survive them one after the other."""
    with server(tmp_path_factory.mktemp("redis")) as made, serving(unmixable, made.url) as service:
        yield World(service, made, expected)


# -- the server ----------------------------------------------------------------------------------------


def test_kill_9_and_a_restart_with_nothing_in_it(world: World) -> None:
    with world.under_load():
        for _ in range(2):
            world.server.kill()
            time.sleep(0.5)
            world.server.start()
            time.sleep(0.5)


def test_a_server_that_stands_still(world: World) -> None:
    with world.under_load():
        world.server.signal(signal.SIGSTOP)
        time.sleep(3)
        world.server.signal(signal.SIGCONT)


def test_a_server_that_lets_its_clients_wait(world: World) -> None:
    with world.under_load(), world.redis as redis:
        redis.client_pause(1500)
        time.sleep(2)


def test_a_server_that_is_full_and_refuses(world: World) -> None:
    before = world.counters()["errors"]
    with world.under_load(), world.redis as redis:
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 1)
        redis.flushall()
        time.sleep(1)
        assert redis.dbsize() == 0
        redis.config_set("maxmemory", 0)
    assert world.counters()["errors"] >= before


def test_a_server_that_evicts_what_it_wants(world: World) -> None:
    with world.under_load(), world.redis as redis:
        redis.flushall()
        redis.config_set("maxmemory-policy", "allkeys-random")
        redis.config_set("maxmemory", redis.info("memory")["used_memory"] + 600_000)
        time.sleep(1.5)
        assert redis.info("stats")["evicted_keys"] > 0
        redis.config_set("maxmemory", 0)


def test_a_server_that_is_flushed_again_and_again(world: World) -> None:
    with world.under_load(), world.redis as redis:
        for _ in range(20):
            redis.flushall()
            time.sleep(0.05)


def test_a_password_that_changes_and_changes_back(world: World) -> None:
    with world.under_load(), world.redis as redis:
        redis.config_set("requirepass", "another")
        redis.client_kill_filter(_type="normal", skipme=True)
        time.sleep(1)
        redis.config_set("requirepass", "")


def test_a_server_without_room_for_more_clients(world: World) -> None:
    with world.under_load(), world.redis as redis:
        redis.config_set("maxclients", 1)
        redis.client_kill_filter(_type="normal", skipme=True)
        time.sleep(1)
        redis.config_set("maxclients", 10_000)


# -- what lies in it -----------------------------------------------------------------------------------


def damaged(world: World, damage: Callable[[Redis, bytes], object], pattern: str) -> int:
    """Damage what matches, again and again under load; gives how many blends were found to be wrong."""
    before = world.counters()["corrupt"]
    with world.under_load(), world.redis as redis:
        for _ in range(10):
            for name in redis.keys(pattern):
                damage(redis, name)
            time.sleep(0.1)
    return world.counters()["corrupt"] - before


def test_bytes_that_change_in_a_chunk(world: World) -> None:
    def flip(redis: Redis, name: bytes) -> None:
        redis.setrange(name, 1000, bytes([random.randrange(256)]))

    assert damaged(world, flip, "*:1") > 0


def test_manifests_without_chunks(world: World) -> None:
    assert damaged(world, lambda redis, name: redis.delete(name), "*:0") > 0


def test_manifests_of_other_blends(world: World) -> None:
    def swap(redis: Redis, name: bytes) -> None:
        with contextlib.suppress(Exception):
            redis.copy(random.choice(redis.keys("*:manifest")), name, replace=True)

    assert damaged(world, swap, "*:manifest") > 0


def test_a_clock_by_which_everything_has_expired(world: World) -> None:
    with world.under_load(), world.redis as redis:
        for _ in range(10):
            for name in redis.keys("*"):
                redis.pexpire(name, 1)
            time.sleep(0.1)


def test_a_clock_by_which_nothing_ever_expires(world: World) -> None:
    with world.under_load(), world.redis as redis:
        for _ in range(10):
            for name in redis.keys("*"):
                redis.persist(name)
            time.sleep(0.1)


# -- the network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["cut", "silent", 20_000])
def test_a_line_that_fails(
    unmixable: BankSpec, expected: dict[str, dict[str, float]], tmp_path: Path, state: str | int
) -> None:
    with server(tmp_path) as made, line_to(made.port) as line, serving(unmixable, line.url) as service:
        with World(service, made, expected).under_load():
            line.state = state
            if state == "cut":
                line.cut()
            time.sleep(2)
            line.state = "up"


def test_a_server_that_comes_after_the_service(
    unmixable: BankSpec, expected: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    with server(tmp_path) as made:
        made.kill()
        with serving(unmixable, made.url) as service:
            assert service.client.get("/readyz").json()["redis"] == "degraded"
            assert check(probabilities(service.client, RECIPES[0]), expected[RECIPES[0]]) is None
            made.start()
            World(service, made, expected).is_well()


# -- other pods ----------------------------------------------------------------------------------------


def test_two_pods_that_build_the_same_blends(world: World, unmixable: BankSpec) -> None:
    with serving(unmixable, world.server.url) as other, world.under_load(), ThreadPoolExecutor(8) as callers:
        for recipe in RECIPES[:20]:
            with world.redis as redis:
                redis.flushall()
            clients = [world.service.client, other.client] * 4
            for got in callers.map(lambda client, recipe=recipe: probabilities(client, recipe), clients):
                assert check(got, world.expected[recipe]) is None
