"""The formulas of `book/notation.md`: conversions, loss weights, other papers' scales, guidance."""

import numpy as np
import pytest

from mnistlib.schedules import linear

ALPHA_BAR = np.array([0.999, 0.64, 0.3, 1e-4])[:, None]
ALPHA, SIGMA = np.sqrt(ALPHA_BAR), np.sqrt(1 - ALPHA_BAR)
X0, EPS = np.random.default_rng(0).standard_normal((2, 4, 100))
X_T = ALPHA * X0 + SIGMA * EPS
V = ALPHA * EPS - SIGMA * X0


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_any_prediction_gives_the_other_two():
    close((X_T - SIGMA * EPS) / ALPHA, X0)
    close((EPS - SIGMA * X_T) / ALPHA, V)
    close((X_T - ALPHA * X0) / SIGMA, EPS)
    close((ALPHA * X_T - X0) / SIGMA, V)
    close(SIGMA * X_T + ALPHA * V, EPS)
    close(ALPHA * X_T - SIGMA * V, X0)


def test_squared_errors_differ_by_a_weight():
    x0_hat = X0 + np.random.default_rng(1).standard_normal(X0.shape)
    eps_hat, v_hat = (X_T - ALPHA * x0_hat) / SIGMA, (ALPHA * X_T - x0_hat) / SIGMA
    snr, error = ALPHA_BAR / (1 - ALPHA_BAR), (x0_hat - X0) ** 2
    close((eps_hat - EPS) ** 2, snr * error)
    close((v_hat - V) ** 2, (snr + 1) * error)


def test_edm_and_flow_are_other_scales_of_the_same_image():
    sigma_edm = SIGMA / ALPHA
    close(X_T / ALPHA, X0 + sigma_edm * EPS)
    tau = ALPHA / (ALPHA + SIGMA)
    x = X_T / (ALPHA + SIGMA)
    close(x, tau * X0 + (1 - tau) * EPS)
    close(x + (1 - tau) * (X0 - EPS), X0)
    close(1 / sigma_edm**2, ALPHA_BAR / (1 - ALPHA_BAR))
    close(tau**2 / (1 - tau) ** 2, ALPHA_BAR / (1 - ALPHA_BAR))


def test_the_numbers_of_the_example():
    alpha, sigma = ALPHA[1, 0], SIGMA[1, 0]
    assert (alpha, sigma) == pytest.approx((0.8, 0.6), abs=1e-12)
    assert (alpha / sigma) ** 2 == pytest.approx(1.78, abs=0.005)
    assert sigma / alpha == pytest.approx(0.75, abs=1e-12)
    assert alpha / (alpha + sigma) == pytest.approx(0.571, abs=0.0005)


def test_three_ways_to_write_guidance():
    c, u, w = X0, EPS, 1.7
    close((1 + w) * c - w * u, u + (1 + w) * (c - u))
    close(c + w * (c - u), u + (1 + w) * (c - u))


def test_diffusers_counts_from_the_first_noisy_image():
    diffusers = pytest.importorskip("diffusers")
    schedule = linear()
    assert schedule.alpha_bar[0] == 1
    assert len(schedule.alpha_bar) == schedule.T + 1
    theirs = diffusers.DDIMScheduler(trained_betas=schedule.beta.numpy())
    np.testing.assert_allclose(theirs.alphas_cumprod, schedule.alpha_bar[1:], rtol=1e-4)
    assert theirs.final_alpha_cumprod == schedule.alpha_bar[0]
