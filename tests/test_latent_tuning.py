"""Trials for ``latent``: each average and each grid is judged as named, on digits held out."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_latent_trials import untrained
from torch.nn import functional as F

from mnistlib import latent, recipes
from mnistlib.data import generator_for, mnist, to_images
from mnistlib.latent_trials import costs
from mnistlib.latent_tuning import TRIALS, Trial, tuning_run
from mnistlib.metrics import accuracy, feature_statistics, features_of, frechet_to
from mnistlib.schedules import cosine
from mnistlib.train import TrainConfig, fit

AVERAGES, GRIDS, HELD_OUT = (0.1, 0.0, 0.15), ("uniform", "log_snr"), 40


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Use made digits, and networks of the smoke profile in place of those that are shipped."""
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    models = {"vae": untrained("vae"), "digit_features": untrained("digit_features")}
    latent.measure_scale(models["vae"].model, to_images(mnist().images))
    monkeypatch.setattr(recipes, "find", models.__getitem__)
    return models


def trial(weighting="simple"):
    """Return a trial that takes a moment."""
    few = TrainConfig(steps=4, warmup=1, ema=0.5, lr=5e-3)
    settings = replace(
        recipes.settings_of("latent", "smoke"), train=few, batch_size=4, judged=20, judge_steps=3,
        held_out=HELD_OUT, weighting=weighting, snapshots=(),
    )  # fmt: skip
    return Trial(settings, AVERAGES, GRIDS)


def averages_by_hand(settings, vae):
    """Return the same training's networks, each with weights that were averaged.

    After step n the average moves 1 - min(decay, (1 + n) / (10 + n)) of the way.
    """
    digits = mnist()._replace(images=mnist().images[:-HELD_OUT], labels=mnist().labels[:-HELD_OUT])
    network, *job = recipes.begin("latent", settings, digits, vae)
    seen = [{k: v.clone() for k, v in network.state_dict().items()}]
    for step in fit(network, *job, settings.train):
        seen.append({k: v.clone() for k, v in step.model.state_dict().items()})
    found = []
    for decay in AVERAGES:
        mean = seen[0]
        for n, new in enumerate(seen[1:], 1):
            keep = min(decay, (1 + n) / (10 + n))
            mean = {k: keep * mean[k] + (1 - keep) * new[k] for k in mean}
        model = recipes.RECIPES["latent"].network(settings).eval()
        model.load_state_dict(mean)
        found.append(model)
    return found


@torch.no_grad()
def loss_by_hand(model, settings, vae):
    """Return the mean squared error of the velocity over the digits held out; nothing weighs it."""
    x, labels = (
        latent.encode(vae, to_images(mnist().images[-HELD_OUT:])),
        mnist().labels[-HELD_OUT:],
    )
    order, losses = torch.randperm(HELD_OUT, generator=generator_for(0, 0, HELD_OUT)), []
    for step, i in enumerate(order.split(4)):
        generator = generator_for(0, step)
        t = torch.randint(1, 1001, (4,), generator=generator)
        eps = torch.randn(x[i].shape, generator=generator)
        told = torch.where(torch.rand(4, generator=generator) < 0.1, 10, labels[i])
        a = cosine().alpha_bar[t].view(-1, 1, 1, 1)
        alpha, sigma = a.sqrt().float(), (1 - a).sqrt().float()
        v = alpha * eps - sigma * x[i]
        losses.append(F.mse_loss(model(alpha * x[i] + sigma * eps, t, model.of_class(told)), v))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
def test_averages_and_grids_are_judged_as_named(made, weighting):
    """Losses, distances and accuracies against the same training, averaged by hand."""
    vae, eye = made["vae"].model, made["digit_features"].model
    found = tuning_run(trial(weighting), 7)
    settings = replace(trial(weighting).settings, train=replace(trial().settings.train, seed=7))
    models = averages_by_hand(settings, vae)
    named = [(row["ema"], row["grid"]) for row in found["judged"]]
    assert named == [(0.1, "uniform"), (0.1, "log_snr"), (0.0, "uniform"), (0.15, "uniform")]
    unseen = to_images(mnist().images[-HELD_OUT:])
    reference = feature_statistics(features_of(eye, unseen))
    for row in found["judged"]:
        model = models[AVERAGES.index(row["ema"])]
        assert row["loss"] == pytest.approx(loss_by_hand(model, settings, vae), rel=1e-4)
        trained = recipes.Trained(model, settings, {}, vae)
        images = recipes.sample_in_batches(trained, 20, 3, seed=99, eta=1.0, grid=row["grid"])
        assert row["frechet"] == pytest.approx(frechet_to(reference, images, eye), rel=1e-2)
        right = accuracy(eye, images, torch.arange(20) % 10)
        assert row["accuracy"] == pytest.approx(right, abs=1 / 20)
    rows = found["judged"]
    assert len({row["loss"] for row in rows}) == 3, "three averages, and the grid changes no loss"
    assert rows[0]["loss"] == rows[1]["loss"]
    assert len({row["frechet"] for row in rows}) == 4
    assert (found["steps"], found["samples"]) == (4, 20)
    assert found["parameters"] == sum(p.numel() for p in models[0].parameters())


def test_a_trial_is_a_function_of_its_seed(made):
    one = Trial(trial().settings)
    first, again, other = (tuning_run(one, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["judged"] != other["judged"]


def test_trials_differ_in_what_their_names_say():
    """All on the same 55,000 digits, and the wider network with as many multiply-adds."""
    recipe, weighted, wide = (TRIALS[name] for name in TRIALS)
    assert [*TRIALS] == ["the recipe", "weighting min_snr", "widths 96 and 192"]
    assert replace(weighted.settings, weighting="simple") == recipe.settings
    same = replace(wide.settings, model=recipe.settings.model, train=recipe.settings.train)
    assert same == recipe.settings
    assert recipe.settings.model == recipes.RECIPES["latent"].full.model
    assert recipe.settings.held_out == 5000
    vae, work = untrained("vae").model, []
    for each in (recipe, wide):
        network = recipes.RECIPES["latent"].network(each.settings)
        per_step = costs(recipes.Trained(network, each.settings, {}, vae)).train
        work.append(per_step * each.settings.train.steps)
    assert work[1] == pytest.approx(work[0], rel=0.02)
    assert recipe.averages[0] == weighted.averages[0] == wide.averages[0]
