"""An A/B test from its definition to its report: simulated customers, two pods, and a Redis that is killed twice.

With `UNITS=20000` in the environment there are as many customers as a real one needs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from servers import free_port, server, until

from app.cli.simulate_command import table
from app.experiments.simulator import Planted, Simulation
from app.experiments.stats.report_schema import Report

ROOT = Path(__file__).parent.parent
UNITS = int(os.environ.get("UNITS", "2000"))
PLANTED = Planted(base=0.3, lift=0.06, best=0.4)
DEFINITION = {
    "arms": [
        {"name": "plain", "recipe": "base", "share": 0.5},
        {"name": "warm", "recipe": "polite@0.4", "share": 0.5},
        {"name": "other", "recipe": "angry@0.4", "share": 0, "shadow": True},
    ],
    "control": "plain",
    "metrics": [
        {"name": "bought", "role": "primary"},
        {"name": "clicks", "kind": "count"},
        {"name": "spent", "kind": "continuous"},
    ],
    "planned_units": UNITS,
    "status": "running",
}


@contextmanager
def pod(bank: Path, redis: str, spool: Path) -> Iterator[str]:
    """A service in a process of its own; gives its address."""
    port = free_port()
    settings = {"REDIS_URL": redis, "TWEEN_SPOOL": str(spool), "TWEEN_WORKERS": "0", "TWEEN_MEMORY_TIER_MIB": "16"}
    command = [sys.executable, "-m", "app", "serve", "--bank", str(bank), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200, seconds=90)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def put(url: str) -> None:
    request = Request(
        f"{url}/v1/experiments/tone",
        json.dumps(DEFINITION).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urlopen(request, timeout=30) as reply:
        assert reply.status == 201


def exported(url: str) -> dict[str, dict[str, float]]:
    """Units and sums by arm, from a row for each unit."""
    with urlopen(f"{url}/v1/experiments/tone/export", timeout=60) as reply:
        rows = csv.DictReader(io.TextIOWrapper(reply, "utf-8"))
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for row in rows:
            sums[row["arm"]]["units"] += 1
            for metric in ("bought", "clicks", "spent"):
                sums[row["arm"]][metric] += float(row[metric])
    return sums


def test_every_outcome_is_counted_once_and_the_interval_covers_what_was_planted(folders: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(server(tmp_path, "appendonly yes", "appendfsync everysec"))
        pods = [
            stack.enter_context(pod(folders / "bank.toml", redis.url, tmp_path / f"spool-{number}"))
            for number in (1, 2)
        ]
        put(pods[0])
        until(lambda: b'"served":true' in urlopen(f"{pods[1]}/v1/experiments/tone").read())
        simulation = Simulation(pods, "tone", PLANTED)
        stack.callback(simulation.pods.close)
        killed = 0

        def trouble(done: int) -> None:
            nonlocal killed
            if done >= UNITS * (killed + 1) / 3 and killed < 2:
                killed += 1
                redis.kill()
                time.sleep(2)
                redis.start()

        simulation.run(UNITS, trouble)
        assert killed == 2
        wanted = {arm: {"units": a.units, **a.sums} for arm, a in simulation.arms.items()}

        def is_counted() -> bool:
            sums = exported(pods[1])
            return all(
                abs(sums[arm][name] - amount) < 1e-6 for arm, of in wanted.items() for name, amount in of.items()
            )

        until(is_counted, seconds=120)
        time.sleep(8)  # until the spools have compared what Redis has with what it was sent
        assert is_counted()
        made = Report.model_validate(simulation.report())
        print(table(simulation, made.model_dump()))
        assert made.trustworthy
        assert {arm.arm: arm.units for arm in made.arms if not arm.shadow} == {
            arm: of["units"] for arm, of in wanted.items()
        }
        for metric in made.metrics:
            for arm in metric.arms:
                if arm.arm in wanted:
                    assert arm.mean == pytest.approx(
                        wanted[arm.arm][metric.metric] / wanted[arm.arm]["units"], rel=1e-9
                    )
        [comparison] = [one for one in made.metrics[0].comparisons if one.arm == "warm"]
        planted = PLANTED.mean("binary", 0.4) - PLANTED.mean("binary", 0.0)
        assert comparison.interval.low <= planted <= comparison.interval.high
