"""The autoencoder: shapes, the KL divergence, the loss, the latent scale."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import numbers
from torch.distributions import Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from mnistlib import latent
from mnistlib.layers import SelfAttention
from mnistlib.recipes import RECIPES
from mnistlib.types import InputError
from mnistlib.vae import Posterior, Vae, VaeConfig, vae_loss

SMALL = VaeConfig(widths=(8, 8, 16))
BOUND = 6.0  # standard errors


def alive(config, seed=0):
    """Return an autoencoder whose every part does something, in eval mode."""
    vae, generator = Vae(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return vae.eval()


def some_posterior():
    return Posterior(1.5 * numbers(5, 3, 4, 4), numbers(5, 3, 4, 4, seed=1) - 1)


# ---- shapes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "size", "shape"),
    [
        (VaeConfig(), 32, (4, 8, 8)),
        (VaeConfig(in_channels=3, latent_channels=2), 32, (2, 8, 8)),
        (replace(SMALL, widths=(8, 8, 16, 16)), 32, (4, 4, 4)),
        (replace(SMALL, latent_channels=1), 28, (1, 7, 7)),
        (replace(SMALL, latent_channels=8, in_channels=3, heads=2), 24, (8, 6, 6)),
    ],
)
def test_shapes_there_and_back(config, size, shape):
    vae, x = alive(config), numbers(2, config.in_channels, size, size)
    posterior = vae.encode(x)
    assert posterior.mean.shape == posterior.log_var.shape == (2, *shape)
    assert latent.latent_shape(vae, size) == shape
    with pytest.raises(InputError, match="sides must be divisible by"):
        latent.latent_shape(vae, size + 1)
    reconstruction, _ = vae(x, numbers(2, *shape))
    assert reconstruction.shape == x.shape
    assert reconstruction.std() > 0.01
    assert sum(isinstance(part, SelfAttention) for part in vae.modules()) == 2


def test_every_pixel_reaches_the_latent_and_every_latent_the_picture():
    vae = alive(SMALL)
    x, z = numbers(1, 1, 16, 16).requires_grad_(), numbers(1, 4, 4, 4).requires_grad_()
    vae.encode(x).mean.square().sum().backward()
    vae.decode(z).square().sum().backward()
    assert (x.grad != 0).all()
    assert (z.grad != 0).all()


def test_every_parameter_learns():
    vae = alive(SMALL).train()
    vae_loss(vae, numbers(2, 1, 16, 16), numbers(2, 4, 4, 4), 0.1).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_full_autoencoder_is_small():
    vae = Vae(RECIPES["vae"].full.model).eval()
    assert 0.3e6 <= sum(p.numel() for p in vae.parameters()) <= 0.5e6
    for way, given in [(vae.encode, (1, 1, 32, 32)), (vae.decode, (1, 4, 8, 8))]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            way(torch.zeros(given))
        assert 0.01e9 < counter.get_total_flops() <= 0.05e9


# ---- the KL divergence and the loss --------------------------------------------------------


def test_kl_equals_torch_distributions():
    p = some_posterior()
    expected = kl_divergence(Normal(p.mean, (p.log_var / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(p.kl(), expected.sum((1, 2, 3)))


def test_kl_equals_monte_carlo():
    """The mean of log q(z) - log p(z) over draws of q, in NumPy."""
    p = some_posterior()
    z = torch.stack([p.draw(numbers(5, 3, 4, 4, seed=seed)) for seed in range(2, 4002)]).numpy()
    mean, var = p.mean.numpy(), p.log_var.exp().numpy()
    log_q = -((z - mean) ** 2) / (2 * var) - np.log(2 * np.pi * var) / 2
    log_p = -(z**2) / 2 - math.log(2 * math.pi) / 2
    draws = (log_q - log_p).sum((2, 3, 4))  # (draws, B)
    error = draws.std(0) / np.sqrt(len(draws))
    assert (abs(draws.mean(0) - p.kl().numpy()) < BOUND * error).all()


def test_draws_have_the_mean_and_the_variance():
    p = some_posterior()
    z = torch.stack([p.draw(numbers(5, 3, 4, 4, seed=seed)) for seed in range(3000)])
    var, n = p.log_var.exp(), len(z)
    assert ((z.mean(0) - p.mean).abs() < BOUND * (var / n).sqrt()).all()
    assert ((z.var(0) / var - 1).abs() < BOUND * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("weight", [0.0, 0.05, 3.0])
def test_loss_equals_the_formula(weight):
    vae, x, eps = alive(SMALL), numbers(3, 1, 16, 16), numbers(3, 4, 4, 4, seed=1)
    with torch.no_grad():
        p = vae.encode(x)
        back = vae.decode(p.mean + p.log_var.exp().sqrt() * eps)
        found = vae_loss(vae, x, eps, weight).item()
    error = (back - x).numpy().reshape(3, -1)
    expected = ((error**2).sum(1) + weight * p.kl().numpy()).mean() / 256
    assert found == pytest.approx(expected, rel=1e-5)


def test_wild_variances_stay_finite():
    vae, x = alive(SMALL), numbers(2, 1, 16, 16)
    with torch.no_grad():
        vae.encoder.conv_out.bias[4:] = 1e6
    assert torch.isfinite(vae_loss(vae, x, numbers(2, 4, 4, 4), 1.0))


# ---- latents -------------------------------------------------------------------------------


def test_measured_latents_have_unit_scale():
    vae, images = alive(SMALL), numbers(40, 1, 16, 16)
    latent.measure_scale(vae, images)
    z = latent.encode(vae, images, batch_size=7).double()
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
    assert z.square().mean().item() == pytest.approx(1, rel=1e-3)
    with torch.no_grad():  # against NumPy: a shift for each channel, one scale for all
        mean = vae.encode(images).mean.numpy()
    shift = mean.mean((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(vae.shift, shift[0], atol=1e-6)
    scale = np.full((4, 1, 1), 1 / np.sqrt(np.mean((mean - shift) ** 2)))
    np.testing.assert_allclose(vae.scale, scale, rtol=1e-3)


def test_decoding_undoes_the_scale():
    vae, images = alive(SMALL), numbers(6, 1, 16, 16)
    latent.measure_scale(vae, images)
    with torch.no_grad():
        expected = vae.decode(vae.encode(images).mean).clamp(-1, 1)
    found = latent.decode(vae, latent.encode(vae, images), batch_size=4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad


def test_decoded_pictures_are_cut_to_their_range():
    pictures = latent.decode(alive(SMALL), 100 * numbers(4, 4, 4, 4))
    assert pictures.abs().max() == 1


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"widths": (8, 16)}, "needs 3 or 4 widths, got 2"),
        ({"in_channels": 2}, "pictures have 1 or 3 channels"),
        ({"latent_channels": 0}, r"must lie in 1\.\.8, got 0"),
        ({"latent_channels": 9}, r"must lie in 1\.\.8, got 9"),
        ({"heads": 3}, "16 channels do not divide into 3 heads"),
    ],
)
def test_impossible_settings_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        Vae(replace(SMALL, **changes))


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 18, 16), (1, 1, 16, 18), (1, 16, 16)])
def test_pictures_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match=r"reads \(B, 1, H, W\) with sides divisible by 4, got"):
        Vae(SMALL).encode(torch.zeros(shape))


def test_latents_of_other_channels_are_refused():
    with pytest.raises(InputError, match=r"reads latents \(B, 4, h, w\), got \(1, 2, 4, 4\)"):
        Vae(SMALL).decode(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("log_var", [0.01, -0.05])
def test_kl_does_not_cancel_under_autocast(log_var):
    """Near the prior nearly all of var - 1 - log var cancels; eight bits would leave noise."""
    vae = Vae(SMALL)
    with torch.no_grad():
        for p in vae.encoder.conv_out.parameters():
            p.zero_()
        vae.encoder.conv_out.bias[SMALL.latent_channels :] = log_var
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(numbers(2, 1, 8, 8))
        found = posterior.kl()
    seen = float(posterior.log_var[0, 0, 0, 0])  # bfloat16 rounds it first
    exact = 0.5 * posterior.mean[0].numel() * (math.exp(seen) - 1 - seen)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((2,), exact), rtol=1e-3, atol=0)
