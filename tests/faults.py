"""Scenarios of `make chaos` beyond load: another bank is rolled out, the disk is full, the clock jumps, signals reach
every process or stop one, callers do not read."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
from fleet import (  # noqa: E402
    Absent,
    Connection,
    Outcome,
    Pod,
    Seen,
    body_of,
    during,
    one_after_the_other,
    pod,
    three_pods,
    timed,
)
from processes import children_of, is_running, workers_of  # noqa: E402
from servers import Server  # noqa: E402

EXPERIMENT = {
    "arms": [{"name": "mild", "recipe": "base", "share": 0.5}, {"name": "firm", "recipe": "angry@0.4", "share": 0.5}],
    "control": "mild",
    "metrics": [{"name": "bought", "role": "primary"}],
    "status": "running",
}
CALLERS = 6


# -- another bank ----------------------------------------------------------------------------------------

TEXT = "the refund came late"
PROD = {"base": 0.5, "angry": 0.5}
RECIPES = {
    "angry@0.4": {"base": 0.6, "angry": 0.4},
    "angry@0.7+polite@0.2": {"base": 0.1, "angry": 0.7, "polite": 0.2},
    "angry": {"angry": 1.0},
    "polite@0.3": {"base": 0.7, "polite": 0.3},
    "@prod": PROD,
}
"""What callers ask for, and of what weights that is the blend."""


def expected_of(bank: Path) -> dict[str, list[float]]:
    """What transformers answers, by recipe."""
    tokens = pico.tokenizer()(TEXT, return_tensors="pt")
    with torch.no_grad():
        return {
            recipe: torch.softmax(pico.reference(bank, weights)(**tokens).logits[0], -1).tolist()
            for recipe, weights in RECIPES.items()
        }


async def another_bank(folder: Path) -> list[Outcome]:
    """Every pod is restarted with a bank in which one variant has other weights."""
    after = pico.write_bank(folder / "after", "bert")
    shutil.rmtree(after / "angry")
    pico.save(pico.variant_of(pico.model("bert", seed=1), "bert", seed=9), after / "angry")
    settings = {"TWEEN_DRAIN_S": "2", "TWEEN_REDIS_BLENDS": "always"}
    statuses, wrong, banks_by_key = Counter[int](), list[str](), dict[str, set[str]]()
    stop = asyncio.Event()

    async with three_pods(folder, **settings) as (port, pods):
        expected = {"before": expected_of(folder), "after": expected_of(after)}
        assert await Connection(port).tell("PUT", "/v1/aliases/prod", {"recipe": "angry@0.5"}) in (200, 201)

        async def caller(chooser: random.Random) -> None:
            connection = Connection(port)
            while not stop.is_set():
                recipe = chooser.choice(list(RECIPES))
                cache = chooser.random() < 0.5
                status = await connection.tell("POST", "/v1/predict", {"texts": TEXT, "recipe": recipe, "cache": cache})
                statuses[status] += 1
                if status == 200:
                    answer = json.loads(connection.body)
                    by_label = answer["predictions"][0]["probabilities"]
                    got = [by_label[label] for label in pico.LABELS]
                    fits = {bank for bank, ways in expected.items() if is_near(got, ways[recipe])}
                    if not fits:
                        wrong.append(f"{recipe}: {got}")
                    banks_by_key.setdefault(answer["key"], fits).intersection_update(fits)
                await asyncio.sleep(0.01)  # the cores are needed for pods that start, too
            connection.close()

        load = asyncio.gather(*(caller(random.Random(seed)) for seed in range(CALLERS)))
        await asyncio.sleep(1)
        for one in pods:
            one.send(signal.SIGTERM)
            await one.ended()
            one.bank = after / "bank.toml"
            await one.start()
            await asyncio.sleep(0.5)
        await asyncio.sleep(1)
        stop.set()
        await load
        connection = Connection(pods[0].port)
        assert await connection.ask("GET", "/v1/aliases/prod") == 200
        alias = json.loads(connection.body)
    # Blends without the replaced variant are the same under two keys, and fit both banks.
    mixed = [key for key, banks in banks_by_key.items() if not banks]
    met = {next(iter(banks)) for banks in banks_by_key.values() if len(banks) == 1}
    lost = statuses.total() - statuses[200]
    return [
        Outcome(
            "rolling out another bank loses no request and mixes no weights",
            f"{lost} of {statuses.total()} requests lost: {dict(statuses)}; {len(wrong)} answers of neither bank, "
            f"{len(mixed)} of {len(banks_by_key)} keys that stand for both",
            lost == 0 and not wrong and not mixed and met == {"before", "after"},
        ),
        Outcome(
            "aliases survive it",
            f"@prod is {alias['recipe']} at version {alias['version']}, with the new bank's key",
            alias["recipe"] == "angry@0.5" and bool(alias["key"]),
        ),
    ]


def is_near(got: list[float], wanted: list[float]) -> bool:
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < 1e-4


# -- customers -------------------------------------------------------------------------------------------


@dataclass
class Customers:
    """Callers in an experiment: each customer is met once and then buys; statuses of both calls are counted."""

    port: int
    header: str = ""
    met: Counter[int] = field(default_factory=Counter)
    bought: Counter[int] = field(default_factory=Counter)
    taken: set[str] = field(default_factory=set)
    """Those whose outcome was taken."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def shopping(self) -> AsyncIterator[None]:
        callers = asyncio.gather(*(self._shop() for _ in range(CALLERS)))
        try:
            yield
        finally:
            self._stop.set()
            await callers

    async def _shop(self) -> None:
        connection = Connection(self.port)
        while not self._stop.is_set():
            unit = f"customer-{next(self._numbers)}"
            body = {"texts": "late again", "recipe": "exp:tone", "unit": unit, "cache": False}
            self.met[await connection.tell("POST", "/v1/predict", body, self.header)] += 1
            outcomes = [{"unit": unit, "metric": "bought"}]
            status = await connection.tell("POST", "/v1/experiments/tone/outcomes", outcomes)
            self.bought[status] += 1
            if status == 202:
                self.taken.add(unit)
        connection.close()


async def events(port: int) -> dict[str, int]:
    """What the pod's ledger has counted."""
    connection = Connection(port)
    assert await connection.ask("GET", "/metrics") == 200
    connection.close()
    found = re.findall(r'^tween_ledger_events_total\{event="(\w+)"\} (\S+)$', connection.body.decode(), re.MULTILINE)
    return {name: int(float(value)) for name, value in found}


async def counted(port: int, customers: Customers, unseen: int) -> tuple[int, int]:
    """How many customers the experiment has met and, of those whose outcome was taken, how many it knows to have
    bought: as soon as all that were written down are there, but for `unseen`, or after a minute."""
    deadline = time.monotonic() + 60
    while True:
        url = f"http://127.0.0.1:{port}/v1/experiments/tone/export"
        with await asyncio.to_thread(urllib.request.urlopen, url) as reply:
            rows = csv.DictReader(io.StringIO(reply.read().decode()))
            bought = {row["unit"]: float(row["bought"]) for row in rows}
        known = sum(bought.get(unit) == 1.0 for unit in customers.taken)
        met = (await events(port))["exposures"]
        complete = len(bought) == met and known + unseen >= len(customers.taken)
        if complete or time.monotonic() > deadline:
            return len(bought), known
        await asyncio.sleep(0.2)


# -- a full disk -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own with 2 MiB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tween", folder], capture_output=True)
    if mounted.returncode:
        raise Absent("a small file system cannot be mounted here (that takes root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


async def full_disk(folder: Path) -> list[Outcome]:
    """Spool, private Redis and temporary files lie on a disk that is filled to the brim."""
    bank = pico.write_bank(folder, "bert") / "bank.toml"
    with tiny_disk(folder / "disk") as disk:
        settings = {"TWEEN_WORKERS": "1", "TMPDIR": str(disk), "REDIS_URL": ""}
        async with pod(bank, **settings) as service:
            other = Connection(service.port)
            assert await other.tell("PUT", "/v1/experiments/tone", EXPERIMENT) == 201
            customers = Customers(service.port)
            async with customers.shopping():
                await asyncio.sleep(2)
                healthy = dict(customers.bought)
                filler = fill(disk)
                await asyncio.sleep(3)
                refused = customers.bought[503]
                others = [
                    await other.tell("PUT", "/v1/aliases/prod", {"recipe": "angry@0.4"}),
                    await swept(other),
                    await other.ask("GET", "/readyz"),
                ]
                filler.unlink()
                await asyncio.sleep(1)
                accepted = customers.bought[202]
                await asyncio.sleep(2)
                again = customers.bought[202] - accepted
            written = await events(service.port)
            dropped = written["dropped_exposures"]
            met, known = await counted(service.port, customers, dropped)
    return [
        Outcome(
            "with a full disk predictions go on, and so do aliases and sweeps",
            f"{customers.met.total()} predictions: {dict(customers.met)}; others: {others}",
            set(customers.met) == {200} and others == [201, "done", 200],
        ),
        Outcome(
            "outcomes that cannot be written are refused with 503, and taken again once there is room",
            f"{dict(customers.bought)} in all; {refused} refused while it was full, {again} taken afterwards",
            set(healthy) == {202} and set(customers.bought) == {202, 503} and refused > 0 and again > 0,
        ),
        Outcome(
            "what was taken counts once",
            f"{len(customers.taken)} outcomes taken, {written['outcomes']} written down, {known} counted; "
            f"{dropped} of {customers.met[200]} exposures dropped, {met} counted",
            written["outcomes"] == len(customers.taken)
            and met == customers.met[200] - dropped
            and known + dropped >= len(customers.taken),
        ),
    ]


async def swept(connection: Connection) -> str:
    """How a small sweep ends."""
    data = [{"text": f"{pico.WORDS[n % 30]} order", "label": pico.LABELS[n % 3]} for n in range(30)]
    assert await connection.tell("POST", "/v1/sweeps", {"data": data, "variant": "angry"}) == 202
    path = f"/v1/sweeps/{json.loads(connection.body)['id']}"
    for _ in range(300):
        await connection.ask("GET", path)
        sweep = json.loads(connection.body)
        if sweep["status"] in ("done", "failed"):
            break
        await asyncio.sleep(0.1)
    return sweep["error"] or sweep["status"]


# -- a clock that jumps ----------------------------------------------------------------------------------

JUMPS = (3, -2, 26, -26, 24, 0)
"""Hours, one jump after the other."""


def faketime() -> Path:
    for folder in (Path("/usr/lib"), Path("/usr/local/lib")):
        for found in sorted(folder.glob("**/faketime/libfaketime.so.1")):
            return found
    raise Absent("faketime is not installed (Debian: apt-get install faketime)")


async def jumping_clock(folder: Path) -> list[Outcome]:
    """The clock of the pod, and not that of its Redis, jumps by hours while Redis stops and comes back."""
    offset = folder / "offset"
    offset.write_text("+0")
    bank, redis = pico.write_bank(folder, "bert") / "bank.toml", Server(folder)
    settings = {
        "TWEEN_WORKERS": "1",
        "REDIS_URL": redis.url,
        "TWEEN_SPOOL": str(folder / "spool"),
        "LD_PRELOAD": str(faketime()),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    try:
        async with pod(bank, **settings) as service:
            assert await Connection(service.port).tell("PUT", "/v1/experiments/tone", EXPERIMENT) == 201
            customers, seen, short = Customers(service.port, "X-Request-Timeout: 20"), list[float](), Counter[int]()
            async with customers.shopping():
                for number, jump in enumerate(JUMPS):
                    offset.write_text(f"{jump:+d}h")
                    if number == 2:
                        redis.signal(signal.SIGSTOP)
                    seen.append(await hours_ahead(service, jump))
                    await asyncio.sleep(1)
                    if number == 3:
                        redis.signal(signal.SIGCONT)
                    short[await too_short(service)] += 1
            readiness = Connection(service.port)
            for _ in range(100):
                await readiness.ask("GET", "/readyz")
                state = json.loads(readiness.body)["redis"]
                if state == "ok":
                    break
                await asyncio.sleep(0.1)
            straddling = CALLERS * len(JUMPS)
            met, known = await counted(service.port, customers, straddling)
    finally:
        redis.kill()
    return [
        Outcome(
            "a clock that jumps by hours, to and fro, costs no request, and no deadline passes for it",
            f"{dict(customers.met)} and {dict(customers.bought)} while it was {', '.join(f'{h:+.0f}' for h in seen)} h "
            f"off; calls with a deadline of a millisecond: {dict(short)}",
            set(customers.met) == {200}
            and set(customers.bought) == {202}
            and short[504] > 0
            and set(short) <= {504, 429}
            and [round(h) for h in seen] == list(JUMPS),
        ),
        Outcome(
            "Redis, which stood still meanwhile, is used again, and events count once, unless a jump came between",
            f"redis: {state}; {met} of {customers.met[200]} exposures and {known} of {len(customers.taken)} outcomes "
            f"counted; at most {straddling} outcomes may have come before their exposure, by the clock",
            state == "ok" and met == customers.met[200] and known + straddling >= len(customers.taken),
        ),
    ]


async def hours_ahead(service: Pod, awaited: int) -> float:
    """By how much the pod's clock differs from ours, by the Date of its replies, once that is as awaited or after 5 s:
    it reads its offset once a second, and writes its Date as often."""
    deadline = time.monotonic() + 5
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = (await reader.read()).decode()
        writer.close()
        date = re.search(r"(?im)^date: (.*)\r$", reply)
        assert date is not None
        hours = (parsedate_to_datetime(date[1]).timestamp() - time.time()) / 3600
        if round(hours) == awaited or time.monotonic() > deadline:
            return hours
        await asyncio.sleep(0.1)


async def too_short(service: Pod) -> int:
    """The status of a call that names a deadline which passes before it can be answered."""
    connection = Connection(service.port)
    body = {"texts": ["late again " * 20] * 200, "recipe": "angry@0.3", "cache": False}
    status = await connection.tell("POST", "/v1/predict", body, "X-Request-Timeout: 0.001")
    connection.close()
    return status


# -- signals ---------------------------------------------------------------------------------------------


async def sigterm_to_all(folder: Path) -> list[Outcome]:
    """SIGTERM to the process group, as systemd and shells send it; with workers and a private Redis."""
    bank = pico.write_bank(folder, "bert") / "bank.toml"
    async with pod(bank, REDIS_URL="", TWEEN_WORKERS="2", TWEEN_DRAIN_S="600") as service:
        assert service.process is not None
        below, stop = children_of(service.process.pid), asyncio.Event()
        load = asyncio.create_task(one_after_the_other(service.port, body_of(10), CALLERS, stop))
        await asyncio.sleep(1)
        os.killpg(service.process.pid, signal.SIGTERM)
        await asyncio.sleep(3)
        stop.set()
        seen = await load
        os.killpg(service.process.pid, signal.SIGTERM)
        code = await service.ended()
        deadline = time.monotonic() + 10
        while any(map(is_running, below)) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        left = sum(map(is_running, below))
    lost = seen.count.total() - seen.count[200]
    return [
        Outcome(
            "SIGTERM to every process at once loses no request, and leaves no process behind",
            f"{lost} of {seen.count.total()} requests lost, the slowest took {max(seen.seconds[200]):.2f} s; exit code "
            f"{code}; {left} of {len(below)} processes left",
            lost == 0 and code == 0 and left == 0 and max(seen.seconds[200]) < 1,
        )
    ]


async def stopped_worker(folder: Path) -> list[Outcome]:
    """SIGSTOP to one of two workers, for a few seconds."""
    bank = pico.write_bank(folder, "bert") / "bank.toml"
    async with pod(bank, REDIS_URL="", TWEEN_WORKERS="2") as service:
        assert service.process is not None
        one = min(workers_of(service.process.pid))

        async def stand_still() -> None:
            os.kill(one, signal.SIGSTOP)
            await asyncio.sleep(5)
            os.kill(one, signal.SIGCONT)

        seen = await during(stand_still(), service.port, body_of(10), CALLERS)
    lost, slowest = seen.count.total() - seen.count[200], max(seen.seconds[200])
    return [
        Outcome(
            "a worker that stands still costs no request, and holds its callers for about half a second",
            f"{lost} of {seen.count.total()} requests lost while one of two was stopped for 5 s; the slowest took "
            f"{slowest:.2f} s",
            lost == 0 and slowest < 2,
        )
    ]


# -- callers who do not read -----------------------------------------------------------------------------


async def unread_replies(folder: Path) -> list[Outcome]:
    """A hundred callers ask for much and read nothing."""
    callers, bank = 100, pico.write_bank(folder, "bert") / "bank.toml"
    async with pod(bank, REDIS_URL="", TWEEN_WORKERS="0", TWEEN_WRITE_S="3") as service:
        much = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5
        with contextlib.ExitStack() as stack:

            def ask() -> None:
                for _ in range(callers):
                    caller = stack.enter_context(socket.socket())
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    caller.connect(("127.0.0.1", service.port))
                    caller.sendall(much)

            await asyncio.to_thread(ask)
            connection, probes = Connection(service.port), Seen()
            cut, deadline = 0, time.monotonic() + 30
            while cut < callers and time.monotonic() < deadline:
                await timed(connection, probes, "GET", "/livez")
                assert await connection.ask("GET", "/metrics") == 200
                found = re.search(rb"^tween_unread_connections_total (\S+)$", connection.body, re.MULTILINE)
                cut = int(float(found[1])) if found else 0
                await asyncio.sleep(0.1)
            connection.close()
    return [
        Outcome(
            "callers who do not read their replies are let go, and nobody else notices",
            f"{cut} of {callers} connections cut after 3 s; the slowest probe took "
            f"{max(probes.seconds[200]) * 1e3:.0f} ms",
            cut == callers and set(probes.count) == {200} and max(probes.seconds[200]) < 1,
        )
    ]
