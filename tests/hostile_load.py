"""A real service under hostile requests of every class: what it answers, how long it stalls, what memory it keeps.

    python -m tests.hostile_load [COUNT [SEED]]

The service is a process of its own with its workers, its keys and a real Redis. `make fuzz` prints a line for each
class, `make chaos` the promises. The attack of a number is always the same one, so a number and a seed tell all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
from attacks import ATTACKS, Aim, Attack, attack  # noqa: E402
from fleet import Connection, Outcome, pod  # noqa: E402
from hostile import ARMS  # noqa: E402
from servers import server  # noqa: E402

from app.api.auth.api_keys import new_key  # noqa: E402
from app.main import create_app  # noqa: E402
from app.models.bank import BankSpec  # noqa: E402
from app.settings import Settings  # noqa: E402
from tests.soak import family_of, measure  # noqa: E402

MIB = 2**20
CALLERS = 12
WARM_UP, COUNT, SEED = 1_000, 10_000, 1
PATIENCE = 30.0
"""Seconds after which a connection that is still open is a fault."""
OUTAGES = (503, 507)
"""What the service says where Redis does not answer in time, as it may on a busy machine, or memory is short."""
STALL_SECONDS, GROWTH_MIB = 0.25, 50
SETTINGS = {
    "TWEEN_HEADER_S": "0.5",
    "TWEEN_BODY_S": "2",
    "TWEEN_WRITE_S": "1",
    "TWEEN_MEMORY_TIER_MIB": "16",
    "TWEEN_SWEEPS_WAITING": "2",
}
ASK = {"texts": ["the refund came late", ["is it late?", "yes"]], "recipe": "angry@0.4", "cache": False}


@dataclass
class Met:
    """What attacks of one class were answered with; 0 stands for no answer."""

    attacks: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


@dataclass
class Stall:
    """A reply of /livez that took long: all of it, and without the time for which other programs had the cores."""

    seconds: float
    own: float
    at: float


@dataclass
class Seen:
    met: dict[str, Met] = field(default_factory=lambda: {kind: Met() for kind in ATTACKS})
    faults: list[str] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    peak: int = 0
    is_same: bool = False


# -- callers -------------------------------------------------------------------------------------------


async def send(port: int, one: Attack) -> list[int]:
    """Statuses of the replies. Raises `TimeoutError` where the service neither answers nor hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        async with asyncio.timeout(PATIENCE):
            for piece in one.pieces:
                writer.write(piece)
                if one.end != "deaf":
                    await writer.drain()
                await asyncio.sleep(0)
            if one.end == "half":
                writer.write_eof()
            if one.end == "gone":
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            elif one.end == "deaf":
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.sleep(2)
            else:
                while data := await reader.read(2**16):
                    received = received[-(2**20) :] + data
    except TimeoutError:
        raise
    except OSError:
        pass  # the service has hung up
    writer.transport.abort()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", received)]


async def attack_all(port: int, aim: Aim, seed: int, numbers: range, seen: Seen) -> None:
    """Some callers, each with one connection at a time."""
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            one = attack(aim, seed, number)
            try:
                statuses = await send(port, one)
            except TimeoutError:
                statuses = []
                seen.faults.append(f"{number} {one.kind}: still open after {PATIENCE:g} s: {one.why[:300]}")
            met = seen.met[one.kind]
            met.attacks += 1
            met.statuses.update(statuses or [0])
            seen.faults += [
                f"{number} {one.kind}: {status}: {one.why[:300]}"
                for status in statuses
                if status >= 500 and status not in OUTAGES
            ]

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


# -- what the service does meanwhile -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def polled(port: int, pid: int, seen: Seen) -> AsyncIterator[None]:
    """Notes how long /livez takes."""
    command = [sys.executable, str(Path(__file__).with_name("livez_poll.py")), str(port), str(pid)]
    poller = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert poller.stdout is not None
    await poller.stdout.readline()  # it polls from now on

    async def read(lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            at, took, waited = map(float, line.split())
            seen.stalls.append(Stall(took, took - waited, at))

    reading = asyncio.create_task(read(poller.stdout))
    try:
        yield
    finally:
        poller.terminate()
        await poller.wait()
        await reading
        seen.stalls.sort(key=lambda stall: -stall.own)


async def sample(pid: int, seen: Seen) -> None:
    """By how much more the service had at any time than at first, of what its processes do not share."""
    first = sum(map(private_bytes, family_of(pid)))
    while True:
        seen.peak = max(seen.peak, sum(map(private_bytes, family_of(pid))) - first)
        await asyncio.sleep(0.2)


def private_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(fields[1]) - int(fields[2])) * 4096
    return 0


async def settled(pid: int) -> int:
    """Bytes of the service with all its processes, once it has had nothing to do for a while."""
    await asyncio.sleep(2)
    return measure(pid, 0).bytes


# -- the whole -----------------------------------------------------------------------------------------


async def under_attack(
    folder: Path, count: int = COUNT, warm_up: int = WARM_UP, seed: int = SEED, polling: bool = True, **settings: str
) -> Seen:
    """Attacks 0 to `warm_up` and then `count` more. `settings`: of the service, beyond those above."""
    bank = pico.write_bank(folder, "bert") / "bank.toml"
    made = {role: new_key(role, role) for role in ("predict", "manage")}  # type: ignore[arg-type]
    (folder / "keys.toml").write_text("\n".join(entry for _, entry in made.values()))
    keys = {role: f"Authorization: Bearer {key}" for role, (key, _) in made.items()}
    settings = {
        **SETTINGS,
        "TWEEN_API_KEYS": str(folder / "keys.toml"),
        "TWEEN_SPOOL": str(folder / "spool"),
        **settings,
    }
    routes = create_app(Settings(), BankSpec.from_toml(bank), print).state.routes
    seen = Seen()
    with server(folder, "maxmemory 256mb") as redis:
        async with pod(bank, folder / "log", REDIS_URL=redis.url, **settings) as service:
            assert service.process is not None
            pid, manager = service.process.pid, Connection(service.port)
            assert await manager.ask("GET", "/openapi.json") == 200
            lines = {"none": b"", **{role: line.encode() for role, line in keys.items()}}
            aim = Aim(json.loads(manager.body), [call[:2] for call in routes.listed()], lines)
            body = json.dumps({"arms": ARMS, "control": "mild"}).encode()
            assert await manager.ask("PUT", "/v1/experiments/tone", body, keys["manage"]) == 201
            manager.close()
            before = await answer(service.port, keys["predict"])
            await attack_all(service.port, aim, seed, range(warm_up), seen)
            seen.bytes_before = await settled(pid)
            sampling = asyncio.create_task(sample(pid, seen))
            async with polled(service.port, pid, seen) if polling else contextlib.nullcontext():
                await attack_all(service.port, aim, seed, range(warm_up, warm_up + count), seen)
            sampling.cancel()
            seen.bytes_after = await settled(pid)
            seen.is_same = await answer(service.port, keys["predict"]) == before
    seen.faults += [f"logged: {line}" for line in (folder / "log").read_text().splitlines()]
    return seen


async def answer(port: int, key: str) -> object:
    """What a caller who means well is told, but for how long it took."""
    connection = Connection(port)
    assert await connection.ask("POST", "/v1/predict", json.dumps(ASK).encode(), key) == 200, connection.body
    connection.close()
    reply = json.loads(connection.body)
    return {name: reply[name] for name in ("recipe", "key", "predictions")}


async def hostile_load(folder: Path) -> list[Outcome]:
    """10,000 hostile requests."""
    seen = await under_attack(folder)
    total, own = sum(met.attacks for met in seen.met.values()), seen.stalls[0].own
    all_told = max(stall.seconds for stall in seen.stalls)
    grown = (seen.bytes_after - seen.bytes_before) / MIB
    statuses = sum((met.statuses for met in seen.met.values()), Counter[int]())
    return [
        Outcome(
            "no hostile request is answered with 5xx but 503 and 507, and none keeps its connection",
            f"{total} requests of {len(ATTACKS)} classes: {dict(sorted(statuses.items()))}; {len(seen.faults)} faults",
            not seen.faults,
        ),
        Outcome(
            f"/livez never stalls for more than {STALL_SECONDS * 1e3:.0f} ms meanwhile",
            f"{len(seen.stalls)} polls, the slowest {own * 1e3:.0f} ms, or {all_told * 1e3:.0f} with waits for a core",
            own < STALL_SECONDS,
        ),
        Outcome(
            f"memory grows by no more than {GROWTH_MIB} MiB after the first {WARM_UP}",
            f"{seen.bytes_before / MIB:.0f} MiB then, {grown:+.0f} MiB at the end",
            grown <= GROWTH_MIB,
        ),
        Outcome("it predicts as before", "the same answer" if seen.is_same else "another answer", seen.is_same),
    ]


def main() -> None:
    count, seed = ([int(word) for word in sys.argv[1:]] + [COUNT, SEED][len(sys.argv) - 1 :])[:2]
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(under_attack(Path(folder), count, seed=seed))
    print("| class | requests | statuses |\n|---|---|---|")
    for kind, met in seen.met.items():
        print(f"| {kind} | {met.attacks} | {', '.join(f'{k}: {n}' for k, n in sorted(met.statuses.items()))} |")
    for stall in seen.stalls[:5]:
        print(f"/livez took {stall.seconds * 1e3:.0f} ms, {stall.own * 1e3:.0f} with a core, at {stall.at:.1f}")
    sizes = [size / MIB for size in (seen.bytes_before, seen.bytes_after, seen.peak)]
    print(f"{sizes[0]:.0f} MiB before, {sizes[1]:.0f} after, {sizes[2]:+.0f} at most between; same: {seen.is_same}")
    for fault in seen.faults[:50]:
        print(fault)
    sys.exit(bool(seen.faults) or not seen.is_same)


if __name__ == "__main__":
    main()
