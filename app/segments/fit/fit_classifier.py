"""Fits the router: multinomial logistic regression on hashed words, which needs texts of each segment and no labels.

    minimise over W, b:  mean of w_i (-log p(segment_i | x_i)) + penalty / 2 |W|^2        (L-BFGS; convex)

Segments weigh as given, so b says how common each one is in the traffic that is expected. The penalty is the one of
least loss on a held-out fifth of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import log_softmax, softmax

from app.segments.segment_classifier import BUCKETS, SegmentClassifier, buckets_of

PENALTIES = (1e-5, 1e-4, 1e-3)
HELD_OUT = 5
ROUNDS = 200


def hashed(texts: Sequence[str]) -> csr_array:
    """Features (N, BUCKETS): 1 / sqrt(words) at the place of each different word."""
    rows = [buckets_of(text) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    columns = np.array([bucket for row in rows for bucket in row], dtype=np.int64)
    return csr_array((values, columns, np.concatenate([[0], lengths.cumsum()])), shape=(len(texts), BUCKETS))


def fitted_penalty(
    features: csr_array, segments: NDArray[np.int64], weights: NDArray[np.float64], names: int, seed: int = 0
) -> float:
    """The penalty of least held-out loss; `segments` (N,) are numbers below `names`."""
    held = np.random.default_rng(seed).permutation(len(segments)) % HELD_OUT == 0
    losses = []
    for penalty in PENALTIES:
        w, b = fit(features[~held], segments[~held], weights[~held], names, penalty)
        log_p = log_softmax(features[held] @ w + b, axis=1)[np.arange(held.sum()), segments[held]]
        losses.append(-float(log_p @ weights[held]))
    return PENALTIES[int(np.argmin(losses))]


def fit(
    features: csr_array, segments: NDArray[np.int64], weights: NDArray[np.float64], names: int, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """W (BUCKETS, K) and b (K,). Places that no text uses keep weights of 0, as the penalty has it."""
    weights = weights / weights.sum()
    truth = np.eye(names)[segments]
    used = np.unique(features.indices)
    features = csr_array(features[:, used])
    across = features.T.tocsr()

    def parts(parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return parameters[:-names].reshape(len(used), names), parameters[-names:]

    def misfit(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, b = parts(parameters)
        scores = features @ w + b
        loss = -float((log_softmax(scores, axis=1) * truth).sum(axis=1) @ weights)
        slope = (softmax(scores, axis=1) - truth) * weights[:, None]
        gradient = np.concatenate([(across @ slope + penalty * w).ravel(), slope.sum(axis=0)])
        return loss + penalty / 2 * float((w**2).sum()), gradient

    start = np.zeros((len(used) + 1) * names)
    limits = {"maxiter": ROUNDS, "maxcor": 5, "ftol": 1e-7}
    w, b = parts(minimize(misfit, start, jac=True, method="L-BFGS-B", options=limits).x)
    whole = np.zeros((BUCKETS, names))
    whole[used] = w
    return whole, b


def router_of(names: Sequence[str], w: NDArray[np.float64], b: NDArray[np.float64]) -> SegmentClassifier:
    """As it is served."""
    return SegmentClassifier(tuple(names), torch.tensor(w, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
