"""Noise schedules: the marginal, the rates, the published formulas, the refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from oracle import any_schedule, of_betas

from mnistlib.schedules import (
    GRIDS,
    SCHEDULES,
    NoiseSchedule,
    cosine,
    leading_times,
    linear,
    log_snr_times,
    make_schedule,
    make_times,
    quadratic_times,
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
    np.testing.assert_allclose(schedule.log_snr.exp(), snr, rtol=1e-9)


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


@given(any_schedule(), st.integers(1, 200))
def test_every_grid_decreases_to_zero(schedule, steps):
    """Exactly steps + 1 times, whatever roundings fall together; or a refusal that says the most.

    The grid in log-SNR may begin later than T, and then holds fewer steps.
    """
    most = dict.fromkeys(GRIDS, schedule.T) | {"log_snr": log_snr_times(schedule, 1)[0]}
    for name in GRIDS:
        if steps > most[name]:
            with pytest.raises(InputError, match=f"between 1 and {most[name]}, got {steps}"):
                make_times(name, schedule, steps)
            continue
        times = make_times(name, schedule, steps)
        assert (len(times), times[-1]) == (steps + 1, 0)
        assert times[0] <= schedule.T
        assert all(t > s for t, s in pairwise(times))


@pytest.mark.parametrize(("name", "spacing"), [("uniform", "trailing"), ("leading", "leading")])
@pytest.mark.parametrize(("T", "steps"), [(1000, 10), (1000, 7), (1000, 30), (60, 60), (50, 1)])
def test_even_grids_match_diffusers(name, spacing, T, steps):
    scheduler = DDIMScheduler(T, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    theirs = [int(t) + 1 for t in scheduler.timesteps]  # their index 0 is our time 1
    assert make_times(name, linear(T), steps) == [*theirs, 0]


def test_leading_grid_begins_a_step_late():
    assert leading_times(1000, 4) == [751, 501, 251, 1, 0]
    assert uniform_times(1000, 4) == [1000, 750, 500, 250, 0]


@pytest.mark.parametrize("steps", [1, 4, 10, 31])
def test_quadratic_times_are_squares(steps):
    """Song et al. 2021, appendix D.2: the i-th time is c i^2; there is room for these."""
    times = quadratic_times(1000, steps)
    assert times == [round(1000 / steps**2 * i**2) for i in range(steps, -1, -1)]


def test_grids_make_room_where_roundings_meet():
    assert quadratic_times(20, 10) == [20, 16, 13, 10, 7, 5, 4, 3, 2, 1, 0]
    assert quadratic_times(5, 5) == [5, 4, 3, 2, 1, 0]
    assert log_snr_times(linear(6), 6) == [6, 5, 4, 3, 2, 1, 0]
    assert log_snr_times(cosine(), 200)[:4] == [996, 995, 994, 993]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [5, 12, 25])
def test_log_snr_times_are_even_in_log_snr(name, steps):
    """To within what the nearest integer time allows; where two meet, only in order."""
    schedule = make_schedule(name)
    times = log_snr_times(schedule, steps)
    a = schedule.alpha_bar.numpy()
    found = np.log(a[times[:-1]] / (1 - a[times[:-1]]))
    wanted = np.linspace(found[0], found[-1], steps)
    step = (found[-1] - found[0]) / (steps - 1)
    inside = [i for i, t in enumerate(times[:-1]) if 10 < t < 990]
    assert len(inside) > steps / 3
    assert abs(found - wanted)[inside].max() < 0.15
    assert abs(found - wanted).max() < step
    assert times[-2] == 1


def test_log_snr_times_skip_what_is_noise_alone():
    """The cosine schedule begins where half the log-SNR is -5.1, the others at T."""
    a = cosine().alpha_bar
    first = log_snr_times(cosine(), 5)[0]
    assert math.log(a[first] / (1 - a[first])) >= -10.2 > math.log(a[first + 1])
    assert a[first] < 1 / 20_000
    assert log_snr_times(linear(), 5)[0] == log_snr_times(scaled_linear(), 5)[0] == 1000


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
    for name in GRIDS:
        with pytest.raises(InputError, match=r"steps must be between 1 and (9|10), got"):
            make_times(name, cosine(10), steps)


def test_unknown_grid_is_refused():
    with pytest.raises(InputError, match="'karras'; choose one of uniform, leading, quadratic"):
        make_times("karras", linear(), 5)


@pytest.mark.parametrize("T", [0, -5])
def test_a_schedule_needs_times(T):
    with pytest.raises(InputError, match=f"needs T of 1 or more, got {T}"):
        make_schedule("linear", T)


def test_schedules_can_be_compared():
    """By identity: two tensors have no truth value."""
    schedule = linear()
    assert schedule == schedule
    assert schedule != linear()
