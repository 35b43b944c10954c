"""`tween simulate`: synthetic customers for a running experiment, and what was planted beside what it reports."""

from __future__ import annotations

import argparse
import sys
import time
from math import inf
from typing import Any

from app.errors import SimulationFailed
from app.experiments.simulator import Planted, Simulation

SERVER = "http://127.0.0.1:8000"
PATIENCE = 60.0
"""Seconds to wait until the service has counted all that it was told."""
LOOK = 0.5


def add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the experiment; it must be running")
    parser.add_argument("--server", action="append", metavar="URL", help=f"a pod ({SERVER}); may be repeated")
    parser.add_argument("--units", type=int, default=2_000, help="customers (2000)")
    parser.add_argument("--seed", type=int, default=1, help="other customers for another number (1)")
    planted = Planted()
    for name, meaning in {
        "base": "what customers do at t = 0: a probability",
        "lift": "how much more at the best t",
        "best": "the best t",
        "late": "share of customers whose outcomes come late",
        "twice": "share whose outcomes are posted twice",
        "bots": "share that ask and post twenty times",
    }.items():
        default = getattr(planted, name)
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning} ({default:g})")
    parser.set_defaults(run=run_simulate)


def run_simulate(options: argparse.Namespace) -> int:
    if options.units < 1 or not 0 < options.best < inf:
        raise SimulationFailed("--units and --best are above 0")
    for name in ("base", "late", "twice", "bots"):
        if not 0 <= getattr(options, name) <= 1:
            raise SimulationFailed(f"--{name} is a share, from 0 to 1")
    if not -1 <= options.lift <= 1:
        raise SimulationFailed("--lift is a difference of shares, from -1 to 1")
    planted = Planted(*(getattr(options, name) for name in ("base", "lift", "best", "late", "twice", "bots")))
    simulation = Simulation(options.server or [SERVER], options.name, planted, options.seed)
    started = time.monotonic()
    simulation.run(options.units, _progress)
    seconds = time.monotonic() - started
    print(f"\r{options.units} customers, {simulation.outcomes} outcomes in {seconds:.1f} s", file=sys.stderr)
    try:
        print(table(simulation, counted_report(simulation)))
    finally:
        simulation.pods.close()
    return 0


def counted_report(simulation: Simulation) -> dict[str, Any]:
    """The report, once it holds every customer, or after a while."""
    deadline = time.monotonic() + PATIENCE
    while True:
        report = simulation.report()
        units = {arm["arm"]: arm["units"] for arm in report["arms"]}
        if all(units.get(name, 0) >= account.units for name, account in simulation.arms.items()):
            return report
        if time.monotonic() > deadline:
            print("not all of it has been counted yet", file=sys.stderr)
            return report
        time.sleep(LOOK)


def table(simulation: Simulation, report: dict[str, Any]) -> str:
    """What was planted, what these customers did, and what the report says, by metric and arm."""
    lines = [
        f"{'metric':16}{'arm':16}{'t':>6}{'units':>9}{'planted':>10}{'done':>10}{'report':>10}  lift: planted, report"
    ]
    kinds = {metric.name: metric.kind for metric in simulation.experiment.metrics if metric.per is None}
    control = simulation.arms[simulation.experiment.control]
    for metric in report["metrics"]:
        name = metric["metric"]
        if name not in kinds:
            continue
        means = {arm["arm"]: arm["mean"] for arm in metric["arms"]}
        lifts = {one["arm"]: one for one in metric["comparisons"]}
        for arm, account in sorted(simulation.arms.items()):
            expected = simulation.planted.mean(kinds[name], account.t)
            row = f"{name:16}{arm:16}{account.t:6.2f}{account.units:9d}{expected:10.4f}"
            row += f"{account.sums[name] / account.units:10.4f}{_number(means.get(arm)):>10}"
            if arm in lifts:
                lift, span = lifts[arm]["lift"], lifts[arm]["interval"]
                away = expected - simulation.planted.mean(kinds[name], control.t)
                row += f"  {away:+.4f}, {lift:+.4f} ({span['low']:+.4f} to {span['high']:+.4f})"
            lines.append(row)
    return "\n".join([*lines, "", report["sentence"]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _progress(done: int) -> None:
    print(f"\r{done} customers", end="", file=sys.stderr, flush=True)
