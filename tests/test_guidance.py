"""Guidance on a mixture whose components are the classes, where every score is exact."""

from functools import partial

import numpy as np
import pytest
import torch
from oracle import Mixture, gaussian

from mnistlib.guidance import (
    bind,
    cfg,
    cfg_between,
    classifier_guided,
    clipped,
    heard_until,
    rescaled,
)
from mnistlib.samplers import ddim
from mnistlib.schedules import cosine, linear, scaled_linear, uniform_times
from mnistlib.types import Cond, InputError

CLASSES = Mixture(
    weights=np.array([0.2, 0.5, 0.3]),
    means=np.array([[-1.0, 0.4, 0.2, 0.0], [0.9, -0.2, 0.5, 0.3], [0.1, 1.2, -0.8, -0.5]]),
    covs=np.stack([0.05 * np.eye(4), np.diag([0.1, 0.02, 0.3, 0.1]), 0.1 + 0.2 * np.eye(4)]),
)
SCHEDULES = {"linear": linear(), "scaled": scaled_linear(), "cosine": cosine()}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
TIMES = (1, 50, 400, 700, 950)


def numbers(*shape, seed=0):
    """Return standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def points(schedule, time, size=16):
    """Return noisy points (size, 1, 2, 2) of the mixture's own, and their time (size,)."""
    x_0 = torch.from_numpy(CLASSES.draw(size, np.random.default_rng(time))).view(size, 1, 2, 2)
    a = float(schedule.alpha_bar[time])
    x_t = a**0.5 * x_0 + (1 - a) ** 0.5 * numbers(size, 1, 2, 2, seed=time)
    return x_t, torch.full((size,), time)


def denoiser_of(k, schedule):
    """Return the exact denoiser of class k."""
    return gaussian(CLASSES.means[k], CLASSES.covs[k]).denoiser(schedule)


def classifier_of(k, schedule):
    """Return the exact log p(class k | x_t): Bayes' rule on the densities, in torch."""

    def log_prob(x_t, t):
        a = float(schedule.alpha_bar[t[0]])
        covs = a * torch.from_numpy(CLASSES.covs) + (1 - a) * torch.eye(4, dtype=torch.float64)
        log_p = [
            torch.distributions.MultivariateNormal(a**0.5 * torch.from_numpy(mean), cov).log_prob(
                x_t.flatten(1)
            )
            for mean, cov in zip(CLASSES.means, covs, strict=True)
        ]
        joint = torch.stack(log_p, 1) + torch.from_numpy(CLASSES.weights).log()
        return joint.log_softmax(1)[:, k]

    return log_prob


def exact(k, schedule):
    """Return the unconditional denoiser, that of class k, and the classifier's log p(k | x_t)."""
    return CLASSES.denoiser(schedule), denoiser_of(k, schedule), classifier_of(k, schedule)


def largest_gap(a, b):
    return float((a - b).abs().max())


# ---- the two guidances ---------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_cfg_equals_classifier_guidance(name, scale):
    """With exact scores the two are one formula; the scale counts from u in both."""
    schedule = SCHEDULES[name]
    for k in range(3):
        u, c, log_prob = exact(k, schedule)
        for time in TIMES:
            x_t, t = points(schedule, time)
            by_classifier = classifier_guided(u, log_prob, schedule, scale)(x_t, t)
            assert largest_gap(cfg(c, u, scale)(x_t, t), by_classifier) < 1e-12


@every_schedule
def test_exact_classifier_turns_unconditional_into_conditional(name):
    schedule = SCHEDULES[name]
    u, c, log_prob = exact(1, schedule)
    for time in TIMES:
        x_t, t = points(schedule, time)
        assert largest_gap(classifier_guided(u, log_prob, schedule, 1.0)(x_t, t), c(x_t, t)) < 1e-12
        assert largest_gap(u(x_t, t), c(x_t, t)) > 1e-6  # the two differ to begin with


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_two_guidances_commute(name, scale):
    """Guide by one and then by the other: the order does not matter."""
    schedule = SCHEDULES[name]
    u, c, _ = exact(0, schedule)
    other = partial(
        classifier_guided, log_prob=classifier_of(2, schedule), schedule=schedule, scale=1.7
    )
    for time in TIMES:
        x_t, t = points(schedule, time)
        inside = cfg(other(c), other(u), scale)(x_t, t)
        outside = other(cfg(c, u, scale))(x_t, t)
        assert largest_gap(inside, outside) < 1e-12


@pytest.mark.parametrize("time", TIMES)
def test_gradient_matches_finite_differences(time):
    """NumPy's own log densities, moved a little in each of the four numbers."""
    schedule, scale, h, k = SCHEDULES["cosine"], 2.5, 1e-5, 1
    a, (x_t, t) = float(schedule.alpha_bar[time]), points(schedule, time, size=6)
    only = gaussian(CLASSES.means[k], CLASSES.covs[k])

    def log_p(x):
        return only.log_density(x, a) - CLASSES.log_density(x, a)  # and a constant

    x = x_t.flatten(1).numpy()
    gradient = np.stack([(log_p(x + h * e) - log_p(x - h * e)) / (2 * h) for e in np.eye(4)], 1)
    found = classifier_guided(
        lambda x, t: torch.zeros_like(x), classifier_of(k, schedule), schedule, scale
    )(x_t, t)
    expected = -scale * np.sqrt(1 - a) * gradient
    np.testing.assert_allclose(found.flatten(1), expected, rtol=1e-6, atol=1e-6)


def test_scale_counts_from_the_unconditional():
    u, c = torch.tensor([[[[1.0]]]]), torch.tensor([[[[3.0]]]])
    for scale, expected in [(-1.0, -1.0), (0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (7.5, 16.0)]:
        assert cfg(lambda x, t: c, lambda x, t: u, scale)(u, None).item() == expected


def test_guidance_between_two_times():
    """Each image by its own time; both ends belong to it; outside it is c, bit for bit."""
    u, c, t = (
        numbers(6, 1, 2, 2),
        numbers(6, 1, 2, 2, seed=1),
        torch.tensor([1, 99, 100, 300, 301, 9]),
    )
    found = cfg_between(lambda x, t: c, lambda x, t: u, 4.0, 100, 300)(u, t)
    plain = cfg(lambda x, t: c, lambda x, t: u, 4.0)(u, t)
    assert torch.equal(found[[2, 3]], plain[[2, 3]])
    assert torch.equal(found[[0, 1, 4, 5]], c[[0, 1, 4, 5]])
    assert torch.equal(cfg_between(lambda x, t: c, lambda x, t: u, 4.0, 300, 100)(u, t), c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ends_of_the_scale_are_exact(dtype):
    """Bit for bit, also where u + 1 (c - u) would round."""
    u, c = (10.0 ** numbers(4, 3, 8, 8, seed=seed).clamp(-4, 4) for seed in (1, 2))
    u, c = u.to(dtype), c.to(dtype)
    assert not torch.equal(u + 1.0 * (c - u), c)
    assert torch.equal(cfg(lambda x, t: c, lambda x, t: u, 0.0)(u, None), u)
    assert torch.equal(cfg(lambda x, t: c, lambda x, t: u, 1.0)(u, None), c)


def test_classifier_guidance_keeps_no_gradient_and_asks_for_none():
    """Inside no_grad too, which is where samplers run; x_t is left as it was."""
    schedule = SCHEDULES["cosine"]
    u, _, log_prob = exact(0, schedule)
    x_t, t = points(schedule, 400)
    with torch.no_grad():
        inside = classifier_guided(u, log_prob, schedule, 3.0)(x_t, t)
    outside = classifier_guided(u, log_prob, schedule, 3.0)(x_t, t)
    assert torch.equal(inside, outside)
    assert not outside.requires_grad
    assert not x_t.requires_grad
    assert x_t.grad is None


def test_a_classifier_is_heard_until_a_time():
    """Later its pull is exactly zero, up to that time it is what it was."""
    u, k = (lambda x, t: torch.zeros_like(x)), SCHEDULES["cosine"]
    t, x_t = torch.tensor([1, 400, 401, 1000]), numbers(4, 1, 2, 2)

    def log_prob(x, t):
        return -x.square().sum((1, 2, 3))

    pull = classifier_guided(u, log_prob, k, 2.0)(x_t, t)
    heard = classifier_guided(u, heard_until(log_prob, 400), k, 2.0)(x_t, t)
    assert torch.equal(heard[:2], pull[:2])
    assert torch.equal(heard[2:], torch.zeros(2, 1, 2, 2))
    assert (pull[2:] != 0).all()


@every_schedule
def test_exact_pull_on_the_guess_is_bounded(name):
    """In the guess of the clean data it is the difference of two means, at every time."""
    schedule, k = SCHEDULES[name], 2
    for time in (*TIMES, 1000):
        x_t, t = points(schedule, time)
        a = float(schedule.alpha_bar[time])
        log_prob = classifier_of(k, schedule)
        pull = classifier_guided(lambda x, t: torch.zeros_like(x), log_prob, schedule, 1.0)(x_t, t)
        in_guess = -pull * (1 - a) ** 0.5 / a**0.5
        only, x = gaussian(CLASSES.means[k], CLASSES.covs[k]), x_t.flatten(1).numpy()
        expected = only.x0_given(x, a) - CLASSES.x0_given(x, a)
        np.testing.assert_allclose(in_guess.flatten(1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_reach_their_class(scale):
    """Through a sampler: the drawn points are of the class that guided them."""
    schedule, k = SCHEDULES["cosine"], 0
    u, _, log_prob = exact(k, schedule)
    guided = classifier_guided(u, log_prob, schedule, scale)
    *_, last = ddim(guided, schedule, numbers(200, 1, 2, 2), uniform_times(1000, 50))
    nearest = np.linalg.norm(last.x_t.flatten(1).numpy()[:, None] - CLASSES.means, axis=2).argmin(1)
    assert (nearest == k).mean() > 0.97


# ---- rescaled ------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_rescaled_equals_the_formula(phi):
    u, c = numbers(5, 3, 4, 4).numpy(), 2 * numbers(5, 3, 4, 4, seed=1).numpy()
    guided = u + 4.0 * (c - u)
    spread = [x.std(axis=(1, 2, 3), keepdims=True) for x in (c, guided)]
    expected = phi * guided * spread[0] / spread[1] + (1 - phi) * guided
    found = rescaled(lambda x, t: torch.from_numpy(c), lambda x, t: torch.from_numpy(u), 4.0, phi)(
        None, None
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rescaled_at_both_ends_of_phi():
    u, c = numbers(5, 3, 4, 4), numbers(5, 3, 4, 4, seed=1)
    pair = (lambda x, t: c, lambda x, t: u, 6.0)
    assert torch.equal(rescaled(*pair, phi=0.0)(c, None), cfg(*pair)(c, None))
    full = rescaled(*pair, phi=1.0)(c, None)
    torch.testing.assert_close(full.std((1, 2, 3)), c.std((1, 2, 3)))
    assert (cfg(*pair)(c, None).std((1, 2, 3)) > 1.5 * c.std((1, 2, 3))).all()


# ---- clipped -------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_clipped_cuts_the_guess_and_nothing_else(name, limit):
    schedule = SCHEDULES[name]
    u, largest = CLASSES.denoiser(schedule), 0.0
    for time in TIMES:
        x_t, t = points(schedule, time, size=64)
        a = float(schedule.alpha_bar[time])
        x0_hat, cut = [
            (x_t - (1 - a) ** 0.5 * f(x_t, t)) / a**0.5 for f in (u, clipped(u, schedule, limit))
        ]
        torch.testing.assert_close(cut, x0_hat.clamp(-limit, limit), rtol=0, atol=1e-9)
        largest = max(largest, float(x0_hat.abs().max()))
    assert largest > 1.2, "there was something to cut"


# ---- binding, refusals ---------------------------------------------------------------------


def test_bind_fixes_the_condition():
    cond = Cond(vector=numbers(2, 3))
    told = []
    bound = bind(lambda x_t, t, cond: told.append(cond) or x_t + t.view(-1, 1, 1, 1), cond)
    x_t, t = numbers(2, 1, 2, 2), torch.tensor([1, 5])
    assert torch.equal(bound(x_t, t), x_t + t.view(-1, 1, 1, 1))
    assert told[0] is cond


def test_a_condition_says_nothing_by_default():
    assert Cond() == (None, None, None)


@pytest.mark.parametrize("phi", [-0.1, 1.1, float("nan")])
def test_rescaling_by_no_share_is_refused(phi):
    with pytest.raises(InputError, match="phi must lie between 0 and 1"):
        rescaled(None, None, 2.0, phi)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_clipping_to_nothing_is_refused(limit):
    with pytest.raises(InputError, match="limit must be positive"):
        clipped(None, linear(), limit)
