"""Noise schedules: the marginal, the rates, the published formulas, the refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from oracle import any_schedule, of_betas

from mnistlib.schedules import (
    SCHEDULES,
    NoiseSchedule,
    cosine,
    linear,
    make_schedule,
    scaled_linear,
    uniform_times,
)
from mnistlib.types import InputError


def vector(*values):
    """Return a float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def everywhere(schedule):
    """Return the rates of all times 0..T as two NumPy vectors."""
    t = torch.arange(schedule.T + 1)
    return [rate.numpy() for rate in schedule.rates(t, torch.empty(1, dtype=torch.float64))]


# ---- what holds for every schedule ---------------------------------------------------------


@given(any_schedule())
def test_marginal_equals_the_chain(schedule):
    """One jump of `rates` does what t steps x <- sqrt(1 - beta) x + sqrt(beta) eps do."""
    alpha, sigma = everywhere(schedule)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.beta.tolist(), start=1):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert alpha[t] == pytest.approx(mean, rel=1e-11)
        assert sigma[t] ** 2 == pytest.approx(variance, rel=1e-11)
    assert (alpha[0], sigma[0]) == (1, 0)


@given(any_schedule())
def test_rates_preserve_variance(schedule):
    alpha, sigma = everywhere(schedule)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=0, atol=1e-15)
    assert (np.diff(alpha) < 0).all()
    assert (np.diff(sigma) >= 0).all()


@given(any_schedule())
def test_snr_falls(schedule):
    alpha, sigma = everywhere(schedule)
    snr = schedule.snr.numpy()
    assert snr[0] == np.inf
    assert (snr[1:] < snr[:-1]).all()
    np.testing.assert_allclose(snr[1:], (alpha[1:] / sigma[1:]) ** 2, rtol=1e-9)


@given(st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=30))
def test_beta_is_what_each_step_destroys(betas):
    schedule = of_betas(betas)
    assert len(betas) == schedule.T
    np.testing.assert_allclose(schedule.beta, betas, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rates_are_cast_last_and_broadcast(dtype):
    """Float32 rates are the float64 ones, rounded once; each has one number an image."""
    schedule, t = cosine(), torch.tensor([0, 1, 400, 1000])
    for shape in [(4,), (4, 3), (4, 1, 8, 8)]:
        alpha, sigma = schedule.rates(t, torch.empty(shape, dtype=dtype))
        assert alpha.shape == sigma.shape == (4, *[1] * (len(shape) - 1))
        assert torch.equal(alpha.flatten(), schedule.alpha_bar[t].sqrt().to(dtype))
        assert torch.equal(sigma.flatten(), (1 - schedule.alpha_bar[t]).sqrt().to(dtype))


# ---- the three of the library --------------------------------------------------------------


def assert_matches(schedule, kind, betas, **options):
    """Hold a schedule against the formula of its paper (1e-12) and against diffusers (float32)."""
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-12)
    theirs = DDPMScheduler(schedule.T, beta_schedule=kind, **options)
    np.testing.assert_allclose(schedule.beta, theirs.betas, rtol=2e-4, atol=2e-7)
    np.testing.assert_allclose(schedule.alpha_bar[1:], theirs.alphas_cumprod, rtol=1e-4)


@pytest.mark.parametrize("T", [10, 1000])
def test_linear_matches_diffusers(T):
    betas = 1e-4 + (0.02 - 1e-4) * np.arange(T) / (T - 1)
    assert_matches(linear(T), "linear", betas, beta_start=1e-4, beta_end=0.02)


@pytest.mark.parametrize("T", [10, 1000])
def test_scaled_linear_matches_diffusers(T):
    low, high = np.sqrt(0.00085), np.sqrt(0.012)
    betas = (low + (high - low) * np.arange(T) / (T - 1)) ** 2
    assert_matches(scaled_linear(T), "scaled_linear", betas, beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize("T", [10, 1000])
def test_cosine_matches_diffusers(T):
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    assert_matches(cosine(T), "squaredcos_cap_v2", betas)


@pytest.mark.parametrize("name", SCHEDULES)
def test_make_schedule_knows_every_name(name):
    assert make_schedule(name, 12).T == 12
    assert torch.equal(make_schedule(name).alpha_bar, SCHEDULES[name]().alpha_bar)


# ---- times ---------------------------------------------------------------------------------


@given(st.integers(1, 3000).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T))))
def test_uniform_times_are_even(case):
    T, steps = case
    times = uniform_times(T, steps)
    assert (len(times), times[0], times[-1]) == (steps + 1, T, 0)
    assert all(abs(t - T * (steps - i) / steps) <= 0.5 for i, t in enumerate(times))
    assert all(t > s for t, s in pairwise(times))


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha_bar",
    [
        torch.tensor([1.0, 0.5]),  # float32
        vector(1.0),
        vector(1.0, 0.5)[None],
        vector(0.99, 0.5),
        vector(1.0, 0.5, 0.5),
        vector(1.0, 0.5, 0.6),
        vector(1.0, 0.5, 0.0),
        vector(1.0, 0.5, -0.1),
        vector(1.0, math.nan, 0.1),
        vector(1.0, 0.5, math.nan),
    ],
)
def test_bad_alpha_bar_is_refused(alpha_bar):
    with pytest.raises(InputError, match="alpha_bar must"):
        NoiseSchedule(alpha_bar)


@pytest.mark.parametrize("t", [[-1], [11], [3, 11, 4], [-5, 20]])
def test_times_outside_the_schedule_are_refused(t):
    with pytest.raises(InputError, match=r"times must lie in 0\.\.10"):
        linear(10).rates(torch.tensor(t), torch.empty(len(t)))


def test_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="'sigmoid'; choose one of linear, scaled_linear, cosine"):
        make_schedule("sigmoid")


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(InputError, match="steps must be between 1 and 10"):
        uniform_times(10, steps)
