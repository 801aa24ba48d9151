"""The trials of the autoencoder: what a row measures, and that variants differ in one thing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch.distributions import Normal, kl_divergence

from mnistlib import ablations, recipes, vae_trials
from mnistlib.data import generator_for, mnist, to_images
from mnistlib.vae import Vae, VaeConfig

SMOKE = recipes.RECIPES["vae"].smoke
TINY = replace(SMOKE, train=replace(SMOKE.train, steps=3), batch_size=4)
N = 12


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Use made digits, the last 40 of them held out, in an empty folder."""
    tiny.stand_among_made_digits(tmp_path, monkeypatch, vae_trials)


@pytest.fixture
def judged(monkeypatch):
    """Let every distance be the number of sets judged so far; return the list of these sets."""
    sets = []
    monkeypatch.setattr(vae_trials, "_distance", lambda images: sets.append(images) or len(sets))
    return sets


@pytest.fixture
def some():
    """Return an autoencoder whose every part does something, images, and noise."""
    vae = Vae(VaeConfig(widths=(8, 8, 16), latent_channels=3)).eval()
    images = 2 * torch.rand(N, 1, 32, 32, generator=generator_for(1)) - 1
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator_for(2, p.numel())))
        vae.encoder.conv_out.weight[1] *= 5  # one channel spreads wider, one lies off the centre
        vae.encoder.conv_out.bias[2] += 2
    return vae, images, torch.randn(N, 3, 8, 8, generator=generator_for(3))


def test_a_run_trains_and_measures(made, judged):
    first, again, other = (vae_trials.vae_run(TINY, seed, n=N) for seed in (0, 0, 1))
    assert [len(images) for images in judged] == [N] * 9
    assert first["frechet"] == 1
    for row in (first, again, other):
        for key in ("frechet", "frechet_noise", "frechet_fitted_noise"):
            del row[key]
    assert first == again
    assert first != other


def test_a_run_judges_digits_that_it_was_not_trained_on(made, judged, monkeypatch):
    """Digits come back as they went in from a stand-in that learns nothing and keeps everything."""
    seen, untrained = [], SimpleNamespace(ema=Vae())
    monkeypatch.setattr(recipes, "begin", lambda name, s, digits: seen.append(digits) or ())
    monkeypatch.setattr(vae_trials, "fit", lambda *begun: iter([untrained]))
    monkeypatch.setattr(vae_trials, "_pictures", lambda vae, z: to_images(kept))
    all_of_them = mnist(source="full").images
    kept = all_of_them[-40 : N - 40]
    row = vae_trials.vae_run(TINY, 0, n=N)
    assert torch.equal(seen[0].images, all_of_them[:-40])
    assert row["squared_error"] == row["squared_error_drawn"] == 0


def test_reconstruction_is_measured_rightly(some, judged):
    """Against NumPy and the divergence of torch.distributions."""
    vae, images, eps = some
    row = vae_trials._reconstruction(vae, images, vae_trials._encoded(vae, images), eps)
    with torch.no_grad():
        p = vae.encode(images)
        draws = p.mean + (p.log_var / 2).exp() * eps
        back, drawn = (vae.decode(z).clamp(-1, 1) for z in (p.mean, draws))
    each = kl_divergence(Normal(p.mean, (p.log_var / 2).exp()), Normal(0.0, 1.0)).numpy()
    mean, noise = p.mean.numpy(), np.exp(p.log_var.numpy() / 2)
    assert row["squared_error"] == pytest.approx(((back - images) ** 2).mean().item(), rel=1e-4)
    assert row["squared_error_drawn"] == pytest.approx(
        ((drawn - images) ** 2).mean().item(), rel=1e-4
    )
    assert row["squared_error"] != pytest.approx(row["squared_error_drawn"], rel=1e-3)
    assert row["kl"] == pytest.approx(each.sum((1, 2, 3)).mean(), rel=1e-4)
    assert row["kl_of_channels"] == pytest.approx(each.sum((2, 3)).mean(0), rel=1e-3)
    assert row["spread"] == pytest.approx(mean.std((0, 2, 3)), rel=1e-3)
    assert row["noise"] == pytest.approx(np.sqrt((noise**2).mean((0, 2, 3))), rel=1e-3)
    torch.testing.assert_close(judged[0], back, rtol=1e-4, atol=1e-4)


def test_noise_is_decoded_as_it_is_and_as_wide_as_the_latents(some, judged):
    vae, images, eps = some
    row = vae_trials._drawn_from_nothing(vae, vae_trials._encoded(vae, images), eps)
    assert row == {"frechet_noise": 1, "frechet_fitted_noise": 2}
    with torch.no_grad():
        mean = vae.encode(images).mean.numpy()
        as_wide = [mean[:, k].mean() + mean[:, k].std() * eps[:, k] for k in range(3)]
        expected = [vae.decode(z).clamp(-1, 1) for z in (eps, torch.stack(as_wide, 1))]
    for found, wanted in zip(judged, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(*expected, atol=0.1)


def test_variants_differ_in_what_their_names_say():
    weights = ablations.ABLATIONS["kl_weight"].variants
    assert [float(name) for name in weights] == [s.kl_weight for s in weights.values()]
    assert len({replace(s, kl_weight=1) for s in weights.values()}) == 1
    channels = ablations.ABLATIONS["latent_channels"].variants
    assert [int(name) for name in channels] == [s.model.latent_channels for s in channels.values()]
    four = channels["4"].model
    assert {replace(s.model, latent_channels=4) for s in channels.values()} == {four}
    assert len({(s.train, s.kl_weight, s.batch_size) for s in channels.values()}) == 1
    shipped = recipes.RECIPES["vae"].full.kl_weight
    assert channels["4"] == weights[f"{shipped:g}"], "a run that both need is made once"


def test_table_shows_the_range_of_the_seeds():
    shared = {"variant": "0.05", "kl": 99.6, "spread": [3.0, 0.0], "noise": [1.0, 0.0]}
    shared |= {"frechet": 0.25, "frechet_noise": 8.0}
    rows = [
        shared | {"squared_error": 0.02, "kl_of_channels": [90, 9.6]},
        shared | {"squared_error": 0.01, "kl_of_channels": [99.5, 0.1], "frechet_noise": 9.5},
        shared | {"variant": "5", "squared_error": 0.5, "kl_of_channels": [0.4, 0.2]},
    ]
    lines = [line.split() for line in vae_trials.table(rows).splitlines()]
    assert lines == [
        ["error", "nats", "signal", "channels", "back", "noise"],
        ["0.05", "0.0100-0.0200", "100", "90%", "1-2", "0.25", "8.0-9.5"],
        ["5", "0.5000", "100", "90%", "0", "0.25", "8.0"],
    ]
    assert len({len(line) for line in vae_trials.table(rows).splitlines()}) == 1
