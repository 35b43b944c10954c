"""`python -m tests.bench.experiments`: how often experiments' tests err, and what they find and cost.

Simulated arms with a binary metric at 10 %, 500 units an arm and day, 30 days; no time is measured.
"""

from __future__ import annotations

import math

from app.experiments.stats import power, sample_ratio, sequential_tests
from tests.simulations import follow, left_by, moved_plan, peek, split, swapped_metric

DAYS, PER_DAY, RUNS = 30, 500, 4_000
AMENDED_RUNS = 200
RATES = {"a": 0.05, "b": 0.06, "c": 0.08, "d": 0.11}


def peeking() -> None:
    units = range(2 * PER_DAY, 2 * PER_DAY * DAYS + 1, 2 * PER_DAY)
    fractions = tuple(day / DAYS for day in range(1, DAYS + 1))
    ways = {
        "textbook, looked at daily": [1.96] * DAYS,
        "group-sequential": list(sequential_tests.bounds(fractions)),
        "confidence sequence, tuned for the plan": [sequential_tests.sequence_critical(n, units[-1]) for n in units],
        "confidence sequence, tuned for 10,000": [sequential_tests.sequence_critical(n) for n in units],
    }
    print(
        "| test | finds without effect | finds +10 % | day of decision | interval at the end |\n|---|---|---|---|---|"
    )
    for name, critical in ways.items():
        null, real = peek(critical, PER_DAY, runs=RUNS), peek(critical, PER_DAY, lift=0.01, runs=RUNS)
        wide = f"{critical[-1] / 1.96:.2f}"
        print(f"| {name} | {100 * null.found:.1f} % | {100 * real.found:.1f} % | {real.day:.1f} | {wide} |")


def outside_the_contract() -> None:
    """Looks that the bounds have not paid for."""
    daily = sequential_tests.bounds(tuple(day / DAYS for day in range(1, DAYS + 1)))
    for looks in (4, 24):
        # Every look of a day uses the bound that the day's end would have, at its own part of the plan.
        critical = []
        for look in range(1, looks * DAYS + 1):
            day = (look - 1) // looks
            before = tuple(d / DAYS for d in range(1, day + 1))
            critical.append(sequential_tests.bounds((*before, look / (looks * DAYS)))[-1])
        found = peek(critical, PER_DAY // looks, runs=RUNS).found
        print(f"{looks} looks a day instead of one: finds without effect {100 * found:.1f} %")
    for days in (33, 37, 45):
        never = [math.inf] * (days - DAYS - 1)
        found = peek([*daily, *never, daily[-1]], PER_DAY, runs=RUNS).found
        print(f"one more look, {days - DAYS} days after a plan of {DAYS}: finds without effect {100 * found:.1f} %")
    for days in (33, 36, 45):
        found = peek([*daily, *[daily[-1]] * (days - DAYS)], PER_DAY, runs=RUNS).found
        print(f"{days} days of a plan of {DAYS}: finds without effect {100 * found:.1f} %")


def amended() -> None:
    """Plans and primary metrics that are changed before each look, half as many units a day."""
    for what, simulate in (
        ("planned end moved to now", moved_plan),
        ("metric that differs most made primary", swapped_metric),
    ):
        unknown, known = (100 * simulate(amend, runs=AMENDED_RUNS, days=DAYS) for amend in (False, True))
        print(f"{what} before each look: finds without effect {unknown:.1f} % as if unknown, {known:.1f} % amended")


def planned() -> None:
    units = power.units_per_arm(0.01, 0.1 * 0.9, 0.11 * 0.89, looks=DAYS)
    bounds = sequential_tests.bounds(tuple(day / DAYS for day in range(1, DAYS + 1)))
    found = peek(bounds, round(units / DAYS), lift=0.01, runs=RUNS)
    single = power.units_per_arm(0.01, 0.1 * 0.9, 0.11 * 0.89)
    print(f"planned for 80 %: {units:,} units an arm ({single:,} for a single look) find {100 * found.found:.1f} %")
    print(f"  over on day {found.day:.1f} of {DAYS} on average")


def splits() -> None:
    print("| 60 days, units a day | split | e-process at 0.01 | chi-square at 0.001 | day of the alarm |")
    print("|---|---|---|---|---|")
    for per_day, share in ((1_000, 0.5), (800, 0.5), (7, 0.5), (1_000, 0.51), (800, 0.51), (1_000, 0.53)):
        found, day = _alarms(share, per_day, 60)
        print(f"| {per_day:,} | {100 * (1 - share):.0f} / {100 * share:.0f} | {found} | {day} |")
    print("\n| in one day | lost | e-process at 0.01 | chi-square at 0.001 |\n|---|---|---|---|")
    for units, lost in ((1_200, 0.25), (500, 0.4), (200, 0.4)):
        found, _ = _alarms(left_by(lost), units, 1)
        print(f"| {units:,} units | {100 * lost:.0f} % of an arm | {found} |")


def _alarms(share: float, per_day: int, days: int) -> tuple[str, str]:
    """Of both checks, in percent; and the mean day of the e-process's, where most runs have one."""
    evidence = split(share, sample_ratio.ALARM, per_day, days, RUNS)
    pearson = split(share, 0.001, per_day, days, RUNS).by_chi_square
    day = f"{evidence.day:.0f}" if evidence.by_evidence > 0.5 else ""
    return f"{100 * evidence.by_evidence:.2f} % | {100 * pearson:.1f} %", day


def bandits() -> None:
    print(f"four arms: loses {100 * follow(RATES, runs=40).regret:.0f} % of what equal shares lose")
    ts = {f"t{i}": i / 7 for i in range(8)}
    rates = {name: 0.05 + 0.24 * t * (1 - t) for name, t in ts.items()}
    apart, curve = follow(rates, runs=40), follow(rates, doses=ts, runs=40)
    print(f"eight t's, arms apart: {100 * apart.regret:.0f} %; by a curve over t: {100 * curve.regret:.0f} %")
    found = follow(RATES, drift=lambda day: 0.006 * day, runs=40)
    for name in RATES:
        weighted, plain = found.weighted[name], found.plain[name]
        print(
            f"  arm {name}, traffic that gets better: by propensity off by {100 * weighted[0]:+.2f} points "
            f"(+- {100 * weighted[1]:.2f}), plain mean by {100 * plain[0]:+.2f} (+- {100 * plain[1]:.2f})"
        )


if __name__ == "__main__":
    for part in (peeking, planned, outside_the_contract, amended, splits, bandits):
        print(f"\n## {part.__name__.replace('_', ' ')}\n")
        part()
