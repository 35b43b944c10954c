"""Experiments that never happened, by the thousand: for the tests of `app/experiments/`, and for the bench to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from app.experiments.events.aggregates import PhaseSums
from app.experiments.experiment import DAY, Experiment
from app.experiments.record import Record
from app.experiments.stats import sample_ratio, thompson
from app.experiments.stats.report_builder import judge
from tests.units import FIRST, binary_phase, phase, seconds_after, successes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Peeking:
    """Shares of runs in which a daily look found a difference, and in which every look's interval held the truth."""

    found: float
    covered: float
    day: float
    """On average, of the first look that found one."""


def peek(
    critical: Sequence[float], per_day: int, rate: float = 0.1, lift: float = 0.0, runs: int = 2_000, seed: int = 1
) -> Peeking:
    """Two arms of a binary metric, looked at after each day's units, with so many standard errors at each look."""
    random, days = np.random.default_rng(seed), len(critical)
    control = random.binomial(per_day, rate, (runs, days)).cumsum(axis=1)
    arm = random.binomial(per_day, rate + lift, (runs, days)).cumsum(axis=1)
    units = per_day * np.arange(1, days + 1)
    p, q = control / units, arm / units
    error = np.sqrt((p * (1 - p) + q * (1 - q)) / units)
    reach = np.asarray(critical) * error
    outside = np.abs(q - p) > reach
    first = np.where(outside.any(axis=1), outside.argmax(axis=1) + 1, days)
    covered = (np.abs(q - p - lift) <= reach).all(axis=1)
    return Peeking(float(outside.any(axis=1).mean()), float(covered.mean()), float(first.mean()))


def moved_plan(amend: bool, runs: int = 100, days: int = 10, per_day: int = 400, seed: int = 4) -> float:
    """The share of runs in which a report finds a difference of two equal arms, where the planned end is moved to
    "now" before each daily look. With `amend` as a service does it; without, as if nothing knew of the changes."""
    random, found = np.random.default_rng(seed), 0
    for _ in range(runs):
        counts = random.binomial(per_day, 0.1, (2, days)).cumsum(axis=1)
        record = Record(name="tone").defined(_two_arms(100 * days * per_day), None).at("running", None)
        latched: dict[str, str] = {}
        verdicts = set()
        for day in range(1, days + 1):
            record = record.defined(_two_arms(2 * per_day * day), None)
            sums = binary_phase(
                {name: (int(counts[i][day - 1]), per_day * day) for i, name in enumerate("ab")},
                {"a": 0.5, "b": 0.5},
                days=day,
            )
            amendments = record.amendments if amend else ()
            made, fresh = judge(record.experiment, [sums], seconds_after(day), amendments=amendments, latched=latched)
            latched |= fresh if amend else {}
            verdicts |= {one.verdict for one in made.metrics[0].comparisons}
        found += bool(verdicts & {"better", "worse"})
    return found / runs


def swapped_metric(amend: bool, runs: int = 100, days: int = 10, per_day: int = 400, seed: int = 5) -> float:
    """The share of runs in which a report finds a difference of two equal arms in its primary metric, which before each
    daily look becomes that of five that differs most. With `amend` as a service does it."""
    random, found, planned = np.random.default_rng(seed), 0, 2 * days * per_day
    names = [f"m{i}" for i in range(5)]
    for _ in range(runs):
        counts = random.binomial(per_day, 0.1, (2, 5, days)).cumsum(axis=2)
        record = Record(name="tone").defined(_two_arms(planned, names, "m0"), None).at("running", None)
        latched: dict[str, str] = {}
        is_found = False
        for day in range(1, days + 1):
            now = counts[:, :, day - 1]
            primary = names[int(np.abs(now[1] - now[0]).argmax())]
            record = record.defined(_two_arms(planned, names, primary), None)
            units = {"a": per_day * day, "b": per_day * day}
            arms = {
                a: {m: successes(int(now[i][k]), units[a]) for k, m in enumerate(names)} for i, a in enumerate("ab")
            }
            amendments = record.amendments if amend else ()
            sums = phase(arms, units, {"a": 0.5, "b": 0.5}, days=day)
            made, fresh = judge(record.experiment, [sums], seconds_after(day), amendments=amendments, latched=latched)
            latched |= fresh if amend else {}
            is_found |= made.metrics[names.index(primary)].comparisons[0].verdict in ("better", "worse")
        found += is_found
    return found / runs


def _two_arms(planned: int, metrics: Sequence[str] = ("bought",), primary: str = "bought") -> Experiment:
    arms = [{"name": name, "recipe": "base", "share": 0.5} for name in "ab"]
    measured = [{"name": name, "role": "primary" if name == primary else "secondary"} for name in metrics]
    return Experiment.model_validate({"arms": arms, "control": "a", "metrics": measured, "planned_units": planned})


@dataclass(frozen=True)
class Splits:
    """Shares of runs in which an alarm was raised on some day, and the mean day of the first alarm."""

    by_evidence: float
    by_chi_square: float
    day: float


def split(share: float, alarm: float, per_day: int = 1_000, days: int = 60, runs: int = 2_000, seed: int = 2) -> Splits:
    """Two arms configured 50/50, of which the second really gets `share`, looked at daily. `alarm` is the p of both
    checks below which they raise one."""
    second = np.random.default_rng(seed).binomial(per_day, share, (runs, days)).cumsum(axis=1)
    units = per_day * np.arange(1, days + 1)
    counts = np.stack([units - second, second], axis=-1)
    evidence = sample_ratio.log_mean(sample_ratio.by_concentration(counts, [0.5, 0.5])) > -np.log(alarm)
    pearson = chi2.sf(((counts - units[:, None] / 2) ** 2 / (units[:, None] / 2)).sum(axis=-1), 1) < alarm
    first = np.where(evidence.any(axis=1), evidence.argmax(axis=1) + 1, days)
    return Splits(float(evidence.any(axis=1).mean()), float(pearson.any(axis=1).mean()), float(first.mean()))


def left_by(lost: float) -> float:
    """The share that an arm has of the units that are seen, where it was to have half and this part of its own is
    lost."""
    return (1 - lost) / (2 - lost)


@dataclass(frozen=True)
class Followed:
    """What became of bandits: means over runs."""

    regret: float
    """Outcomes lost against the best arm, as part of what equal shares lose."""
    weighted: dict[str, tuple[float, float]]
    """By arm: the mean error of the estimate by inverse propensity, and the standard error of that mean."""
    plain: dict[str, tuple[float, float]]
    """The same of the plain mean over all units."""


def follow(
    rates: dict[str, float],
    drift: Callable[[int], float] = lambda day: 0.0,
    doses: dict[str, float] | None = None,
    runs: int = 60,
    days: int = 30,
    per_day: int = 800,
    seed: int = 3,
) -> Followed:
    """A bandit over a binary metric with a window of a day: shares are set anew each day from what is known by then.
    `drift` is added to every arm's rate on a day."""
    random = np.random.default_rng(seed)
    names = list(rates)
    arms = [{"name": name, "recipe": "base", "share": 1 / len(names)} for name in names]
    metric = {"name": "bought", "role": "primary"}
    tested = Experiment.model_validate(
        {"arms": arms, "control": names[0], "metrics": [metric], "mode": "bandit", "window": DAY}
    )
    truth = {name: rates[name] + np.mean([drift(day) for day in range(days)]) for name in names}
    lost, weighted, plain = [], [], []
    for run in range(runs):
        phases: list[PhaseSums] = []
        shares = {arm.name: arm.share for arm in tested.arms}
        for day in range(days):
            if day:
                shares = thompson.next_shares(tested, phases, seconds_after(day), doses, seed=1_000 * run + day)
            phases.append(_one_day(random, {n: r + drift(day) for n, r in rates.items()}, shares, per_day, day))
        units = {name: sum(phase.arms[name].units for phase in phases) for name in names}
        best = max(rates.values())
        lost.append(sum(units[name] * (best - rates[name]) for name in names))
        weighted.append([_weighted(phases, name) - truth[name] for name in names])
        plain.append([sum(phase.arms[name].metrics["bought"].y for phase in phases) / units[name] for name in names])
    equal = per_day * days * np.mean([max(rates.values()) - rate for rate in rates.values()])
    errors = np.array(plain) - np.array([truth[name] for name in names])
    return Followed(float(np.mean(lost) / equal), _errors(names, np.array(weighted)), _errors(names, errors))


def _one_day(
    random: np.random.Generator, rates: dict[str, float], shares: dict[str, float], per_day: int, day: int
) -> PhaseSums:
    units = dict(zip(shares, random.multinomial(per_day, list(shares.values())).tolist(), strict=True))
    counts = {name: (int(random.binomial(units[name], rates[name])), units[name]) for name in shares}
    phase = binary_phase(counts, shares, number=day, first=FIRST + timedelta(days=day))
    for name, sums in phase.arms.items():
        moments = sums.metrics["bought"]
        moments.weight = sums.units / shares[name]
        moments.weighted_y = moments.weighted_yy = moments.y / shares[name]
    return phase


def _weighted(phases: Sequence[PhaseSums], name: str) -> float:
    found = thompson.weighted_mean([(phase.arms[name].metrics["bought"], phase.arms[name].units) for phase in phases])
    assert found is not None
    return found.value


def _errors(names: Sequence[str], errors: Floats) -> dict[str, tuple[float, float]]:
    spread = errors.std(axis=0, ddof=1) / np.sqrt(len(errors))
    return {name: (float(errors[:, i].mean()), float(spread[i])) for i, name in enumerate(names)}
