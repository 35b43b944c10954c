"""A t and a temperature for each segment, with partial pooling: a segment of few texts leans on the others.

Segments' t's are taken to scatter around a common one, t_k ~ N(mu, s^2), and so are the logs of their temperatures.
How far they scatter is estimated from all segments together (empirical Bayes, the marginal likelihood at its maximum,
under a weak half-normal prior that keeps the scatter finite where there are few segments). What a segment's texts say
is the likelihood of their labels itself, exp(-n loss(t, T)) on a grid of t and T, with n the independent groups among
them, so nothing is taken for a parabola. Each segment gets its posterior mean.

Intervals do not take the common t and the scatter for known: where segments say little, the likeliest scatter is none,
and all of them would be held for sure to lie at one point. They are of the posterior over all values of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import logsumexp, softmax

from app.sweep.choose_t import LEVEL

WIDEST_T, WIDEST_LOG_T = 0.5, 0.5
"""Scales of the priors of the two scatters."""
NARROWEST = 0.01
MEANS = np.linspace(0, 1, 21)
SCATTERS = np.geomspace(NARROWEST, 1.0, 10)
"""The common t's and scatters that intervals are averaged over."""
TEMPERATURES = np.exp(np.linspace(-1.2, 1.2, 33))
"""The temperatures looked at, as multiples of the one that fits all texts; steps of 7.5 % cost 0.1 % of the loss."""
ROUNDS = 400


@dataclass(frozen=True)
class PartialPooling:
    """For K segments: posterior means of t and T (K,), and the interval of t (K, 2). `scatter` is s of the t's.

    `evidence` (K,) is the log of how likely each segment's labels are along this line, whatever its t and T are.
    """

    t: NDArray[np.float64]
    temperature: NDArray[np.float64]
    interval: NDArray[np.float64]
    scatter: float
    evidence: NDArray[np.float64]


def loss_sums(
    logits: NDArray[np.float64], labels: NDArray[np.int64], temperatures: NDArray[np.float64], members: csr_array
) -> NDArray[np.float64]:
    """Sums (K, G, H) of the log loss at G t's and H temperatures; logits (G, N, C), members (N, K) weigh the texts."""
    made = np.empty((members.shape[1], len(logits), len(temperatures)))
    columns = members.T.tocsr()
    for g, at_t in enumerate(logits):
        below = at_t - at_t.max(axis=1, keepdims=True)
        chosen = below[np.arange(len(labels)), labels]
        for h, temperature in enumerate(temperatures):
            losses = np.log(np.exp(below / temperature).sum(axis=1)) - chosen / temperature
            made[:, g, h] = columns @ losses
    return made


def pooled_settings(
    losses: NDArray[np.float64], sizes: NDArray[np.float64], ts: NDArray[np.float64], temperatures: NDArray[np.float64]
) -> PartialPooling:
    """From mean losses (K, G, H) of segments with so many independent texts (K,); a segment of size 0 says nothing."""
    likelihood = -losses * sizes[:, None, None]
    log_t = np.log(temperatures)

    def posterior(guess: NDArray[np.float64]) -> NDArray[np.float64]:
        """log of likelihood times prior, (K, G, H)."""
        mu, scatter, nu, log_t_scatter = guess[0], np.exp(guess[1]), guess[2], np.exp(guess[3])
        return likelihood + _normal(ts, mu, scatter)[:, None] + _normal(log_t, nu, log_t_scatter)

    def misfit(guess: NDArray[np.float64]) -> float:
        scatters = np.exp(guess[[1, 3]])
        if (scatters < NARROWEST).any() or (scatters > 5).any():
            return np.inf
        prior = -((scatters / [WIDEST_T, WIDEST_LOG_T]) ** 2).sum() / 2
        return -float(logsumexp(posterior(guess), axis=(1, 2)).sum() + prior)

    best = np.array([np.unravel_index(loss.argmin(), loss.shape) for loss in losses])
    start = np.array([ts[best[:, 0]].mean(), np.log(0.2), log_t[best[:, 1]].mean(), np.log(0.2)])
    found = minimize(misfit, start, method="Nelder-Mead", options={"maxiter": ROUNDS, "xatol": 1e-3, "fatol": 1e-3}).x
    joint = posterior(found)
    evidence = logsumexp(joint, axis=(1, 2))
    share = np.exp(joint - evidence[:, None, None])  # (K, G, H)
    t = share.sum(axis=2) @ ts
    along = logsumexp(likelihood + _normal(log_t, found[2], float(np.exp(found[3]))), axis=2)
    return PartialPooling(
        t=t,
        temperature=np.exp(share.sum(axis=1) @ log_t),
        interval=_intervals(along, ts, t),
        scatter=float(np.exp(found[1])),
        evidence=np.asarray(evidence),
    )


def _intervals(along: NDArray[np.float64], ts: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where t of each segment lies, (K, 2), from the log likelihoods (K, G) of its labels; `t` (K,) are inside."""
    weights, shares = [], []
    for mean in MEANS:
        for scatter in SCATTERS:
            joint = along + _normal(ts, mean, scatter)
            evidence = logsumexp(joint, axis=1)
            # The scatter's prior is over it and not its log, and the steps of the grid are even in the log.
            weights.append(evidence.sum() - (scatter / WIDEST_T) ** 2 / 2 + np.log(scatter))
            shares.append(np.exp(joint - evidence[:, None]))
    reached = np.tensordot(softmax(weights), np.array(shares), axes=1).cumsum(axis=1)
    low, high = (ts[(reached >= edge - 1e-12).argmax(axis=1)] for edge in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    served = np.round(t, 2)
    return np.stack([np.minimum(low, served), np.maximum(high, served)], axis=1)


def _normal(grid: NDArray[np.float64], mean: float, scatter: float) -> NDArray[np.float64]:
    """log of a normal density on a grid, which it is cut to."""
    density = -(((grid - mean) / scatter) ** 2) / 2
    return np.asarray(density - logsumexp(density))
