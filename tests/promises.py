"""`make chaos`: what the service promises under overload and faults, kept or not, on real processes.

    python -m tests.promises [NAME ...]

Prints the table of docs/reliability.md and fails if a promise is not kept. A scenario whose tools are missing
(HAProxy, faketime, the right to mount) says so in its row.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from transformers import BertConfig

sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
from faults import another_bank, full_disk, jumping_clock, sigterm_to_all, stopped_worker, unread_replies  # noqa: E402
from fleet import (  # noqa: E402
    Absent,
    Connection,
    Outcome,
    Seen,
    at_a_rate,
    body_of,
    during,
    one_after_the_other,
    pod,
    three_pods,
    timed,
)
from hostile_load import hostile_load  # noqa: E402

LONG = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
TOKENS = 512


def long_texts(folder: Path) -> Path:
    """A bank whose model is slow enough that a few callers overload two cores."""
    pico.CONFIGS["long"] = BertConfig(
        **{**pico.CONFIGS["bert"].to_diff_dict(), **LONG, "max_position_embeddings": TOKENS}
    )
    bank = pico.write_bank(folder, "long")
    for file in bank.glob("*/tokenizer_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": TOKENS}))
    return bank / "bank.toml"


async def overload(folder: Path) -> list[Outcome]:
    """Ten times of what the service can do, from callers who do not wait for each other."""
    body = body_of(TOKENS - 2)
    async with pod(long_texts(folder), TWEEN_QUEUE_MS="25", TWEEN_PREDICTION_CACHE="false") as service:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(6, stop.set)
        capacity = (await one_after_the_other(service.port, body, 4, stop)).count[200] / 6
        calm = await at_a_rate(service.port, body, capacity / 2, 10)
        probes, over = Seen(), asyncio.Event()

        async def probe() -> None:
            connection = Connection(service.port)
            while not over.is_set():
                await timed(connection, probes, "GET", "/livez")
                await asyncio.sleep(0.1)

        probing = asyncio.create_task(probe())
        storm = await at_a_rate(service.port, body, capacity * 10, 10)
        over.set()
        await probing
    times, refused = storm.p99() / calm.p99(), storm.p99(429)
    served = storm.count[200] / 10 / capacity
    return [
        Outcome(
            "at 10 times its capacity the service answers 200 or 429, and nothing else",
            f"{storm.count[200]} answered, {storm.count[429]} refused, {dict(storm.count)} in all",
            set(storm.count) == {200, 429},
        ),
        Outcome(
            "whom it serves then waits at most 3 times as long (p99) as at half its capacity",
            f"{storm.p99() * 1e3:.0f} ms against {calm.p99() * 1e3:.0f} ms: {times:.1f} times",
            times < 3,
        ),
        Outcome(
            "it goes on serving what it can",
            f"{served:.0%} of its capacity of {capacity:.0f} requests a second",
            served > 0.6,
        ),
        Outcome(
            "whom it refuses learns that at once (p99)",
            f"{refused * 1e3:.0f} ms",
            refused < 0.25,
        ),
        Outcome(
            "probes answer meanwhile (p99)",
            f"{probes.p99() * 1e3:.0f} ms",
            probes.p99() < 0.25 and set(probes.count) == {200},
        ),
    ]


async def killed(folder: Path) -> list[Outcome]:
    """kill -9 of one of three pods."""
    callers = 12
    async with three_pods(folder) as (port, pods):

        async def kill() -> None:
            pods[0].send(signal.SIGKILL)
            await pods[0].ended()
            await asyncio.sleep(2)
            await pods[0].start()

        seen = await during(kill(), port, body_of(10), callers)
    lost = seen.count.total() - seen.count[200]
    return [
        Outcome(
            "kill -9 of one of three pods costs no more than the requests that were in it",
            f"{lost} of {seen.count.total()} requests lost, with {callers} callers",
            lost <= callers,
        )
    ]


async def rolling(folder: Path) -> list[Outcome]:
    """Every pod is asked to leave and started anew, one after the other, as a rolling update does it."""
    codes = []
    async with three_pods(folder, TWEEN_DRAIN_S="2") as (port, pods):

        async def restart() -> None:
            for one in pods:
                one.send(signal.SIGTERM)
                codes.append(await one.ended())
                await one.start()
                await asyncio.sleep(0.5)

        seen = await during(restart(), port, body_of(10), 12)
    lost = seen.count.total() - seen.count[200]
    return [
        Outcome(
            "a rolling restart loses no request, and pods leave by themselves",
            f"{lost} of {seen.count.total()} requests lost; exit codes {codes}; {dict(seen.count)}",
            lost == 0 and set(codes) <= {0, -signal.SIGTERM},
        )
    ]


PROMISES: dict[str, Callable[[Path], Awaitable[list[Outcome]]]] = {
    "overload": overload,
    "killed": killed,
    "rolling": rolling,
    "group": sigterm_to_all,
    "stopped": stopped_worker,
    "unread": unread_replies,
    "bank": another_bank,
    "disk": full_disk,
    "clock": jumping_clock,
    "hostile": hostile_load,
}


def main() -> None:
    print("| promise | seen | kept |\n|---|---|---|", flush=True)
    broken = 0
    for name in sys.argv[1:] or PROMISES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes = asyncio.run(PROMISES[name](Path(folder)))
            except Absent as reason:
                print(f"| {name} | not tried: {reason} | |", flush=True)
                continue
            for outcome in outcomes:
                print(f"| {outcome.promise} | {outcome.seen} | {'yes' if outcome.kept else '**no**'} |", flush=True)
                broken += not outcome.kept
    sys.exit(min(broken, 1))


if __name__ == "__main__":
    main()
