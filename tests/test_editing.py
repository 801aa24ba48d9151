"""Editing a Gaussian world, where what must come out is known in closed form."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracle import gaussian
from tiny import numbers as normal

from mnistlib.editing import (
    composed,
    image_to_image,
    inpaint,
    interpolate,
    inverted,
    mixed,
    shortened,
    slerp,
)
from mnistlib.guidance import cfg
from mnistlib.samplers import SAMPLERS, ddim, ddpm, heun
from mnistlib.schedules import cosine, linear, log_snr_times, uniform_times
from mnistlib.types import InputError

MEAN = np.array([0.6, -0.3, 0.2, 0.9])
ROOT = np.array([[0.8, 0, 0, 0], [0.5, 0.4, 0, 0], [-0.3, 0.2, 0.6, 0], [0.4, 0.1, -0.3, 0.3]])
WORLD = gaussian(MEAN, ROOT @ ROOT.T)
SCHEDULE = cosine()
PICTURE = torch.tensor([1.5, -1.0, 0.3, -0.7], dtype=torch.float64).view(1, 1, 2, 2)
MASK = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
BOUND = 5.0  # standard errors
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def numbers(*shape, seed=0):
    """Return standard normal float64 numbers."""
    return normal(*shape, seed=seed, dtype=torch.float64)


def seeded(seed):
    """Return a CPU generator."""
    return torch.Generator().manual_seed(seed)


def denoiser(world=WORLD, schedule=SCHEDULE):
    """Return the exact denoiser of a world."""
    return world.denoiser(schedule)


def wavy(x, t):
    """Answer something that depends on every number of x and on t."""
    assert (t >= 1).all()
    return torch.sin(3 * x + t.view(-1, 1, 1, 1))


def same_steps(ours, theirs):
    """Are two runs identical, bit for bit?"""
    pairs = zip(ours, theirs, strict=True)
    return all(a.t == b.t and torch.equal(a.x_t, b.x_t) for a, b in pairs)


def power(matrix, exponent):
    """Return a power of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values**exponent @ vectors.T


def assert_draws(points, mean, cov):
    """Have points (N, D) this mean and this covariance, within their sampling errors?"""
    points, n = points.flatten(1).numpy(), len(points)
    d = np.sqrt(np.diag(cov))
    gap = np.abs(points.mean(0) - mean) / (d / np.sqrt(n))
    assert gap.max() < BOUND
    gap = np.abs(np.cov(points.T) - cov) / (np.sqrt(np.outer(d**2, d**2) + cov**2) / np.sqrt(n))
    assert gap.max() < BOUND


# ---- from one picture to another -----------------------------------------------------------


def test_shortened_grids():
    times = uniform_times(1000, 10)
    assert shortened(times, 1.0) == times
    assert shortened(times, 0.6) == [600, 500, 400, 300, 200, 100, 0]
    assert shortened(times, 0.25) == [250, 200, 100, 0]
    assert shortened(times, 0.0) == [0]
    assert shortened([800, 30, 0], 0.5) == [400, 30, 0]  # a share of the grid's own first time


@each_sampler
@pytest.mark.parametrize("times", [uniform_times(1000, 8), [700, 400, 30, 0]])
def test_strength_one_is_the_plain_sampler(sampler, times):
    eps = numbers(3, 1, 2, 2)
    ours = image_to_image(
        wavy, SCHEDULE, PICTURE.expand(3, -1, -1, -1), eps, times, 1.0,
        sampler=sampler, generator=seeded(1),
    )  # fmt: skip
    assert same_steps(ours, sampler(wavy, SCHEDULE, eps, times, generator=seeded(1)))


def test_strength_zero_is_the_picture_and_asks_no_network():
    (step,) = image_to_image(None, SCHEDULE, PICTURE, numbers(1, 1, 2, 2), [900, 100, 0], 0.0)
    assert step.t == 0
    assert torch.equal(step.x_t, PICTURE)
    assert torch.equal(step.x0_hat, PICTURE)


@pytest.mark.parametrize("strength", [0.15, 0.5, 0.85])
def test_image_to_image_follows_the_ode(strength):
    """For a Gaussian the ODE from x_t to x_0 is one linear map, whatever the noise."""
    x_0, eps = PICTURE.expand(50, -1, -1, -1), numbers(50, 1, 2, 2)
    grid = uniform_times(1000, 200)
    *_, last = image_to_image(denoiser(), SCHEDULE, x_0, eps, grid, strength, sampler=heun)
    a = float(SCHEDULE.alpha_bar[round(1000 * strength)])
    x_t = np.sqrt(a) * x_0.flatten(1).numpy() + np.sqrt(1 - a) * eps.flatten(1).numpy()
    cov = WORLD.covs[0]
    along = power(cov, 0.5) @ power(a * cov + (1 - a) * np.eye(4), -0.5)
    expected = MEAN + (x_t - np.sqrt(a) * MEAN) @ along.T
    np.testing.assert_allclose(last.x_t.flatten(1), expected, atol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_image_to_image_with_ddpm_draws_from_what_the_noise_leaves_open(seed):
    """The mean lies between the world's and the picture; the covariance is that of two draws."""
    n, strength, cov = 4000, 0.4, WORLD.covs[0]
    x_0, eps = PICTURE.expand(n, -1, -1, -1), numbers(n, 1, 2, 2, seed=seed)
    run = image_to_image(
        denoiser(), SCHEDULE, x_0, eps, uniform_times(1000, 500), strength,
        sampler=ddpm, generator=seeded(100 + seed),
    )  # fmt: skip
    *_, last = run
    a = float(SCHEDULE.alpha_bar[400])
    gain = np.sqrt(a) * cov @ np.linalg.inv(a * cov + (1 - a) * np.eye(4))
    mean = MEAN + np.sqrt(a) * gain @ (PICTURE.flatten().numpy() - MEAN)
    left_open = cov - np.sqrt(a) * gain @ cov
    assert_draws(last.x_t, mean, left_open + (1 - a) * gain @ gain.T)


# ---- repainting ----------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 3])
def test_inpainting_equals_numpy(repeats):
    """Step, replace, and go back: written down once more, with the same noise."""
    times, a = [950, 700, 120, 0], SCHEDULE.alpha_bar.numpy()
    x_T, soft = numbers(2, 1, 2, 2), MASK * 0.75
    known, noise = PICTURE.expand(2, -1, -1, -1), seeded(7)
    how = {"known": known, "mask": soft, "repeats": repeats, "generator": seeded(7)}
    run = inpaint(wavy, SCHEDULE, x_T, times, **how)
    x, m, picture = x_T.numpy(), soft.numpy(), known.numpy()
    for (t, s), step in zip(pairwise(times), run, strict=True):
        for again in range(repeats if s else 1):
            if again:
                z, share = torch.randn(2, 1, 2, 2, generator=noise).numpy(), a[t] / a[s]
                x = np.sqrt(share) * x + np.sqrt(1 - share) * z
            eps = np.sin(3 * x + t)
            x0_hat = (x - np.sqrt(1 - a[t]) * eps) / np.sqrt(a[t])
            drawn = np.sqrt(a[s]) * x0_hat + np.sqrt(1 - a[s]) * eps
            z = torch.randn(2, 1, 2, 2, generator=noise).numpy()
            x = m * drawn + (1 - m) * (np.sqrt(a[s]) * picture + np.sqrt(1 - a[s]) * z)
        assert step.t == s
        size = max(1, np.abs(x0_hat).max())
        np.testing.assert_allclose(step.x_t, x, atol=1e-12 * size)
        guess = m * x0_hat + (1 - m) * picture
        np.testing.assert_allclose(step.x0_hat, guess, atol=1e-12 * size)


@pytest.mark.parametrize("repeats", [1, 4])
@each_sampler
def test_what_is_known_comes_back_exactly(sampler, repeats):
    known, x_T = numbers(3, 2, 2, 2, seed=1).float(), numbers(3, 2, 2, 2).float()
    how = {"known": known, "mask": MASK.float(), "repeats": repeats, "sampler": sampler}
    *_, last = inpaint(wavy, SCHEDULE, x_T, uniform_times(1000, 5), **how, generator=seeded(2))
    kept = (MASK == 0).expand_as(known)
    assert torch.equal(last.x_t[kept], known[kept])
    assert torch.equal(last.x0_hat[kept], known[kept])
    assert (last.x_t[~kept] != known[~kept]).all()


@pytest.mark.parametrize("sampler", [ddim, heun])
def test_a_mask_of_ones_is_the_plain_sampler(sampler):
    x_T, times = numbers(3, 1, 2, 2), uniform_times(1000, 6)
    how = {"known": PICTURE.expand(3, -1, -1, -1), "mask": torch.ones_like(MASK)}
    ours = inpaint(wavy, SCHEDULE, x_T, times, **how, sampler=sampler)
    assert same_steps(ours, sampler(wavy, SCHEDULE, x_T, times))


def test_a_mask_of_zeros_is_the_picture():
    """On the way too: what is left of the noise is what the generator drew."""
    known, noise = PICTURE.expand(3, -1, -1, -1), seeded(3)
    how = {"known": known, "mask": torch.zeros_like(MASK), "generator": seeded(3)}
    for step in inpaint(wavy, SCHEDULE, numbers(3, 1, 2, 2), uniform_times(1000, 6), **how):
        alpha_bar = SCHEDULE.alpha_bar[step.t]
        z = torch.randn(3, 1, 2, 2, generator=noise).double()
        expected = alpha_bar.sqrt() * known + (1 - alpha_bar).sqrt() * z
        torch.testing.assert_close(step.x_t, expected, rtol=0, atol=1e-12)
        assert torch.equal(step.x0_hat, known)
    assert torch.equal(step.x_t, known)


TIED = gaussian(np.array([0.2, -0.3, 0.2, 0.4]), 0.4 * np.ones((4, 4)) + 0.1 * np.eye(4))


def gaps(repeats, seed, n=1000):
    """Repaint the two middle numbers of TIED in 100 steps, the others known; compare with the law.

    Returns:
        How far mean and covariance of n draws lie from those of the two numbers given the others.
    """
    x, cov = np.array([1.0, -1.0, 0.3, 0.9]), TIED.covs[0]
    run = inpaint(
        denoiser(TIED), SCHEDULE, numbers(n, 1, 2, 2, seed=seed), uniform_times(1000, 100),
        known=torch.from_numpy(x).view(1, 1, 2, 2).expand(n, -1, -1, -1), mask=MASK,
        repeats=repeats, generator=seeded(100 + seed),
    )  # fmt: skip
    *_, last = run
    drawn, u, k = last.x_t.flatten(1)[:, 1:3].numpy(), [1, 2], [0, 3]
    gain = cov[np.ix_(u, k)] @ np.linalg.inv(cov[np.ix_(k, k)])
    mean = TIED.means[0][u] + gain @ (x[k] - TIED.means[0][k])
    given = cov[np.ix_(u, u)] - gain @ cov[np.ix_(k, u)]
    return np.abs(drawn.mean(0) - mean).max(), np.abs(np.cov(drawn.T) - given).max()


@pytest.mark.parametrize("seed", range(3))
def test_repeats_lead_to_what_is_unknown_given_what_is_known(seed):
    """By the exact moments the mean is off by 0.297 and 0.032, the covariance by 0.109 and 0.006;

    a thousand draws add 0.012 and 0.007 (standard errors).
    """
    once, often = gaps(1, seed), gaps(10, seed)
    assert 0.24 < once[0] < 0.36
    assert 0.07 < once[1] < 0.15
    assert often[0] < 0.08
    assert often[1] < 0.035


# ---- between two noises --------------------------------------------------------------------


def test_slerp_turns_one_noise_into_the_other():
    """For two of the same length it is a rotation by equal angles in their plane."""
    a, b = numbers(5, 2, 3, 3).flatten(1).numpy(), numbers(5, 2, 3, 3, seed=1).flatten(1).numpy()
    b = b * np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(b, axis=1, keepdims=True)
    across = b - a * (a * b).sum(1, keepdims=True) / (a * a).sum(1, keepdims=True)
    across *= np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(across, axis=1)[:, None]
    angle = np.arctan2((b * across).sum(1), (b * a).sum(1))[:, None]
    first, last = (torch.from_numpy(x).view(5, 2, 3, 3) for x in (a, b))
    for weight in (0.0, 0.2, 0.5, 0.9, 1.0):
        expected = np.cos(weight * angle) * a + np.sin(weight * angle) * across
        found = slerp(first, last, weight).flatten(1)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_ends_exactly(dtype):
    first, last = numbers(4, 1, 8, 8).to(dtype), numbers(4, 1, 8, 8, seed=1).to(dtype)
    assert torch.equal(slerp(first, last, 0.0), first)
    assert torch.equal(slerp(first, last, 1.0), last)
    assert slerp(first, last, 0.3).dtype == dtype


def test_where_there_is_no_arc_the_line_is_taken():
    first, other = numbers(2, 1, 4, 4), numbers(1, 1, 4, 4, seed=1)
    last = torch.cat([2 * first[:1], other])
    found = slerp(first, last, 0.25)
    torch.testing.assert_close(found[:1], 1.25 * first[:1])
    torch.testing.assert_close(found[1:], slerp(first[1:], other, 0.25))


def test_the_line_shrinks_and_the_arc_does_not():
    """Half-way the variance is a half on the line; samples drawn from there are too alike."""
    first, last = numbers(2000, 1, 8, 8), numbers(2000, 1, 8, 8, seed=1)
    for weight in (0.25, 0.5):
        line = (1 - weight) ** 2 + weight**2
        assert torch.lerp(first, last, weight).var() == pytest.approx(line, abs=0.02)
        assert slerp(first, last, weight).var() == pytest.approx(1, abs=0.02)


def test_interpolate_is_an_even_series():
    first, last = numbers(1, 3, 4, 4), numbers(1, 3, 4, 4, seed=1)
    for between in (slerp, torch.lerp):
        row = interpolate(first, last, 5, between)
        assert row.shape == (5, 3, 4, 4)
        for i in range(5):
            assert torch.equal(row[i : i + 1], between(first, last, i / 4))
    assert torch.equal(interpolate(first, last, 3), interpolate(first, last, 3, slerp))


# ---- between two prompts, and several at once ----------------------------------------------


def test_mixed_leans_from_one_denoiser_to_another():
    a, b = numbers(3, 1, 2, 2).float(), numbers(3, 1, 2, 2, seed=1).float()
    for weight in (0.0, 0.3, 1.0):
        found = mixed(lambda x, t: a, lambda x, t: b, weight)(None, None)
        torch.testing.assert_close(found, (1 - weight) * a + weight * b)
    assert torch.equal(mixed(lambda x, t: a, lambda x, t: b, 0.0)(None, None), a)
    assert torch.equal(mixed(lambda x, t: a, lambda x, t: b, 1.0)(None, None), b)


def shifted(*mean):
    """Return the exact denoiser of a Gaussian with another mean, its numbers independent."""
    return denoiser(gaussian(np.array(mean), np.diag([0.3, 0.2, 0.5, 0.4])))


@pytest.mark.parametrize("time", [1, 300, 700, 1000])
def test_independent_wishes_are_fulfilled_together(time):
    """One moves the first number, one the second; composed they move both, at every noise."""
    x_t, t = numbers(6, 1, 2, 2), torch.full((6,), time)
    u, one, other = shifted(0, 0, 0, 0), shifted(2, 0, 0, 0), shifted(0, -1, 0, 0)
    both = composed(u, [(one, 1.0), (other, 1.0)])(x_t, t)
    torch.testing.assert_close(both, shifted(2, -1, 0, 0)(x_t, t), rtol=0, atol=1e-12)
    stressed = composed(u, [(one, 3.0), (other, -2.0)])(x_t, t)
    torch.testing.assert_close(stressed, shifted(6, 2, 0, 0)(x_t, t), rtol=0, atol=1e-12)


def test_one_wish_is_guidance_and_no_wish_is_none():
    x_t, t = numbers(6, 1, 2, 2), torch.full((6,), 400)
    u, c = shifted(0, 0, 0, 0), denoiser()
    torch.testing.assert_close(composed(u, [(c, 2.5)])(x_t, t), cfg(c, u, 2.5)(x_t, t))
    assert torch.equal(composed(u, [])(x_t, t), u(x_t, t))


# ---- from a picture to its noise -----------------------------------------------------------


@pytest.mark.parametrize("schedule", [cosine(), linear()], ids=["cosine", "linear"])
def test_inversion_follows_the_ode_with_the_first_order(schedule):
    """Twice the steps, half the error: of the noise, and of the picture that it gives back."""
    x_0 = torch.from_numpy(WORLD.draw(100, np.random.default_rng(0))).view(-1, 1, 2, 2)
    denoise, cov, errors = denoiser(schedule=schedule), WORLD.covs[0], []
    for steps in (100, 200):
        times = log_snr_times(schedule, steps)
        *_, last = inverted(denoise, schedule, x_0, times)
        assert last.t == times[0]
        a = float(schedule.alpha_bar[times[0]])
        along = power(a * cov + (1 - a) * np.eye(4), 0.5) @ power(cov, -0.5)
        noise = np.sqrt(a) * MEAN + (x_0.flatten(1).numpy() - MEAN) @ along.T
        *_, back = ddim(denoise, schedule, last.x_t, times)
        gaps = last.x_t.flatten(1).numpy() - noise, (back.x_t - x_0).numpy()
        errors.append([np.sqrt(np.square(gap).mean()) for gap in gaps])
    assert max(errors[1]) < 0.025
    np.testing.assert_allclose(np.divide(*errors), 2, atol=0.2)


def test_inversion_equals_numpy():
    times, a, x = [900, 500, 40, 0], SCHEDULE.alpha_bar.numpy(), PICTURE.numpy()
    run = inverted(wavy, SCHEDULE, PICTURE, times)
    for (t, s), step in zip(pairwise(times[::-1]), run, strict=True):
        eps = np.sin(3 * x + max(t, 1))
        x0_hat = (x - np.sqrt(1 - a[t]) * eps) / np.sqrt(a[t])
        x = np.sqrt(a[s]) * x0_hat + np.sqrt(1 - a[s]) * eps
        assert step.t == s
        np.testing.assert_allclose(step.x0_hat, x0_hat, atol=1e-12)
        np.testing.assert_allclose(step.x_t, x, atol=1e-12)


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_other_strengths_are_refused(strength):
    with pytest.raises(InputError, match="strength must lie between 0 and 1"):
        shortened([10, 0], strength)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": MASK[0]}, r"a mask for \(2, 1, 2, 2\) is \(2, 1, 2, 2\) or \(1, 1, 2, 2\)"),
        ({"mask": MASK.expand(3, -1, -1, -1)}, "a mask for"),
        ({"mask": torch.ones(1, 1, 4, 4)}, "a mask for"),
        ({"mask": 255 * MASK}, "a mask lies between 0"),
        ({"mask": MASK - 0.5}, "a mask lies between 0"),
        ({"mask": MASK * float("nan")}, "a mask lies between 0"),
        ({"repeats": 0}, "once or more, got repeats=0"),
        ({"sampler": partial(ddim, eta=2.0)}, "eta must lie between 0 and 1"),
    ],
)
def test_inpainting_refuses(changes, reason):
    how = {"known": PICTURE.expand(2, -1, -1, -1), "mask": MASK} | changes
    with pytest.raises(InputError, match=reason):
        next(inpaint(wavy, SCHEDULE, numbers(2, 1, 2, 2), [9, 0], **how))


@pytest.mark.parametrize("times", [[9, 5], [9, 3, 5, 0], [1001, 0]])
def test_times_that_no_sampler_walks_are_refused(times):
    x_T = numbers(1, 1, 2, 2)
    with pytest.raises(InputError, match="times must decrease"):
        next(inpaint(wavy, SCHEDULE, x_T, times, known=PICTURE, mask=MASK))
    with pytest.raises(InputError, match="times must decrease"):
        next(image_to_image(wavy, SCHEDULE, PICTURE, x_T, times, 1.0))


def test_a_series_of_one_is_refused():
    with pytest.raises(InputError, match="2 or more noises, got 1"):
        interpolate(numbers(1, 1, 2, 2), numbers(1, 1, 2, 2), 1)


@pytest.mark.parametrize("times", [[0, 5, 10], [10, 5], [5]])
def test_grids_that_do_not_fall_to_zero_are_refused(times):
    known = {"known": PICTURE, "mask": MASK}
    for run in (
        inverted(denoiser(), SCHEDULE, PICTURE, times),
        inpaint(denoiser(), SCHEDULE, PICTURE, times, **known),
    ):
        with pytest.raises(InputError, match="times must decrease"):
            list(run)


def test_a_mask_may_be_bool():
    def repainted(mask):
        generator = torch.Generator().manual_seed(0)
        how = {"known": PICTURE, "mask": mask, "generator": generator}
        *_, last = inpaint(denoiser(), SCHEDULE, PICTURE, [900, 400, 0], **how)
        return last.x_t

    assert torch.equal(repainted(MASK.bool()), repainted(MASK))
