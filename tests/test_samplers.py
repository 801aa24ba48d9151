"""The samplers, held against NumPy, Gaussian conditioning, an exact mixture and diffusers."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)
from oracle import Mixture, gaussian, posterior
from scipy.integrate import solve_ivp

from mnistlib import samplers
from mnistlib.samplers import ddim, ddpm, dpm_solver_pp, draw_noise, evaluations, heun, make_sampler
from mnistlib.schedules import (
    cosine,
    linear,
    log_snr_times,
    make_schedule,
    scaled_linear,
    uniform_times,
)
from mnistlib.types import InputError

SCHEDULES = {"linear": linear(), "scaled": scaled_linear(), "cosine": cosine()}
GRIDS = {
    "even": uniform_times(1000, 10),
    "uneven": [1000, 999, 640, 17, 16, 3, 0],
    "late": [7, 6, 5, 4, 3, 2, 1, 0],
    "one jump": [1000, 0],
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_grid = pytest.mark.parametrize("times", GRIDS.values(), ids=GRIDS)
SAMPLERS = {
    "ddpm": (ddpm, 1.0),
    "ddim 0": (ddim, 0.0),
    "ddim 0.4": (partial(ddim, eta=0.4), 0.4),
    "ddim 1": (partial(ddim, eta=1.0), 1.0),
}
every_sampler = pytest.mark.parametrize(("sampler", "eta"), SAMPLERS.values(), ids=SAMPLERS)
EVERY = {name: sampler for name, (sampler, _) in SAMPLERS.items()}
EVERY |= {"heun": heun, "dpm_solver_pp": dpm_solver_pp}
each = pytest.mark.parametrize("sampler", EVERY.values(), ids=EVERY)
BOUND = 6.0  # standard errors; with 6 to 8 seeds the largest deviation, bias included, was 3.1


def seeded(seed):
    """Return a CPU generator."""
    return torch.Generator().manual_seed(seed)


def start(*shape, seed=0):
    """Return standard normal float64 numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def wavy(x, t):
    """Answer something that depends on every number of x and on t."""
    assert t.dtype == torch.int64
    assert t.shape == x.shape[:1]
    return torch.sin(3 * x + t.view(-1, 1, 1, 1))


def assert_close(ours, theirs, tolerance):
    """Compare relative to the largest number where that is above 1."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, abs(theirs).max()))


def followed(sampler, schedule, x_T, times, seed):
    """Run a sampler; yield each step as (t, x_t, step, the fresh noise that it was given)."""
    noise, x_t = seeded(seed), x_T
    run = sampler(wavy, schedule, x_T, times, generator=seeded(seed))
    for (t, s), step in zip(pairwise(times), run, strict=True):
        z = torch.randn(*x_T.shape, generator=noise).double() if s > 0 else torch.zeros_like(x_T)
        yield t, x_t, step, z.numpy()
        x_t = step.x_t


# ---- single steps --------------------------------------------------------------------------


@every_schedule
@every_grid
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_equals_numpy(schedule, times, eta):
    """Song et al. 2021, eq. 12, with sigma from eq. 16."""
    a = schedule.alpha_bar.numpy()
    sampler = partial(ddim, eta=eta)
    for t, x_t, step, z in followed(sampler, schedule, start(3, 1, 4, 4), times, seed=5):
        x_t, s = x_t.numpy(), step.t
        eps = np.sin(3 * x_t + t)
        sigma = eta * np.sqrt((1 - a[s]) / (1 - a[t])) * np.sqrt(1 - a[t] / a[s])
        predicted = (x_t - np.sqrt(1 - a[t]) * eps) / np.sqrt(a[t])
        direction = np.sqrt(1 - a[s] - sigma**2) * eps
        assert_close(step.x0_hat, predicted, 1e-12)
        assert_close(step.x_t, np.sqrt(a[s]) * predicted + direction + sigma * z, 1e-12)


@every_schedule
@pytest.mark.parametrize("sampler", [ddpm, partial(ddim, eta=1.0)], ids=["ddpm", "ddim eta 1"])
def test_eta_one_is_the_ddpm_posterior(schedule, sampler):
    """On consecutive times both draw from Ho et al. 2020, eq. 6-7, with the same noise."""
    a = schedule.alpha_bar.numpy()
    for first in (1000, 400, 12):  # twelve steps each, then one jump to 0
        times = [*range(first, max(first - 13, 0), -1), 0]
        for t, x_t, step, z in followed(sampler, schedule, start(3, 1, 4, 4), times, seed=6):
            if step.t != t - 1:
                continue
            x_t = x_t.numpy()
            beta = 1 - a[t] / a[t - 1]
            x_0 = (x_t - np.sqrt(1 - a[t]) * np.sin(3 * x_t + t)) / np.sqrt(a[t])
            mean = np.sqrt(a[t - 1]) * beta / (1 - a[t]) * x_0
            mean = mean + np.sqrt(1 - beta) * (1 - a[t - 1]) / (1 - a[t]) * x_t
            std = np.sqrt((1 - a[t - 1]) / (1 - a[t]) * beta)
            assert_close(step.x_t, mean + std * z, 1e-12)


@every_schedule
@every_grid
def test_ddim_at_eta_one_is_ddpm(schedule, times):
    """The two agree on skipped times as well, where nothing but the times is shared."""
    x_T = start(2, 1, 4, 4)
    ours = ddim(wavy, schedule, x_T, times, eta=1.0, generator=seeded(1))
    for step, other in zip(
        ours, ddpm(wavy, schedule, x_T, times, generator=seeded(1)), strict=True
    ):
        assert step.t == other.t
        assert_close(step.x_t, other.x_t, 1e-12)


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(1000, 999), (1000, 400), (500, 20), (2, 1), (30, 0), (1, 0)])
def test_posterior_equals_gaussian_conditioning(schedule, t, s):
    """With the true noise, ddpm draws x_s from q(x_s | x_t, x_0)."""
    x_0, eps = start(2, 1, 2, 2, seed=1), start(2, 1, 2, 2, seed=2)
    a = schedule.alpha_bar.numpy()
    x_t = float(np.sqrt(a[t])) * x_0 + float(np.sqrt(1 - a[t])) * eps
    times = [t, s] if s == 0 else [t, s, 0]
    step = next(ddpm(lambda x, time: eps, schedule, x_t, times, generator=seeded(3)))
    mean, variance = posterior(a, t, s, x_0.numpy(), x_t.numpy())
    z = torch.randn(*x_t.shape, generator=seeded(3)).double().numpy()
    assert_close(step.x_t, mean + np.sqrt(max(variance, 0)) * z, 1e-11)


@every_schedule
@every_grid
def test_heun_step_equals_numpy(schedule, times):
    """Karras et al. 2022, algorithm 1 with their sigma(t) = t, in the scale that it is written in.

    There the image is y = x / alpha, its noise r = sigma / alpha, and the denoiser returns x_0.
    """
    a = schedule.alpha_bar.numpy()
    r = np.sqrt((1 - a) / a)

    def slope(y, t):
        x_t = y * np.sqrt(a[t])
        x_0 = (x_t - np.sqrt(1 - a[t]) * np.sin(3 * x_t + t)) / np.sqrt(a[t])
        return (y - x_0) / r[t], x_0

    for t, x_t, step, _ in followed(heun, schedule, start(3, 1, 4, 4), times, seed=5):
        y, s = x_t.numpy() / np.sqrt(a[t]), step.t
        d, x_0 = slope(y, t)
        y_s = y + (r[s] - r[t]) * d
        if r[s] != 0:
            y_s = y + (r[s] - r[t]) * (d + slope(y_s, s)[0]) / 2
        assert_close(step.x0_hat, x_0, 1e-9)
        assert_close(step.x_t, y_s * np.sqrt(a[s]), 1e-9)


@every_schedule
@every_grid
def test_dpm_solver_pp_step_equals_numpy(schedule, times):
    """Lu et al. 2022, algorithm 2: r_i = h_{i-1} / h_i, and D_i with the weights 1 and 1 / 2r."""
    a = schedule.alpha_bar.numpy()
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    x_0, h = None, None
    for t, x_t, step, _ in followed(dpm_solver_pp, schedule, start(3, 1, 4, 4), times, seed=5):
        x_t, s = x_t.numpy(), step.t
        last_x_0, last_h = x_0, h
        x_0, h = (x_t - sigma[t] * np.sin(3 * x_t + t)) / alpha[t], lam[s] - lam[t]
        D = x_0
        if last_x_0 is not None and s > 0:
            ratio = last_h / h
            D = (1 + 1 / (2 * ratio)) * x_0 - 1 / (2 * ratio) * last_x_0
        assert_close(step.x0_hat, x_0, 1e-9)
        assert_close(step.x_t, sigma[s] / sigma[t] * x_t - alpha[s] * np.expm1(-h) * D, 1e-9)


# ---- a Gaussian, step by step --------------------------------------------------------------

COV = np.array([[1.0, 0.3, 0, 0], [0.3, 0.5, 0.1, 0], [0, 0.1, 0.2, -0.1], [0, 0, -0.1, 0.7]])
BELL = gaussian([0.5, -1.0, 0.2, 0.0], COV)


def gaussian_step(a_t, a_s, eta):
    """Return gain, shift and variance of x_s = gain x_t + shift + noise for the exact BELL."""
    mean, eye = BELL.means[0], np.eye(4)
    variance = eta**2 * (1 - a_s) * (1 - a_t / a_s) / (1 - a_t)
    precision = np.linalg.inv(a_t * COV + (1 - a_t) * eye)
    data, noise = np.sqrt(a_s * a_t) * COV, np.sqrt((1 - a_s - variance) * (1 - a_t)) * eye
    gain = (data + noise) @ precision
    return gain, (np.sqrt(a_s) * eye - np.sqrt(a_t) * gain) @ mean, variance


def measured_step(sampler, schedule, t, s):
    """Return the same of the sampler, read off from its answers to 0 and the basis vectors."""
    points = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double().view(5, 1, 2, 2)
    times = [t, s] if s == 0 else [t, s, 0]
    x, z = [], []
    for seed in (1, 2):
        step = next(
            sampler(BELL.denoiser(schedule), schedule, points, times, generator=seeded(seed))
        )
        x.append(step.x_t.flatten(1).numpy())
        z.append(torch.randn(*points.shape, generator=seeded(seed)).double().flatten(1).numpy())
    dx, dz = x[0] - x[1], z[0] - z[1]
    std = (dx * dz).sum() / (dz * dz).sum()
    np.testing.assert_allclose(dx, std * dz, rtol=0, atol=1e-12)
    still = x[0] - std * z[0]
    return (still[1:] - still[0]).T, still[0], std**2


def recursion(times, step_of):
    """Return mean and covariance of x_t after each step, from N(0, 1) at the first time."""
    mean, cov, states = np.zeros(4), np.eye(4), []
    for t, s in pairwise(times):
        gain, shift, variance = step_of(t, s)
        mean, cov = gain @ mean + shift, gain @ cov @ gain.T + variance * np.eye(4)
        states.append((mean, cov))
    return states


def analytic(schedule, times, eta):
    """Return the states of ``recursion`` by the formula."""
    a = schedule.alpha_bar.numpy()
    return recursion(times, lambda t, s: gaussian_step(a[t], a[s], eta))


@every_schedule
@every_sampler
def test_gaussian_follows_the_recursion(schedule, sampler, eta):
    """Mean and covariance of the sampler's affine steps are those of the formula, all the way."""
    for times in (uniform_times(1000, 40), GRIDS["uneven"]):
        measured = recursion(times, partial(measured_step, sampler, schedule))
        for state, wanted in zip(measured, analytic(schedule, times, eta), strict=True):
            assert_close(state[0], wanted[0], 1e-10)
            assert_close(state[1], wanted[1], 1e-10)


@every_sampler
@pytest.mark.parametrize("seed", range(4))
def test_gaussian_samples_follow_the_recursion(sampler, eta, seed):
    """20,000 samples have the mean and the covariance of the formula, within standard errors."""
    schedule, times, n = linear(), uniform_times(1000, 10), 20_000
    x_T = start(n, 1, 2, 2, seed=seed)
    run = sampler(BELL.denoiser(schedule), schedule, x_T, times, generator=seeded(100 + seed))
    for step, (mean, cov) in zip(run, analytic(schedule, times, eta), strict=True):
        x = step.x_t.flatten(1).numpy()
        spread = np.diag(cov)
        error_of_mean = np.sqrt(spread / n)
        error_of_cov = np.sqrt((np.outer(spread, spread) + cov**2) / n)
        assert (abs(x.mean(0) - mean) < BOUND * error_of_mean).all()
        assert (abs(np.cov(x.T) - cov) < BOUND * error_of_cov).all()


@pytest.mark.parametrize("name", ["linear", "cosine"])  # scaled-linear never reaches pure noise
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_more_steps_come_closer(name, eta):
    """The Gaussian that the steps end in nears the data: with 1,000 steps to under 2 percent."""
    misses = []
    for steps in (5, 20, 100, 1000):
        mean, cov = analytic(SCHEDULES[name], uniform_times(1000, steps), eta)[-1]
        misses.append(max(abs(mean - BELL.means[0]).max(), abs(cov - COV).max()))
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < 0.02


# ---- a mixture, sampled --------------------------------------------------------------------

THREE = Mixture(
    np.array([0.2, 0.3, 0.5]),
    np.array([[-1.0, 0.6], [0.9, 0.8], [0.1, -0.9]]),
    np.array(
        [[[0.05, 0.03], [0.03, 0.08]], [[0.02, 0], [0, 0.05]], [[0.09, -0.04], [-0.04, 0.06]]]
    ),
)


def summary(x):
    """Return what is compared, for each point: nearest mode, moments, log density."""
    near = np.linalg.norm(x[:, None] - THREE.means, axis=2).argmin(1)
    columns = [near == 0, near == 1, near == 2, *x.T, *(x**2).T, x[:, 0] * x[:, 1]]
    return np.column_stack([*columns, THREE.log_density(x, 1.0)]).astype(float)


@pytest.mark.parametrize("name", ["ddpm", "ddim 0", "ddim 0.4"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_mixture_is_sampled(name, seed):
    """With the perfect denoiser the samples cannot be told from draws of the mixture.

    The grid is dense near the data, where steps that are too long lose variance. What bias its
    190 steps leave was measured with 20,000 samples: below 2.5 of the standard errors used here.
    """
    n, schedule, sampler = 2000, linear(), SAMPLERS[name][0]
    truth = summary(THREE.draw(200_000, np.random.default_rng(0)))
    times = sorted({round(1000 * (i / 200) ** 2) for i in range(201)}, reverse=True)
    x_T = start(n, 1, 1, 2, seed=seed)
    run = sampler(THREE.denoiser(schedule), schedule, x_T, times, generator=seeded(10 + seed))
    *_, last = run
    found = summary(last.x_t.flatten(1).numpy())
    error = truth.std(0) / np.sqrt(n)
    assert (abs(found.mean(0) - truth.mean(0)) < BOUND * error).all()


@pytest.mark.parametrize("sampler", [heun, dpm_solver_pp])
@pytest.mark.parametrize("seed", range(2))
def test_exact_mixture_is_sampled_in_few_calls(sampler, seed):
    """Thirty steps of second order do what ddim needs hundreds for."""
    n, schedule = 2000, cosine()
    truth = summary(THREE.draw(200_000, np.random.default_rng(0)))
    x_T, times = start(n, 1, 1, 2, seed=seed), log_snr_times(schedule, 30)
    *_, last = sampler(THREE.denoiser(schedule), schedule, x_T, times)
    found = summary(last.x_t.flatten(1).numpy())
    assert (abs(found.mean(0) - truth.mean(0)) < BOUND * truth.std(0) / np.sqrt(n)).all()


# ---- the order of convergence --------------------------------------------------------------

FINE, STOP = 65_536, 8_000  # levels of the schedule, and the time at which all are compared


def fine_schedule():
    """Return the linear schedule of 1,000 levels, sixty-five times finer."""
    return linear(FINE, 0.1 / FINE, 20 / FINE)


def true_end(x_T, alpha_bar_T, alpha_bar_end):
    """Where the probability-flow ODE takes x_T, by an eighth-order solver of SciPy."""

    def slope(r, y):
        a = 1 / (1 + r**2)
        return THREE.eps_given(y.reshape(-1, 2) * np.sqrt(a), a).ravel()

    r = [np.sqrt((1 - a) / a) for a in (alpha_bar_T, alpha_bar_end)]
    y_T = x_T.flatten(1).numpy().ravel() / np.sqrt(alpha_bar_T)
    solved = solve_ivp(slope, r, y_T, method="DOP853", rtol=1e-10, atol=1e-10)
    return solved.y[:, -1].reshape(-1, 2) * np.sqrt(alpha_bar_end)


def errors_at_stop(sampler, counts, points=24):
    """Root mean square distance from the true end of so many steps of a sampler."""
    schedule, x_T = fine_schedule(), start(points, 1, 1, 2, seed=3)
    a = schedule.alpha_bar.numpy()
    truth, errors = true_end(x_T, a[FINE], a[STOP]), []
    for n in counts:
        times = [round(FINE + (STOP - FINE) * i / n) for i in range(n + 1)]
        *_, at_stop, _ = sampler(THREE.denoiser(schedule), schedule, x_T, [*times, 0])
        assert at_stop.t == STOP
        error = at_stop.x_t.flatten(1).numpy() - truth
        errors.append(np.sqrt((error**2).mean()))
    return np.array(errors)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpm_solver_pp", 2)])
def test_order_of_convergence(name, order):
    """Twice the steps divide the error by 2 to the power of the order."""
    errors = errors_at_stop(make_sampler(name), (40, 80, 160))
    slopes = np.log2(errors[:-1] / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.15)


# ---- diffusers -----------------------------------------------------------------------------


def stepped(sampler, scheduler, schedule, steps, **options):
    """Yield (our step, their step from the same state with the same noise), in float32."""
    scheduler.alphas_cumprod = schedule.alpha_bar[1:]  # their index 0 is our time 1
    scheduler.set_timesteps(steps)
    times = [int(t) + 1 for t in scheduler.timesteps] + [0]
    assert times == uniform_times(schedule.T, steps)
    x = torch.randn(16, 1, 1, 2, generator=seeded(0))
    denoise, noise = THREE.denoiser(schedule), seeded(1)
    for step in sampler(denoise, schedule, x, times, generator=seeded(1)):
        t = times[times.index(step.t) - 1]
        eps = denoise(x, torch.full((len(x),), t))
        yield step, scheduler.step(eps, t - 1, x, generator=noise, **options)
        x = step.x_t


def assert_same_steps(pairs):
    """Compare the states, and the guesses of the clean image, to 1e-5."""
    for ours, theirs in pairs:
        assert ours.x_t.dtype == torch.float32
        assert_close(ours.x_t, theirs.prev_sample, 1e-5)
        assert_close(ours.x0_hat, theirs.pred_original_sample, 1e-5)


every_pace = pytest.mark.parametrize(("T", "steps"), [(1000, 50), (200, 200)])
every_name = pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])


@every_name
@every_pace
def test_ddpm_matches_diffusers(name, T, steps):
    scheduler = DDPMScheduler(T, clip_sample=False, timestep_spacing="trailing")
    assert_same_steps(stepped(ddpm, scheduler, make_schedule(name, T), steps))


@every_name
@every_pace
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_matches_diffusers(name, T, steps, eta):
    scheduler = DDIMScheduler(T, clip_sample=False, timestep_spacing="trailing")
    sampler = partial(ddim, eta=eta)
    assert_same_steps(stepped(sampler, scheduler, make_schedule(name, T), steps, eta=eta))


# Their tables are float32, which steps of wild lengths or from a tiny alpha_T would amplify.
calm_grids = pytest.mark.parametrize(
    "times", [GRIDS["late"], log_snr_times(cosine(), 10), [950, 700, 450, 200, 0], [900, 0]]
)
# diffusers asks NumPy for a copy of a tensor in the old way.
old_copy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@every_name
@calm_grids
@old_copy
def test_heun_matches_diffusers(name, times):
    """Theirs takes half a step at a time, in y = x / alpha, and keeps float32 tables."""
    schedule, scheduler = make_schedule(name), HeunDiscreteScheduler()
    scheduler.alphas_cumprod = schedule.alpha_bar[1:]
    scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])
    denoise, x = THREE.denoiser(schedule), start(16, 1, 1, 2).float()
    for t, step in zip(times, heun(denoise, schedule, x, times), strict=False):
        alpha_t, alpha_s = schedule.alpha_bar[[t, step.t]].sqrt().tolist()
        eps, y = denoise(x, torch.full((16,), t)), x / alpha_t
        y_s = scheduler.step(eps, t - 1, y).prev_sample
        if step.t > 0:
            eps = denoise(alpha_s * y_s, torch.full((16,), step.t))
            y_s = scheduler.step(eps, step.t - 1, y_s).prev_sample
        assert_close(step.x_t, alpha_s * y_s, 1e-4)
        x = step.x_t


@every_name
@calm_grids
@old_copy
def test_dpm_solver_pp_matches_diffusers(name, times):
    """Second order to the last but one step; theirs would fall to first order there if short."""
    schedule = make_schedule(name)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    scheduler.alphas_cumprod = schedule.alpha_bar[1:]
    scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])
    denoise, x = THREE.denoiser(schedule), start(16, 1, 1, 2).float()
    for t, step in zip(times, dpm_solver_pp(denoise, schedule, x, times), strict=False):
        eps = denoise(x, torch.full((16,), t))
        assert_close(step.x_t, scheduler.step(eps, t - 1, x).prev_sample, 1e-4)
        x = step.x_t


# ---- the walk itself -----------------------------------------------------------------------


@each
@every_grid
def test_every_pair_of_times_is_one_step(sampler, times):
    """Each step calls the network at its own time; the last guess is the last state.

    Heun asks at the end of the step as well, except at time 0.
    """
    asked = []

    def listening(x, t):
        asked.append(t.tolist())
        return wavy(x, t)

    steps = list(sampler(listening, linear(), start(2, 1, 2, 2), times, generator=seeded(0)))
    assert [step.t for step in steps] == times[1:]
    calls = [t for pair in pairwise(times) for t in pair if t > 0]
    calls = calls if sampler is heun else times[:-1]
    assert asked == [[t, t] for t in calls]
    assert_close(steps[-1].x_t, steps[-1].x0_hat, 1e-12)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@every_grid
def test_evaluations_are_counted(name, times):
    calls = []

    def counting(x, t):
        calls.append(t)
        return wavy(x, t)

    list(make_sampler(name)(counting, linear(), start(1, 1, 2, 2), times, generator=seeded(0)))
    assert len(calls) == evaluations(name, len(times) - 1)


def test_make_sampler_hands_eta_to_ddim():
    x_T, times = start(2, 1, 2, 2), GRIDS["even"]
    for name, own in [("ddim", partial(ddim, eta=0.5)), ("heun", heun), ("ddpm", ddpm)]:
        runs = [
            list(sampler(wavy, linear(), x_T, times, generator=seeded(1)))
            for sampler in (make_sampler(name, eta=0.5), own)
        ]
        assert all(torch.equal(a.x_t, b.x_t) for a, b in zip(*runs, strict=True))


def test_noise_is_drawn_only_where_it_is_used():
    """ddim with eta 0 needs no generator; no sampler draws in its last step."""
    x_T, times = start(2, 1, 2, 2), [30, 20, 10, 0]
    for sampler, draws in zip(EVERY.values(), (2, 0, 2, 2, 0, 0), strict=True):
        generator, other = seeded(0), seeded(0)
        list(sampler(wavy, linear(), x_T, times, generator=generator))
        for _ in range(draws):
            torch.randn(2, 1, 2, 2, generator=other)
        assert torch.equal(generator.get_state(), other.get_state())


def test_start_is_left_as_it_was():
    x_T = start(2, 1, 2, 2)
    before = x_T.clone()
    for sampler in EVERY.values():
        list(sampler(wavy, linear(), x_T, [900, 500, 0], generator=seeded(0)))
    assert torch.equal(x_T, before)


def test_draw_noise_depends_on_the_seed_alone():
    noise = draw_noise((2, 1, 4, 4), generator=seeded(7))
    assert torch.equal(noise, torch.randn(2, 1, 4, 4, generator=seeded(7)))
    like = torch.empty(1, dtype=torch.float64)
    moved = draw_noise((2, 1, 4, 4), like, generator=seeded(7))
    assert torch.equal(moved, noise.double())
    assert not torch.equal(draw_noise((2, 1, 4, 4), generator=seeded(8)), noise)


# ---- refusals ------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    "times", [[], [0], [10], [10, 5], [5, 10, 0], [10, 10, 0], [1001, 0], [10, 0, -5], range(20)]
)
def test_bad_times_are_refused(sampler, times):
    with pytest.raises(InputError, match=r"must decrease from at most 1000 to 0, got \[.*uniform_"):
        next(sampler(wavy, linear(), start(1, 1, 2, 2), times))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_bad_eta_is_refused(eta):
    with pytest.raises(InputError, match="eta must lie between 0 and 1"):
        next(ddim(wavy, linear(), start(1, 1, 2, 2), [10, 0], eta=eta))


def test_unknown_sampler_is_refused():
    with pytest.raises(InputError, match="'euler'; choose one of ddpm, ddim, heun, dpm_solver_pp"):
        make_sampler("euler")


def test_as_many_generators_as_images():
    two = [torch.Generator().manual_seed(i) for i in range(2)]
    with pytest.raises(InputError, match="one for each of 4 images; got 2"):
        draw_noise((4, 1, 2, 2), generator=two)
    with pytest.raises(InputError, match="one for each of 1 images; got 2"):
        next(ddpm(lambda x, t: x, cosine(), torch.zeros(1, 1, 2, 2), [9, 5, 0], generator=two))


def test_evaluations_of_an_unknown_sampler():
    with pytest.raises(InputError, match="unknown sampler 'euler'"):
        evaluations("euler", 5)
