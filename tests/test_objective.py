"""The objective: noising, the three predictions, the loss and its weights."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import Mixture, any_schedule, gaussian, posterior

from mnistlib.objective import (
    NoisyBatch,
    Predicts,
    Weighting,
    add_noise,
    as_eps,
    diffusion_loss,
    drop_captions,
    drop_labels,
    loss_weight,
    target,
    to_eps,
    to_x0,
)
from mnistlib.schedules import cosine, linear
from mnistlib.types import InputError

PREDICTIONS = get_args(Predicts)
WEIGHTINGS = get_args(Weighting)
TWO_HILLS = Mixture(np.array([0.3, 0.7]), np.array([[-1.2], [0.8]]), np.array([[[0.04]], [[0.09]]]))
BOUND = 6.0  # standard errors; the largest deviation with these seeds is 4.0, most stay below 3


def numbers(*shape, seed=0):
    """Return standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch_of(schedule, size=16, seed=0):
    """Return clean images, noise and times that cover 1..T, both ends included."""
    t = torch.linspace(1, schedule.T, size).long()
    return numbers(size, 1, 2, 2, seed=seed), numbers(size, 1, 2, 2, seed=seed + 1), t


def standard_errors(sample, expected):
    """How many standard errors the mean of a sample (N,) lies from what it should be."""
    return abs(sample.mean() - expected) / (sample.std() / np.sqrt(len(sample)))


# ---- noising -------------------------------------------------------------------------------


@given(any_schedule())
def test_add_noise_is_the_closed_form(schedule):
    x_0, eps, t = batch_of(schedule)
    a = schedule.alpha_bar.numpy()[t.numpy()].reshape(-1, 1, 1, 1)
    expected = np.sqrt(a) * x_0.numpy() + np.sqrt(1 - a) * eps.numpy()
    np.testing.assert_allclose(add_noise(x_0, eps, t, schedule), expected, rtol=0, atol=1e-14)
    assert torch.equal(add_noise(x_0, eps, 0 * t, schedule), x_0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("t", [1, 250, 1000])
def test_add_noise_has_the_announced_moments(t, seed):
    """Over the noise, x_t has mean sqrt(alpha_bar) x_0 and variance 1 - alpha_bar."""
    schedule, n = linear(), 100_000
    a = float(schedule.alpha_bar[t])
    x_0, times = torch.full((n, 1, 1, 1), 0.6, dtype=torch.float64), torch.full((n,), t)
    x_t = add_noise(x_0, numbers(n, 1, 1, 1, seed=seed), times, schedule).flatten().numpy()
    mean = np.sqrt(a) * 0.6
    assert standard_errors(x_t, mean) < BOUND
    assert standard_errors((x_t - mean) ** 2, 1 - a) < BOUND


# ---- three ways to say the same ------------------------------------------------------------


@given(any_schedule(), st.sampled_from(PREDICTIONS))
def test_predictions_are_equivalent(schedule, predicts):
    """From x_t and any one of eps, x0, v the noise and the clean image come back."""
    x_0, eps, t = batch_of(schedule)
    x_t = add_noise(x_0, eps, t, schedule)
    out = target(x_0, eps, t, schedule, predicts)
    smallest = float(schedule.alpha_bar[-1].sqrt().minimum((1 - schedule.alpha_bar[1]).sqrt()))
    tolerance = {
        "rtol": 0,
        "atol": 1e-14 / smallest,
    }  # eps -> x0 divides by alpha, x0 -> eps by sigma
    torch.testing.assert_close(to_eps(out, x_t, t, schedule, predicts), eps, **tolerance)
    torch.testing.assert_close(to_x0(out, x_t, t, schedule, predicts), x_0, **tolerance)
    denoise = as_eps(lambda x, time: out, schedule, predicts)
    torch.testing.assert_close(denoise(x_t, t), eps, **tolerance)


def test_velocity_is_the_turn_of_the_angle():
    """With alpha = cos(angle) and sigma = sin(angle), v is the derivative of x_t by the angle."""
    schedule, h = cosine(), 1e-6
    x_0, eps, t = batch_of(schedule)
    angle = schedule.alpha_bar[t].sqrt().arccos().view(-1, 1, 1, 1)
    after, before = [d.cos() * x_0 + d.sin() * eps for d in (angle + h, angle - h)]
    v = target(x_0, eps, t, schedule, "v")
    torch.testing.assert_close(v, (after - before) / (2 * h), rtol=0, atol=1e-8)


@given(any_schedule(), st.sampled_from(["elbo", "min_snr"]))
def test_weighted_losses_agree(schedule, weighting):
    """A guess has one error: the loss is the same in whichever of the three it is expressed."""
    x_0, eps, t = batch_of(schedule)
    guess = eps + 0.1 * numbers(*eps.shape, seed=9)
    x_t = add_noise(x_0, eps, t, schedule)
    x_0_guess = to_x0(guess, x_t, t, schedule, "eps")
    losses = [
        diffusion_loss(
            lambda x, time, p=p: target(x_0_guess, guess, time, schedule, p).double(),
            NoisyBatch(x_0, t, eps),
            schedule,
            p,
            weighting,
        )
        for p in PREDICTIONS
    ]
    # 1e-4: the loss compares in float32, as in training
    assert [float(loss / losses[0]) for loss in losses] == pytest.approx([1, 1, 1], rel=1e-4)


# ---- what the noise target learns ----------------------------------------------------------


@pytest.mark.parametrize("alpha_bar", [0.98, 0.5, 0.03])
def test_oracle_equals_quadrature(alpha_bar):
    """The oracle's three answers, by summing over all clean images on a fine grid."""
    x_0, dx = np.linspace(-4, 4, 40_001, retstep=True)
    prior = np.exp(TWO_HILLS.log_density(x_0[:, None], 1.0))
    for x in (-1.5, -0.2, 0.9):
        eps = (x - np.sqrt(alpha_bar) * x_0) / np.sqrt(1 - alpha_bar)
        joint = prior * np.exp(-(eps**2) / 2) / np.sqrt(2 * np.pi * (1 - alpha_bar)) * dx
        density = joint.sum()
        point = np.array([[x]])
        assert TWO_HILLS.log_density(point, alpha_bar)[0] == pytest.approx(np.log(density))
        assert TWO_HILLS.x0_given(point, alpha_bar) == pytest.approx((joint @ x_0) / density)
        assert TWO_HILLS.eps_given(point, alpha_bar) == pytest.approx((joint @ eps) / density)


@pytest.mark.parametrize("t", [30, 300, 900])
def test_eps_target_is_the_scaled_score(t):
    """E[eps | x_t] = -sigma_t grad log p(x_t), and it is the best answer to the eps target."""
    schedule, h = linear(), 1e-5
    a = float(schedule.alpha_bar[t])
    x = np.linspace(-2, 2, 41)[:, None]
    slope = (TWO_HILLS.log_density(x + h, a) - TWO_HILLS.log_density(x - h, a)) / (2 * h)
    np.testing.assert_allclose(TWO_HILLS.score(x, a)[:, 0], slope, atol=1e-6)
    np.testing.assert_allclose(TWO_HILLS.eps_given(x, a)[:, 0], -np.sqrt(1 - a) * slope, atol=1e-6)
    for seed in range(5):  # the best answer's error is orthogonal to every function of x_t
        n, rng = 50_000, np.random.default_rng(seed)
        x_0, times = torch.from_numpy(TWO_HILLS.draw(n, rng)), torch.full((n,), t)
        eps = numbers(n, 1, seed=seed)
        x_t = add_noise(x_0, eps, times, schedule).numpy()
        asked = target(x_0, eps, times, schedule, "eps").numpy()
        error = (asked - TWO_HILLS.eps_given(x_t, a))[:, 0]
        for f in (np.ones_like, np.sin, np.square, np.abs):
            assert standard_errors(error * f(x_t[:, 0]), 0) < BOUND


# ---- the loss and its weights --------------------------------------------------------------


def kl(m_1, v_1, m_2, v_2):
    """Kullback-Leibler divergence of N(m_1, v_1) from N(m_2, v_2)."""
    return (v_1 / v_2 + (m_1 - m_2) ** 2 / v_2 - 1 + np.log(v_2 / v_1)) / 2


def surprise(x, m, v):
    """Negative logarithm of the density of N(m, v) at x."""
    return ((x - m) ** 2 / v + np.log(2 * np.pi * v)) / 2


def bound_terms(schedule, x_0, eps, guess):
    """What each term of the variational bound costs more for a guess of eps than for the truth.

    The model's step has variance beta_t. The term of t = 1 is the surprise at x_0 itself.
    """
    a = schedule.alpha_bar.numpy()
    for t in range(1, schedule.T + 1):
        alpha, sigma, beta = np.sqrt(a[t]), np.sqrt(1 - a[t]), 1 - a[t] / a[t - 1]
        x_t = alpha * x_0 + sigma * eps
        mean, variance = posterior(a, t, t - 1, x_0, x_t)
        guessed, _ = posterior(a, t, t - 1, (x_t - sigma * guess) / alpha, x_t)
        if t == 1:
            yield surprise(x_0, guessed, beta) - surprise(x_0, x_0, beta)
        else:
            yield kl(mean, variance, guessed, beta) - kl(mean, variance, mean, beta)


@pytest.mark.parametrize("schedule", [linear(40), cosine(40)], ids=["linear", "cosine"])
def test_elbo_weight_equals_the_kl(schedule):
    x_0, eps, guess = 0.7, -0.4, 1.1
    a = schedule.alpha_bar.numpy()[1:]
    cost = np.array(list(bound_terms(schedule, x_0, eps, guess)))
    scale = np.mean(cost / (guess - eps) ** 2)  # the weights of eps have mean 1
    error_of_x0 = (guess - eps) ** 2 * (1 - a) / a
    error_of_v = (guess - eps) ** 2 / a
    t = torch.arange(1, schedule.T + 1)
    for predicts, error in [("eps", (guess - eps) ** 2), ("x0", error_of_x0), ("v", error_of_v)]:
        weight = loss_weight(t, schedule, predicts, "elbo").numpy()
        np.testing.assert_allclose(weight, cost / error / scale, rtol=1e-9)


def test_simple_weight_is_one_and_min_snr_is_capped():
    schedule, t = cosine(), torch.arange(1, 1001)
    snr = (schedule.alpha_bar[1:] / (1 - schedule.alpha_bar[1:])).numpy()
    capped = np.minimum(snr, 5)
    assert snr[0] > 5 > snr[-1]
    wanted = {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}
    for predicts, weight in wanted.items():
        np.testing.assert_allclose(
            loss_weight(t, schedule, predicts, "min_snr"), weight, rtol=1e-12
        )
        assert torch.equal(loss_weight(t, schedule, predicts, "simple"), t.double() * 0 + 1)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_diffusion_loss_equals_numpy(predicts, weighting):
    """Each image's error is weighted, then averaged; the network sees x_t and t."""
    schedule = cosine()
    x_0, eps, t = batch_of(schedule)

    def network(x, time):
        return torch.sin(x + time.view(-1, 1, 1, 1))

    a = schedule.alpha_bar.numpy()[t.numpy()].reshape(-1, 1, 1, 1)
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    wanted = {"eps": eps.numpy(), "x0": x_0.numpy(), "v": alpha * eps.numpy() - sigma * x_0.numpy()}
    out = np.sin(alpha * x_0.numpy() + sigma * eps.numpy() + t.numpy().reshape(-1, 1, 1, 1))
    error = ((out - wanted[predicts]) ** 2).mean((1, 2, 3))
    expected = np.mean(loss_weight(t, schedule, predicts, weighting).numpy() * error)
    loss = diffusion_loss(network, NoisyBatch(x_0, t, eps), schedule, predicts, weighting)
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_untrained_zero_answer_costs_one():
    """A network that answers zero has the loss 1 on the noise: the height where training starts."""
    gauss = gaussian([0.0], [[1.0]])
    for seed in range(5):
        x_0 = torch.from_numpy(gauss.draw(20_000, np.random.default_rng(seed)))
        t = torch.randint(1, 1001, (20_000,), generator=torch.Generator().manual_seed(seed))
        batch = NoisyBatch(x_0, t, numbers(20_000, 1, seed=seed))
        for predicts in PREDICTIONS:  # each target has variance 1 where the data has
            loss = diffusion_loss(lambda x, t: torch.zeros_like(x), batch, cosine(), predicts)
            assert abs(float(loss) - 1) < BOUND * np.sqrt(2 / 20_000)


# ---- label dropout -------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_labels_are_dropped_at_the_rate(rate):
    labels = torch.arange(20_000) % 10
    before = labels.clone()
    dropped = drop_labels(labels, rate, 10, generator=torch.Generator().manual_seed(0)) == 10
    error = np.sqrt(rate * (1 - rate) / len(labels))
    assert abs(dropped.double().mean() - rate) < BOUND * error
    shares = [dropped[labels == k].double().mean() for k in range(10)]  # no class is spared
    assert max(abs(share - rate) for share in shares) < BOUND * error * np.sqrt(10)
    assert torch.equal(labels, before)


def test_labels_that_stay_are_unchanged():
    labels = torch.arange(1000) % 10
    found = drop_labels(labels, 0.3, 10, generator=torch.Generator().manual_seed(1))
    again = drop_labels(labels, 0.3, 10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, again)
    assert torch.equal(found[found != 10], labels[found != 10])
    assert torch.equal(drop_labels(labels, 0.0, 10), labels)
    assert (drop_labels(labels, 1.0, 10) == 10).all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_captions_are_dropped_at_the_rate(rate):
    captions = [f"digit {i}" for i in range(5000)]
    found = drop_captions(captions, rate, generator=torch.Generator().manual_seed(0))
    assert all(new in (old, "") for new, old in zip(found, captions, strict=True))
    dropped = np.array([new == "" for new in found])
    assert abs(dropped.mean() - rate) < BOUND * np.sqrt(rate * (1 - rate) / len(captions))
    assert found == drop_captions(captions, rate, generator=torch.Generator().manual_seed(0))
    assert found != drop_captions(captions, rate, generator=torch.Generator().manual_seed(1))
    assert (drop_captions(captions, 0.0), set(drop_captions(captions, 1.0))) == (captions, {""})


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_impossible_dropout_is_refused(rate):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        drop_labels(torch.tensor([1]), rate, 10)
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        drop_captions(["a seven"], rate)


def test_unknown_prediction_is_refused():
    schedule = linear(10)
    x_0, eps, t = batch_of(schedule)
    for use in (target, to_eps, to_x0):
        with pytest.raises(InputError, match="'score'; choose eps, x0 or v"):
            use(x_0, eps, t, schedule, "score")
    with pytest.raises(InputError, match="'score'; choose eps, x0 or v"):
        as_eps(lambda x, t: x, schedule, "score")


def test_unknown_weighting_is_refused():
    with pytest.raises(InputError, match="'snr'; choose simple, elbo or min_snr"):
        loss_weight(torch.ones(1, dtype=torch.int64), linear(10), "eps", "snr")


def test_an_answer_of_another_shape_is_refused():
    batch = NoisyBatch(numbers(2, 1, 4, 4), torch.tensor([1, 9]), numbers(2, 1, 4, 4, seed=1))
    with pytest.raises(InputError, match=r"answers \(2, 2, 4, 4\), not \(2, 1, 4, 4\)"):
        diffusion_loss(lambda x, t: x.repeat(1, 2, 1, 1), batch, cosine())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("t", [0, 1001])
def test_losses_are_weighted_at_times_of_the_schedule(weighting, t):
    with pytest.raises(InputError, match=r"times 1\.\.1000"):
        loss_weight(torch.tensor([5, t]), cosine(), "v", weighting)
