"""Inputs that all oracles share, and how their numbers are written down."""

from __future__ import annotations

import json
import platform
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parent.parent / "fixtures"

# Units and sums of outcomes: (control units, control successes, arm units, arm successes).
PROPORTIONS = [(1000, 100, 1000, 130), (500, 5, 700, 12), (20000, 2000, 20000, 2075), (150, 149, 160, 150)]

COUNTS = [
    ([5000, 5000], [0.5, 0.5]),
    ([5100, 4900], [0.5, 0.5]),
    ([5300, 4700], [0.5, 0.5]),
    ([900, 520, 480], [0.5, 0.25, 0.25]),
]
P_VALUES = [[0.01, 0.04, 0.03], [0.001, 0.2, 0.04, 0.04, 0.9], [0.5], [0.02, 0.02, 0.02]]
LOOKS = [[0.2, 0.4, 0.6, 0.8, 1.0], [0.05, 0.3, 0.35, 0.9, 1.0], [0.5, 1.0], [k / 20 for k in range(1, 21)]]


def units(seed: int, count: int, lift: float) -> list[tuple[float, float, float]]:
    """(y, z, x) of each unit: an outcome that follows a covariate, and a count that it may be divided by."""
    made = random.Random(seed)
    found = []
    for _ in range(count):
        x = made.gauss(0.6, 0.2)
        z = 1 + int(made.expovariate(0.5))
        found.append((round(x * 3 + lift + made.gauss(0, 1) + 0.5 * z, 6), float(z), round(x, 6)))
    return found


CONTROL, ARM = units(1, 400, 0.0), units(2, 500, 0.3)


def sums(rows: list[tuple[float, float, float]]) -> dict[str, float]:
    """The moments of these units."""
    return {
        "y": sum(y for y, _, _ in rows),
        "yy": sum(y * y for y, _, _ in rows),
        "z": sum(z for _, z, _ in rows),
        "zz": sum(z * z for _, z, _ in rows),
        "yz": sum(y * z for y, z, _ in rows),
        "x": sum(x for _, _, x in rows),
        "xx": sum(x * x for _, _, x in rows),
        "xy": sum(x * y for y, _, x in rows),
        "y_with_x": sum(y for y, _, _ in rows),
    }


def write(name: str, packages: list[str], numbers: dict[str, Any]) -> None:
    versions = {package: version(package) for package in packages} | {"python": platform.python_version()}
    FIXTURES.mkdir(exist_ok=True)
    path = FIXTURES / f"{name}.json"
    path.write_text(json.dumps({"versions": versions, **numbers}, indent=1) + "\n", encoding="utf-8")
    print(path.name, versions)
