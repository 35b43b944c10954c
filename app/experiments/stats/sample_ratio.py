"""Sample-ratio mismatch: do the arms have the units that their shares promise? If not, nothing else is to be trusted.

Pearson's chi-square is shown, as everybody knows it; looked at daily it raises far more false alarms than it says. The
alarm is an e-process (Lindon and Malek, arXiv 2011.03567), whose running maximum is above 1 / alpha with a probability
of at most alpha, however often it is looked at. Each concentration of its prior finds losses of one size: 1,000 small
ones among many units, 10 large ones among few. The alarm takes the mean of three, which is an e-process as well.
Nothing needs to be kept between looks for the maximum: the process is a function of the counts so far, and these are
known for the end of every day, so it is walked again each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2

from app.experiments.events.aggregates import PhaseSums

ALARM = 0.01
"""The most false alarms in an experiment's life; so the alarm is raised at an evidence above 100."""
CONCENTRATIONS = (10.0, 100.0, 1_000.0)
"""Of the Dirichlet prior around the configured shares: how close to them the alternatives lie."""

Array = NDArray[np.float64]
Counts = Sequence[float] | Array


@dataclass(frozen=True)
class SampleRatioCheck:
    """What the counts of units say about the split."""

    chi_square_p: float
    """Valid for a single look."""
    p: float
    """1 / the largest evidence so far, at most 1; valid at every look."""

    @property
    def alarm(self) -> bool:
        return self.p < ALARM


def check(phases: Iterable[PhaseSums]) -> SampleRatioCheck | None:
    """Both checks over all phases; None before the first unit, or with a single arm."""
    statistic, degrees, highest = 0.0, 0, 0.0
    evidence = np.zeros(len(CONCENTRATIONS))
    for phase in phases:
        arms = [name for name, share in phase.shares.items() if share > 0]
        shares = [phase.shares[name] for name in arms]
        counts = [_units(phase, name) for name in arms]
        if len(arms) < 2 or not sum(counts):
            continue
        statistic += chi_square(counts, shares)
        degrees += len(arms) - 1
        # Units of different phases are assigned by different salts, so their evidence multiplies.
        walk = np.array([*_walk(phase, arms), counts], float)
        seen = evidence + by_concentration(walk, shares)
        highest = max(highest, float(log_mean(seen).max()))
        evidence = seen[-1]
    if not degrees:
        return None
    return SampleRatioCheck(float(chi2.sf(statistic, degrees)), math.exp(-highest))


def chi_square(counts: Counts, shares: Counts) -> float:
    """sum (n_i - N share_i)^2 / (N share_i), with one degree of freedom less than arms."""
    seen, expected = np.asarray(counts, float), np.sum(counts) * _parts(shares)
    return float(np.sum((seen - expected) ** 2 / expected))


def by_concentration(counts: Counts, shares: Counts) -> Array:
    """The log evidence for each of `CONCENTRATIONS`; counts are (..., arms), the result (..., 3)."""
    return np.stack([log_evidence(counts, shares, concentration) for concentration in CONCENTRATIONS], axis=-1)


def log_mean(evidence: Array) -> Array:
    """The log of the mean of evidence that is given by its logs, over the last axis."""
    return np.asarray(logsumexp(evidence, axis=-1) - math.log(evidence.shape[-1]))


def log_evidence(counts: Counts, shares: Counts, concentration: float) -> Array:
    """The log of the Bayes factor of a Dirichlet-multinomial against the configured shares; 0 without units.

    log G(k) - log G(k + N) + sum [log G(k s_i + n_i) - log G(k s_i) - n_i log s_i], G the gamma function. Counts are
    (..., arms), and the result is (...).
    """
    n, s = np.asarray(counts, float), _parts(shares)
    k = concentration
    by_arm = gammaln(k * s + n) - gammaln(k * s) - n * np.log(s)
    return np.asarray(gammaln(k) - gammaln(k + n.sum(axis=-1)) + by_arm.sum(axis=-1))


def _parts(shares: Counts) -> Array:
    parts: Array = np.asarray(shares, float)
    return parts / float(parts.sum())


def _units(phase: PhaseSums, arm: str) -> int:
    return phase.arms[arm].units if arm in phase.arms else 0


def _walk(phase: PhaseSums, arms: Sequence[str]) -> Iterable[list[float]]:
    """Units of each arm up to the end of each day."""
    so_far = dict.fromkeys(arms, 0)
    for date in sorted(phase.days):
        _add(so_far, {name: day.units for name, day in phase.days[date].items()})
        yield [so_far[name] for name in arms]


def _add(so_far: dict[str, int], more: Mapping[str, int]) -> None:
    for name in so_far:
        so_far[name] += more.get(name, 0)
