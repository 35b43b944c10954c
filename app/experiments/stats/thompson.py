"""Shares that follow what works: batched Thompson sampling (Thompson 1933; batches: arXiv 2110.00158).

Once a period, shares out of what is known: the probability that each arm is the best one, with a floor for all. Known
is only what units did whose window has closed, so that no arm is taken for a bad one because its units are young.
Over arms, each arm has its own effect; over a dose, a Bayesian quadratic of t speaks for all arms at once. Effects are
estimated within phases (`regression.py`): shares and traffic both change over time, and an arm must not win because it
had more of a good week. Units stay with the arm they met first; that is the business of whoever assigns them.

No p-values here: choosing shares by outcomes biases plain means (arXiv 1708.01977). The estimates weigh each unit by
1 / the probability with which it got its arm, which takes that out.

Arms whose guardrail has failed are left out: they get no new units, whatever else they do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from app.experiments.events.aggregates import Moments, PhaseSums
from app.experiments.experiment import Experiment, Metric
from app.experiments.stats.estimators import NOISE, Estimate, share_variance, with_least_error
from app.experiments.stats.regression import RegressionCell, arm_rows, dose_rows, fit

FLOOR = 0.01
WARM_UP = 100
"""Units of each arm whose window has closed, before shares follow outcomes."""

DRAWS = 10_000


@dataclass(frozen=True)
class Standing:
    """What is known of an arm."""

    probability_best: float
    expected_loss: float
    """How much the best arm is expected to be better, in the metric's unit."""


def standings(
    experiment: Experiment,
    phases: Sequence[PhaseSums],
    now: float,
    doses: Mapping[str, float] | None = None,
    seed: int = 0,
    left_out: Collection[str] = (),
) -> dict[str, Standing] | None:
    """By arm that is not left out; None during warm-up, or if there is no metric. `doses` by arm makes t a dose."""
    metric = decisive(experiment)
    if metric is None:
        return None
    arms = [arm.name for arm in experiment.shown if arm.name not in left_out]
    if len(arms) == 1:
        return {arms[0]: Standing(1.0, 0.0)}
    cells = mature_cells(experiment, phases, metric, now)
    units = {name: sum(cell.units for cell in cells if cell.arm == name) for name in arms}
    if min(units.values()) < WARM_UP:
        return None
    effects = _draws(cells, arms, doses, np.random.default_rng(seed))
    if effects is None:
        return None
    if metric.better == "lower":
        effects = -effects
    highest = effects.max(axis=1)
    best = np.bincount(effects.argmax(axis=1), minlength=len(arms)) / len(effects)
    loss = (highest[:, None] - effects).mean(axis=0)
    return {name: Standing(float(best[i]), float(loss[i])) for i, name in enumerate(arms)}


def next_shares(
    experiment: Experiment,
    phases: Sequence[PhaseSums],
    now: float,
    doses: Mapping[str, float] | None = None,
    seed: int = 0,
    left_out: Collection[str] = (),
) -> dict[str, float]:
    """Shares for the next period, by arm: floor + (1 - arms x floor) x probability best; as they are during warm-up. An
    arm that is left out has 0."""
    known = standings(experiment, phases, now, doses, seed, left_out)
    if known is None:
        return shares_without(experiment, left_out)
    floor = min(FLOOR, 1 / len(known))
    shares = {name: floor + (1 - len(known) * floor) * standing.probability_best for name, standing in known.items()}
    return {arm.name: shares.get(arm.name, 0.0) for arm in experiment.shown}


def shares_without(experiment: Experiment, left_out: Collection[str]) -> dict[str, float]:
    """Shares as they are, what arms had that are left out going to the others in proportion."""
    shares = {arm.name: arm.share for arm in experiment.shown}
    if not left_out:
        return shares
    others = {name: share for name, share in shares.items() if name not in left_out}
    whole = sum(others.values())
    found = {name: share / whole if whole else 1 / len(others) for name, share in others.items()}
    return {name: found.get(name, 0.0) for name in shares}


def decisive(experiment: Experiment) -> Metric | None:
    """The primary metric, else the first that is no guardrail."""
    primary = [metric for metric in experiment.metrics if metric.role == "primary"]
    return next(iter(primary + [metric for metric in experiment.metrics if metric.role == "secondary"]), None)


def mature_cells(
    experiment: Experiment, phases: Sequence[PhaseSums], metric: Metric, now: float
) -> list[RegressionCell]:
    """What units did whose window has closed: those first exposed on days that ended a window ago, by phase and arm."""
    cells = []
    for phase in phases:
        for arm in experiment.shown:
            days = [
                arms[arm.name]
                for day, arms in phase.days.items()
                if _closed(day, now, experiment.window, arm.name, arms)
            ]
            units = sum(day.units for day in days)
            if units:
                total = sum(day.y.get(metric.name, 0.0) for day in days)
                squares = sum(day.yy.get(metric.name, 0.0) for day in days)
                variance = (
                    share_variance(total, units)
                    if metric.kind == "binary"
                    else max(0.0, squares / units - (total / units) ** 2)
                )
                cells.append(RegressionCell(phase.phase, arm.name, units, total / units, variance))
    return _with_pooled_variance(cells)


def _closed(day: str, now: float, window: float, arm: str, arms: Mapping[str, object]) -> bool:
    end = datetime.combine(date.fromisoformat(day) + timedelta(days=1), datetime.min.time(), UTC).timestamp()
    return arm in arms and end + window <= now


def _with_pooled_variance(cells: Sequence[RegressionCell]) -> list[RegressionCell]:
    """One variance for all: of its own, an arm without a single success would have none, and seem perfectly known.
    Where nothing varies within cells, it is that of all units together."""
    units = sum(cell.units for cell in cells)
    if not units:
        return []
    pooled = sum(cell.units * cell.variance for cell in cells) / units
    centre = sum(cell.units * cell.mean for cell in cells) / units
    if pooled <= NOISE * centre**2:
        pooled = sum(cell.units * (cell.mean - centre) ** 2 for cell in cells) / units
    return [RegressionCell(cell.phase, cell.arm, cell.units, cell.mean, pooled) for cell in cells]


def _draws(
    cells: Sequence[RegressionCell], arms: Sequence[str], doses: Mapping[str, float] | None, random: np.random.Generator
) -> NDArray[np.float64] | None:
    """Draws of each arm's effect, up to a level that all share; (DRAWS, arms)."""
    rows = dose_rows(doses) if doses else arm_rows(arms)  # a curve learns from arms that are left out, too
    found = fit([cell for cell in cells if cell.arm in rows], rows)
    if found is None or not np.any(found.covariance):
        return None
    effects: NDArray[np.float64] = found.draws(DRAWS, random) @ np.array([rows[name] for name in arms]).T
    return effects


def weighted_mean(phases: Sequence[tuple[Moments, int]], binary: bool = False) -> Estimate | None:
    """The mean of y that an arm would have on everybody: sum w y / sum w, w = 1 / propensity (Hajek 1971).

    Given by phase; within one, all units of an arm have the same propensity. Its variance is
    sum w^2 (y - mean)^2 / (sum w)^2. None without a unit.
    """
    phases = [(moments, units) for moments, units in phases if units and moments.weight > 0]
    whole = sum(moments.weight for moments, _ in phases)
    if not whole:
        return None
    value = sum(moments.weighted_y for moments, _ in phases) / whole
    squared = sum(
        moments.weight / units * (moments.weighted_yy - 2 * value * moments.weighted_y + value**2 * moments.weight)
        for moments, units in phases
    )
    units = sum(units for _, units in phases)
    estimate = Estimate(value, max(0.0, squared) / whole**2, units, math.inf)
    return with_least_error(estimate, sum(moments.y for moments, _ in phases), units) if binary else estimate
