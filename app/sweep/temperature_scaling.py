"""The temperature that fits logits best, and what the loss does around it (Guo et al., arXiv 1706.04599).

Raw log loss takes a model that is less sure of itself for a better one, so t and T are judged together: the score of a
t is its loss at the T that suits it. T enters as beta = 1 / T, in which the loss is convex:

    l = log sum exp(beta z) - beta z_y      l' = E_p[z] - z_y      l'' = Var_p[z]  with p = softmax(beta z)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from app.weights.recipe import COOLEST, HOTTEST

LOWEST, HIGHEST = float(COOLEST), float(HOTTEST)
"""The temperatures looked at, which are those that a recipe may name. Labels that the logits tell apart without an
error would ask for T = 0."""

STEPS = 60


def loss_terms(
    logits: NDArray[np.float64], labels: NDArray[np.int64], beta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """l, l' and l'' of every text, (..., N), from logits (..., N, C), labels (N,) and beta (...)."""
    scaled = logits * beta[..., None, None]
    chosen = logits[..., np.arange(len(labels)), labels]
    total = logsumexp(scaled, axis=-1)
    p = np.exp(scaled - total[..., None])
    mean = (p * logits).sum(axis=-1)
    variance = (p * (logits - mean[..., None]) ** 2).sum(axis=-1)
    return total - beta[..., None] * chosen, mean - chosen, variance


def fitted_beta(
    logits: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """beta (...) of least weighted loss for logits (..., N, C); weights (N,) add up to 1.

    Newton's steps on l' = 0, halved into the bracket that the sign of l' leaves where they would go outside.
    """
    low = np.full(logits.shape[:-2], 1 / HIGHEST)
    high = np.full(logits.shape[:-2], 1 / LOWEST)
    beta = np.ones(logits.shape[:-2])
    for _ in range(STEPS):
        _, slope, curve = loss_terms(logits, labels, beta)
        g, h = slope @ weights, curve @ weights
        low, high = np.where(g < 0, beta, low), np.where(g >= 0, beta, high)
        step = beta - g / np.maximum(h, 1e-12)
        new = np.where((step > low) & (step < high), step, np.sqrt(low * high))
        settled = np.abs(new - beta) <= 1e-9 * beta
        beta = new
        if settled.all():
            break
    return beta


def refitted(sums: NDArray[np.float64], beta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least loss and its beta for other weights, from their means of l, l', l'' at `beta`, (..., G, 3).

    One Newton step from the beta (G,) that fits all texts: between resamples of the same texts it moves so little that
    the loss is a parabola there.
    """
    loss, slope, curve = sums[..., 0], sums[..., 1], sums[..., 2]
    move = np.clip(-slope / np.maximum(curve, 1e-12), 1 / HIGHEST - beta, 1 / LOWEST - beta)
    return loss + slope * move + curve * move**2 / 2, beta + move
