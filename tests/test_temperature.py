from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from app.sweep.metrics_of_t import METRICS, ScoredTexts
from app.sweep.temperature_scaling import HIGHEST, LOWEST, fitted_beta, loss_terms, refitted


def texts(seed: int, n: int = 80, g: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(g, n, 3))
    labels = np.where(rng.uniform(size=n) < 0.6, logits[0].argmax(axis=1), rng.integers(0, 3, n))
    weights = rng.uniform(0.1, 1, n)
    return logits, labels, weights / weights.sum()


def loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, beta: float) -> float:
    return float(METRICS["loss"].of(ScoredTexts(beta * logits, labels), weights))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_fitted_temperature_is_that_of_a_general_minimiser(seed: int) -> None:
    logits, labels, weights = texts(seed)
    for z, beta in zip(logits, fitted_beta(logits, labels, weights), strict=True):
        found = minimize_scalar(
            lambda u, z=z: loss(z, labels, weights, np.exp(u)),
            bounds=np.log([1 / HIGHEST, 1 / LOWEST]),
            method="bounded",
        )
        assert loss(z, labels, weights, beta) <= found.fun + 1e-9


def test_the_terms_are_the_loss_and_its_derivatives() -> None:
    logits, labels, _ = texts(1)
    beta, step = np.array([0.7, 1.0, 1.6]), 1e-4
    value, slope, curve = loss_terms(logits, labels, beta)
    above, below = (loss_terms(logits, labels, beta + sign * step)[0] for sign in (1, -1))
    np.testing.assert_allclose(slope, (above - below) / (2 * step), atol=1e-6)
    np.testing.assert_allclose(curve, (above - 2 * value + below) / step**2, atol=1e-5)


def test_labels_that_the_logits_tell_apart_ask_for_the_lowest_temperature_and_noise_for_the_highest() -> None:
    z, weights = 0.5 * np.eye(3)[None], np.full(3, 1 / 3)
    assert fitted_beta(z, np.arange(3), weights)[0] == pytest.approx(1 / LOWEST, rel=1e-3)
    assert fitted_beta(z, np.array([1, 2, 0]), weights)[0] == pytest.approx(1 / HIGHEST, rel=1e-3)


def test_a_refit_for_other_weights_is_nearly_the_fit_from_scratch() -> None:
    logits, labels, weights = texts(2, n=300)
    beta = fitted_beta(logits, labels, weights)
    terms = np.stack(loss_terms(logits, labels, beta), axis=-1)
    counts = np.random.default_rng(3).multinomial(300, weights) / 300
    quick, moved = refitted(np.einsum("gnk,n->gk", terms, counts), beta)
    slow = fitted_beta(logits, labels, counts)
    exact = [loss(z, labels, counts, b) for z, b in zip(logits, slow, strict=True)]
    np.testing.assert_allclose(quick, exact, atol=2e-4)
    np.testing.assert_allclose(moved, slow, rtol=0.02)
