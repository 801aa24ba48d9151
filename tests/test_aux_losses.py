"""Auxiliary losses: what their gradients are, and that a training is what the record says."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from test_attention import numbers

from mnistlib import ablations, aux_losses, recipes
from mnistlib.aux_losses import (
    AUXILIARY,
    LOSSES,
    Auxiliary,
    Guess,
    both_losses,
    consistency,
    diversity,
    gradient_norm,
    one_step,
    rooted,
    unrooted,
)
from mnistlib.data import Digits, holdout
from mnistlib.guidance import bind
from mnistlib.objective import NoisyBatch, diffusion_loss, to_eps, to_x0
from mnistlib.schedules import cosine
from mnistlib.train import TrainConfig

T = torch.tensor([1, 200, 500, 800, 1000])
SCHEDULE = cosine()
PREDICTS = ("eps", "x0", "v")
QUICK = replace(
    aux_losses.SETTINGS,
    model=recipes.RECIPES["latent"].smoke.model,
    train=TrainConfig(steps=4, warmup=1, ema=0.5),
    batch_size=8,
    judged=12,
    judge_steps=2,
)


def guess_of(out, predicts, x_t=None):
    """Return what an answer implies of made inputs, in float64."""
    x_t = numbers(5, 2, 3, 3, seed=3, dtype=torch.float64) if x_t is None else x_t
    asked = out, x_t, T, SCHEDULE, predicts
    return Guess(x_t, T, to_x0(*asked), to_eps(*asked))


def slope(f, x, seed=7):
    """Return a direction, and how fast f changes along it, by finite differences."""
    way, h = numbers(*x.shape, seed=seed, dtype=x.dtype), 1e-6
    return way, float((f(x + h * way) - f(x - h * way)) / (2 * h))


OUT = numbers(5, 2, 3, 3, seed=4, dtype=torch.float64)


# ---- the losses ----------------------------------------------------------------------------


def test_diversity_is_minus_the_mean_distance():
    x = numbers(6, 2, 3, 3, dtype=torch.float64)
    flat = x.flatten(1).numpy()
    pairs = [np.linalg.norm(flat[i] - flat[j]) for i in range(6) for j in range(i)]
    assert float(diversity(x)) == pytest.approx(-np.mean(pairs))


@pytest.mark.parametrize("rates", [unrooted, one_step])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_gradients_are_those_of_finite_differences(predicts, rates):
    def f(out):
        return consistency(guess_of(out, predicts), SCHEDULE, rates)

    out = OUT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(out), out)
    way, found = slope(f, OUT)
    assert float((gradient * way).sum()) == pytest.approx(found, rel=1e-4)
    assert abs(found) > 1e-5


def test_guesses_are_driven_apart():
    def f(out):
        return diversity(guess_of(out, "v").x0_hat)

    out = OUT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(out), out)
    way, found = slope(f, OUT)
    assert float((gradient * way).sum()) == pytest.approx(found, rel=1e-4)
    assert diversity(2 * OUT) == pytest.approx(2 * float(diversity(OUT))), "it has no lower bound"


@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_right_consistency_is_nothing(predicts):
    """Zero whatever is answered, and flat: x_t went into both guesses."""
    for seed in range(3):
        out = 5 * numbers(5, 2, 3, 3, seed=seed, dtype=torch.float64)
        out.requires_grad_()
        loss = consistency(guess_of(out, predicts), SCHEDULE, rooted)
        (gradient,) = torch.autograd.grad(loss, out)
        assert loss.item() < 1e-20
        assert float(gradient.abs().max()) < 1e-12


def test_the_other_rates_are_what_they_say():
    """The one asks for grey; the other for a balance of image and noise that no x_t has."""
    guess = guess_of(OUT, "v")
    a = SCHEDULE.alpha_bar[T].view(-1, 1, 1, 1)
    grey = ((a.sqrt() - a) * guess.x0_hat).square().mean()
    assert float(consistency(guess, SCHEDULE, unrooted)) == pytest.approx(float(grey), rel=1e-9)
    ratio = (SCHEDULE.alpha_bar[T] / SCHEDULE.alpha_bar[T - 1]).view(-1, 1, 1, 1)
    mixed = (ratio.sqrt() - a.sqrt()) * guess.x0_hat
    mixed = mixed + ((1 - ratio).sqrt() - (1 - a).sqrt()) * guess.eps_hat
    expected = float(mixed.square().mean())
    assert float(consistency(guess, SCHEDULE, one_step)) == pytest.approx(expected, rel=1e-9)


# ---- beside the diffusion loss -------------------------------------------------------------


@cache
def world():
    """Return made digits, a network that is alive, and batches for it."""
    images, labels = tiny.made_digits(60)
    digits = Digits(torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels), "made")
    found = {}
    for name in ("vae", "digit_features"):
        torch.manual_seed(0)
        model = tiny.alive(recipes.RECIPES[name].network(recipes.RECIPES[name].smoke))
        found[name] = recipes.Trained(model, recipes.RECIPES[name].smoke, {"sha256": name})
    found["digit_features"].model.reference_cov.copy_(torch.eye(16))
    network, _, batch_at = recipes.begin("latent", QUICK, digits, found["vae"].model)
    return digits, found, tiny.alive(network), batch_at


@pytest.fixture
def made(monkeypatch):
    """Use that world, 20 of the digits held out."""
    digits, found, *_ = world()
    monkeypatch.setattr(aux_losses, "small_set", lambda: holdout(digits, 20))
    monkeypatch.setattr(recipes, "find", found.__getitem__)
    monkeypatch.setattr(aux_losses, "SETTINGS", QUICK)


def test_both_losses_come_from_one_answer():
    _, _, network, batch_at = world()
    batch, seen = batch_at(0, 0), []
    main, term = both_losses(network, batch, QUICK, lambda *given: seen.append(given) or 3.0)
    told = bind(network, network.of_class(batch.told))
    expected = diffusion_loss(told, NoisyBatch(*batch[:3]), SCHEDULE, "v")
    assert term == 3.0
    assert main.item() == pytest.approx(expected.item())
    ((guess, _),) = seen
    alpha, sigma = SCHEDULE.rates(batch.t, batch.x_0)
    torch.testing.assert_close(guess.x_t, alpha * batch.x_0 + sigma * batch.eps)
    v = told(guess.x_t, batch.t)
    torch.testing.assert_close(guess.x0_hat, alpha * guess.x_t - sigma * v)
    torch.testing.assert_close(guess.eps_hat, sigma * guess.x_t + alpha * v)


def test_only_two_losses_have_no_gradient():
    """Exactly zero for the noisy inputs; up to rounding where x_t cancels out."""
    _, _, network, batch_at = world()
    norms = {}
    for name, loss in LOSSES.items():
        main, term = both_losses(network, batch_at(0, 0), QUICK, loss)
        norms[name] = gradient_norm(term, network)
        size = gradient_norm(main, network)
    assert norms["none"] == norms["diversity of inputs"] == 0
    assert norms["consistency"] < 1e-4 * size
    others = ("diversity of guesses", "consistency, unrooted", "consistency, one step")
    assert all(norms[name] > 1e-3 * size for name in others)


def test_gradient_norm_is_that_of_the_training():
    _, _, network, batch_at = world()
    main, _ = both_losses(network, batch_at(0, 0), QUICK, LOSSES["none"])
    found = gradient_norm(main, network)
    network.zero_grad()
    main.backward()
    each = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    assert found == pytest.approx(float(torch.cat(each).norm()), rel=1e-5)


def test_a_loss_without_gradient_changes_no_bit(made):
    rows = {name: aux_losses.auxiliary_run(each, 0) for name, each in AUXILIARY.items()}
    same = ("weights", "loss", "frechet", "accuracy")
    none, inputs = rows["none"], rows["diversity of inputs"]
    assert [none[key] for key in same] == [inputs[key] for key in same]
    assert none["before"]["auxiliary"] == inputs["after"]["auxiliary"] == 0
    rounded = rows.pop("consistency")  # its rounding errors may or may not reach a weight
    assert rounded["after"]["auxiliary"] < 1e-4 * rounded["after"]["diffusion"]
    digests = [row["weights"] for row in rows.values()]
    assert len(set(digests)) == len(digests) - 1, "each of the others went somewhere else"
    for name, row in rows.items():
        assert (row["added"], row["weight"], row["vae"]) == (*AUXILIARY[name], "vae")
        assert row["before"].keys() == row["after"].keys() == {"diffusion", "auxiliary"}
        assert row["after"]["diffusion"] > 0
        assert {"frechet", "accuracy", "precision", "recall", "loss", "size"} < row.keys()


def test_size_is_that_of_the_guesses():
    """Whoever answers v = 0 guesses alpha_t x_t."""
    digits, found, *_ = world()
    silent = replace(QUICK, batch_size=6)
    network = recipes.RECIPES["latent"].network(silent).eval()
    for p in network.conv_out.parameters():
        torch.nn.init.zeros_(p)
    vae = found["vae"].model
    size = aux_losses._size(recipes.Trained(network, silent, {}, vae), digits)
    batch_at = aux_losses.noisy_batches(silent, digits, vae, 0.1)
    squares = []
    for x_0, t, eps, *_ in (batch_at(0, step) for step in range(10)):
        alpha, sigma = SCHEDULE.rates(t, x_0)
        squares.append((alpha * (alpha * x_0 + sigma * eps)).square())
    assert size == pytest.approx(float(torch.cat(squares).mean().sqrt()), rel=1e-4)


def test_the_weight_counts(made):
    """Ten times as much of a loss leads elsewhere; none of it leads where there is none."""
    kind = "diversity of guesses"
    off = aux_losses.auxiliary_run(Auxiliary(kind, 0.0), 1)
    nothing = aux_losses.auxiliary_run(Auxiliary("none", 0.0), 1)
    assert off["weights"] == nothing["weights"]
    assert nothing["weights"] != aux_losses.auxiliary_run(Auxiliary("none", 0.0), 2)["weights"]


def test_variants_are_what_their_names_say():
    assert {each.added for each in AUXILIARY.values()} == {*LOSSES}
    assert all(name.startswith(each.added) for name, each in AUXILIARY.items())
    ten_times = AUXILIARY["diversity of guesses, ten times"].weight
    assert ten_times == 10 * AUXILIARY["diversity of guesses"].weight
    assert ablations.ABLATIONS["auxiliary_losses"].measure is aux_losses.auxiliary_run
