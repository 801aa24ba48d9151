"""Trials with latents: work is counted rightly, units change no picture, budgets are kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from oracle import Mixture
from torch import nn

from mnistlib import ablations, latent, latent_trials, recipes
from mnistlib.ablations import decode_sheet
from mnistlib.data import holdout as split
from mnistlib.data import mnist, to_images
from mnistlib.latent_trials import SCALES, SPACES, costs, multiply_adds, rescaled, whole_training
from mnistlib.layers import SelfAttention
from mnistlib.recipes import RECIPES, LatentSettings, Trained
from mnistlib.schedules import cosine
from mnistlib.train import TrainConfig

RECORDS = [ablations.RECORDS / f"{name}.json" for name in ("latent_scale", "pixels_or_latents")]


def untrained(name, vae=None, record=()):
    """Return the smoke network of a recipe with weights that do something."""
    settings, generator = RECIPES[name].smoke, torch.Generator().manual_seed(0)
    network = RECIPES[name].network(settings).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return Trained(network, settings, dict(record), vae)


def small(settings):
    """Return settings of a trial that takes a moment, with the smoke network."""
    smoke = RECIPES["latent" if isinstance(settings, LatentSettings) else "ddpm_class"].smoke
    few = TrainConfig(steps=3, warmup=1, ema=0.9)
    return replace(settings, model=smoke.model, train=few, batch_size=2, judged=12, judge_steps=2)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Use made digits and, in place of shipped weights, networks of the smoke profile."""
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    monkeypatch.setattr(latent_trials, "holdout", lambda digits: split(digits, 40))
    monkeypatch.setattr(latent_trials, "DIGITS", 30)
    monkeypatch.setattr(latent_trials, "_LATENTS", small(latent_trials._LATENTS))
    monkeypatch.setattr(latent_trials, "BUDGET", 300_000_000)
    models = {
        "vae": untrained("vae", record={"sha256": "ab" * 32, "images_seen": 1000}),
        "digit_features": untrained("digit_features"),
    }
    latent.measure_scale(models["vae"].model, to_images(mnist().images))
    eye = models["digit_features"].model
    eye.reference_cov.copy_(torch.eye(len(eye.reference_mean)))
    monkeypatch.setattr(recipes, "find", models.__getitem__)
    return models


# ---- counting ------------------------------------------------------------------------------


def counted_by_hand(network, f):
    """Multiply-adds of a call of f, from the shapes that pass the layers of a network."""
    total = []

    def count(layer, given, answer):
        x = given[0]
        if isinstance(layer, nn.Conv2d):
            out = answer.shape[0] * answer.shape[1] * answer.shape[2] * answer.shape[3]
            total.append(out * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])
        elif isinstance(layer, nn.Linear):
            total.append(x.shape[0] * layer.in_features * layer.out_features)
        elif isinstance(layer, SelfAttention):  # besides its convolutions: queries x keys, twice
            total.append(2 * x.shape[0] * x.shape[1] * (x.shape[2] * x.shape[3]) ** 2)

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.no_grad():
        f()
    for hook in hooks:
        hook.remove()
    return sum(total)


@pytest.mark.parametrize("name", ["ddpm", "latent"])
def test_work_equals_a_count_by_hand(made, name):
    trained = untrained(name, made["vae"].model if name == "latent" else None)
    x, t, found = torch.zeros(1, *trained.shape), torch.ones(1).long(), costs(trained)
    assert found.call == counted_by_hand(trained.model, lambda: trained.model(x, t))
    # Backwards, a layer needs its input's gradient and its weights': as much again, twice.
    assert 2.9 * found.call < found.train <= 3 * found.call
    if name == "ddpm":
        assert found.encode == found.decode == 0
    else:
        vae = trained.vae
        black = torch.zeros(1, 1, 32, 32)
        assert found.encode == counted_by_hand(vae, lambda: vae.encode(black))
        assert found.decode == counted_by_hand(vae, lambda: vae.decode(x))


def test_work_grows_with_the_batch():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert multiply_adds(lambda: conv(torch.zeros(2, 3, 8, 8))) == 2 * 5 * 64 * 3 * 9


def test_counting_leaves_the_model_alone(made):
    trained = untrained("latent", made["vae"].model)
    before = {k: v.clone() for k, v in trained.model.state_dict().items()}
    trained.model.requires_grad_(False)
    costs(trained)
    assert tiny.same(trained.model.state_dict(), before)
    assert all(p.grad is None and not p.requires_grad for p in trained.model.parameters())


def test_whole_training_counts_every_part_of_it(made):
    record = {"images_seen": 40, "started_from": {"images_seen": 2}}
    assert whole_training(untrained("ddpm", record=record)) == 42 * costs(untrained("ddpm")).train
    vae = made["vae"].model
    x, z = torch.zeros(1, 1, 32, 32), torch.zeros(1, *latent.latent_shape(vae))
    once = counted_by_hand(vae, lambda: vae(x, z))
    assert 2.9 * once < whole_training(made["vae"]) / 1000 <= 3 * once


# ---- the scale -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALES)
def test_units_change_the_latents_and_no_picture(made, name):
    vae, images = made["vae"].model, to_images(mnist().images)
    scale = vae.scale.clone()
    other = rescaled(vae, SCALES[name], images)
    z = latent.encode(other, images)
    back = latent.decode(vae, latent.encode(vae, images))
    torch.testing.assert_close(latent.decode(other, z), back, rtol=1e-4, atol=1e-4)
    assert torch.equal(vae.scale, scale), "the original is as it was"


def test_units_are_what_their_names_say(made):
    vae, images = made["vae"].model, to_images(mnist().images)
    z = {n: latent.encode(rescaled(vae, s, images), images).double() for n, s in SCALES.items()}
    with torch.no_grad():
        torch.testing.assert_close(z["left out"].float(), vae.encode(images).mean)
    width = {name: found.var((0, 2, 3)) for name, found in z.items()}
    ones = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(width["each channel its own"], ones, rtol=1e-3, atol=0)
    for name, factor in [
        ("measured", 1),
        ("ten times too narrow", 0.1),
        ("five times too wide", 5),
    ]:
        assert width[name].mean().sqrt() == pytest.approx(factor, rel=1e-2)


@pytest.mark.parametrize("factor", [0.1, 0.5, 5.0])
def test_other_units_are_another_time(factor):
    """Exact noise of data times a factor: that of the data at a signal-to-noise ratio f^2 higher.

    Both sides are mixtures in float64, in which the noise is known.
    """
    rng = np.random.default_rng(0)
    covs = np.stack([np.diag(rng.uniform(0.1, 1, 3)) for _ in range(4)])
    world = Mixture(np.full(4, 0.25), rng.standard_normal((4, 3)), covs)
    wide = Mixture(world.weights, factor * world.means, factor**2 * world.covs)
    for a in cosine().alpha_bar[[1, 100, 500, 900]].tolist():
        snr = factor**2 * a / (1 - a)
        b = snr / (1 + snr)
        x = np.sqrt(a) * wide.draw(20, rng) + np.sqrt(1 - a) * rng.standard_normal((20, 3))
        same = np.sqrt((1 - b) / (1 - a)) * x
        np.testing.assert_allclose(wide.eps_given(x, a), world.eps_given(same, b), atol=1e-11)


def test_scale_run_measures_loss_and_samples(made):
    unit, wide = SCALES["measured"], SCALES["five times too wide"]
    first, again, other = (latent_trials.scale_run(s, 0) for s in (unit, unit, wide))
    assert first == again
    assert first["vae"] == "ab" * 32
    assert first["samples"] == 12
    assert other["loss"] > 2 * first["loss"], "wide latents make a large velocity"
    assert 0 <= first["accuracy"] <= 1
    assert first["frechet"] > 0
    assert decode_sheet(json.loads(json.dumps(first))).shape == (1, 34, 331)
    assert latent_trials.scale_run(unit, 1) != first


# ---- pixels or latents ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_space_run_spends_its_budget(made, name):
    settings = small(SPACES[name])
    found = latent_trials.space_run(settings, 0)
    vae = made["vae"].model if name != "pixels" else None
    cost = costs(Trained(RECIPES["latent"].network(settings), settings, {}, vae))
    assert found["images_seen"] == 2 * found["steps"]
    encoding = 30 * cost.encode
    assert found["multiply_adds"] == encoding + found["images_seen"] * cost.train
    left = latent_trials.BUDGET - found["multiply_adds"]
    assert 0 <= left < 2 * cost.train
    assert found["multiply_adds_per_sample"] == 2 * cost.call + cost.decode
    assert found["vae_multiply_adds"] == whole_training(made["vae"])
    assert (cost.encode > 0) == (cost.decode > 0) == (name != "pixels")


def test_trials_differ_in_what_their_names_say():
    assert len(set(SCALES.values())) == len(SCALES)
    alike = {(s.train, s.batch_size, s.judged, s.judge_steps, s.schedule) for s in SPACES.values()}
    assert len(alike) == 1
    assert {name for name, s in SPACES.items() if not isinstance(s, LatentSettings)} == {"pixels"}


def test_digits_of_a_trial_are_not_held_out(made):
    digits = latent_trials._digits()
    assert torch.equal(digits.images, mnist().images[:30])


# ---- the stored records --------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in RECORDS if p.is_file()], ids=lambda p: p.stem)
def test_records_were_made_with_the_shipped_autoencoder(path):
    shipped = recipes.find("vae").record["sha256"]
    rows = json.loads(path.read_text())["rows"]
    assert {r["vae"] for r in rows} == {shipped}, f"remove {path.name} and make it again"
    if path.stem == "pixels_or_latents":
        spent = [r["multiply_adds"] for r in rows]
        assert max(spent) <= latent_trials.BUDGET
        assert min(spent) > 0.99 * latent_trials.BUDGET
