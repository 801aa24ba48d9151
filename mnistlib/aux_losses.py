"""Auxiliary losses that circulate, and what they do: two of them do nothing at all.

Each is added to the diffusion loss of a small class-conditional network of latents, trained for a
minute on the 5,000 embedded digits, the last 500 held out. Legend: B images of a batch.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnistlib import recipes
from mnistlib.configs import LatentSettings
from mnistlib.data import Digits, mnist, to_images
from mnistlib.guidance import bind
from mnistlib.guidance_trials import BRIEF_LATENT, small_set
from mnistlib.jobs import NoisyLabelledBatch, fixed_batches, held_out_loss, noisy_batches
from mnistlib.metrics import accuracy, features_of, frechet_to, precision_recall
from mnistlib.objective import NoisyBatch, add_noise, diffusion_loss, to_eps, to_x0
from mnistlib.schedules import NoiseSchedule, make_schedule
from mnistlib.train import fit
from mnistlib.trained import Trained, balanced_labels, sample_in_batches

__all__ = [
    "AUXILIARY",
    "LOSSES",
    "Auxiliary",
    "Guess",
    "auxiliary_run",
    "both_losses",
    "consistency",
    "diversity",
    "gradient_norm",
    "one_step",
    "rooted",
    "unrooted",
]


class Guess(NamedTuple):
    """What a network was shown, and what its answer implies: (B, C, H, W), but for t (B,)."""

    x_t: Tensor
    t: Tensor
    x0_hat: Tensor
    eps_hat: Tensor


Rates = Callable[[Tensor, NoiseSchedule], tuple[Tensor, Tensor]]
"""(t (B,), schedule) -> how much image and how much noise x_t is said to hold, (B, 1, 1, 1)."""


# ---- the losses ----------------------------------------------------------------------------


def diversity(x: Tensor) -> Tensor:
    """Minus the mean distance between two of the tensors (B, ...) of a batch, a scalar.

    Of the noisy inputs x_t, which do not depend on the weights, its gradient is exactly zero. Of
    the guesses it has one: it drives them apart, away from the mean that the squared error asks
    for, and has no lower bound.
    """
    return -torch.pdist(x.flatten(1)).mean()


def consistency(guess: Guess, schedule: NoiseSchedule, rates: Rates) -> Tensor:
    """Mean square of ``a x0_hat + s eps_hat - x_t``, a scalar; ``rates`` gives a and s.

    With the right ones, ``rooted``, it is zero whatever the network answers, because x_t went into
    both guesses: for a network of v, ``alpha (alpha x_t - sigma v) + sigma (sigma x_t + alpha v)``
    is x_t. With others it is ``((a - alpha) x0_hat + (s - sigma) eps_hat)^2``.
    """
    a, s = (rate.to(guess.x_t) for rate in rates(guess.t, schedule))
    return (a * guess.x0_hat + s * guess.eps_hat - guess.x_t).square().mean()


def rooted(t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """alpha_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t), which are right."""
    return schedule.rates(t, torch.empty(1, 1, 1, 1, dtype=torch.float64))


def unrooted(t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """alpha_bar_t where its root belongs: the loss becomes (alpha - alpha_bar)^2 x0_hat^2.

    It asks for grey pictures.
    """
    alpha, sigma = rooted(t, schedule)
    return alpha.square(), sigma


def one_step(t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The rates of a single step, sqrt(1 - beta_t) and sqrt(beta_t).

    Ho et al. 2020 write alpha_t for 1 - beta_t, and it is easily taken for alpha_bar_t.
    """
    beta = schedule.beta[t - 1].view(-1, 1, 1, 1)
    return (1 - beta).sqrt(), beta.sqrt()


Loss = Callable[[Guess, NoiseSchedule], Tensor]
LOSSES: dict[str, Loss] = {
    "none": lambda guess, schedule: torch.zeros(()),
    "diversity of inputs": lambda guess, schedule: diversity(guess.x_t),
    "diversity of guesses": lambda guess, schedule: diversity(guess.x0_hat),
    "consistency": lambda guess, schedule: consistency(guess, schedule, rooted),
    "consistency, unrooted": lambda guess, schedule: consistency(guess, schedule, unrooted),
    "consistency, one step": lambda guess, schedule: consistency(guess, schedule, one_step),
}


# ---- the trial -----------------------------------------------------------------------------

SETTINGS = replace(BRIEF_LATENT, judged=300, judge_steps=12)
GRADIENTS = "diffusion", "auxiliary"


class Auxiliary(NamedTuple):
    """An auxiliary loss, a key of ``LOSSES``, and how much it counts beside the diffusion loss."""

    added: str
    weight: float


AUXILIARY = {
    "none": Auxiliary("none", 0.0),
    "diversity of inputs": Auxiliary("diversity of inputs", 0.1),
    "diversity of guesses": Auxiliary("diversity of guesses", 0.01),
    "diversity of guesses, ten times": Auxiliary("diversity of guesses", 0.1),
    "consistency": Auxiliary("consistency", 1.0),
    "consistency, unrooted": Auxiliary("consistency, unrooted", 1.0),
    "consistency, one step": Auxiliary("consistency, one step", 1.0),
}


def both_losses(
    model: nn.Module, batch: NoisyLabelledBatch, settings: LatentSettings, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The diffusion loss and the auxiliary one, from one answer of a network of classes."""
    schedule = make_schedule(settings.schedule, settings.T)
    x_t = add_noise(batch.x_0, batch.eps, batch.t, schedule)
    out = bind(model, model.of_class(batch.told))(x_t, batch.t).float()
    main = diffusion_loss(lambda *_: out, NoisyBatch(*batch[:3]), schedule, settings.predicts)
    asked = out, x_t, batch.t, schedule, settings.predicts
    return main, loss(Guess(x_t, batch.t, to_x0(*asked), to_eps(*asked)), schedule)


def gradient_norm(loss: Tensor, model: nn.Module) -> float:
    """How long the gradient with respect to all weights is; 0 where the loss depends on none."""
    if not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True, allow_unused=True)
    return float(torch.stack([g.norm() for g in found if g is not None]).norm())


def auxiliary_run(auxiliary: Auxiliary, seed: int) -> dict[str, Any]:
    """Train with both losses; measure gradients before and after, and the network on digits unseen.

    ``weights`` is a digest of the averaged weights: equal ones are equal bit for bit. ``size`` is
    the root mean square of its guesses of clean latents; real latents have 1.
    """
    settings = replace(SETTINGS, train=replace(SETTINGS.train, seed=seed))
    shipped, (digits, unseen) = recipes.find("vae"), small_set()
    network, _, batch_at = recipes.begin("latent", settings, digits, shipped.model)
    term, row = LOSSES[auxiliary.added], auxiliary._asdict()

    def loss(model: nn.Module, batch: NoisyLabelledBatch) -> Tensor:
        main, extra = both_losses(model, batch, settings, term)
        return main + auxiliary.weight * extra

    def gradients(model: nn.Module) -> dict[str, float]:
        parts = both_losses(model, batch_at(seed, settings.train.steps), settings, term)
        return {k: gradient_norm(part, model) for k, part in zip(GRADIENTS, parts, strict=True)}

    row["before"] = gradients(network)
    *_, last = fit(network, loss, batch_at, settings.train)
    row["after"] = gradients(last.model)
    trained = Trained(last.ema, settings, {}, shipped.model)
    row |= {"vae": shipped.record["sha256"], "weights": _digest(last.ema)}
    row |= {"loss": held_out_loss(trained, unseen), "size": _size(trained, unseen)}
    return row | _judged(trained)


@torch.no_grad()
def _size(trained: Trained, unseen: Digits) -> float:
    """How large the guesses are over digits that the training did not see, the noise fixed."""
    s = trained.settings
    batch_at = noisy_batches(s, unseen, trained.vae, s.label_dropout)
    batches = fixed_batches(batch_at, len(unseen.labels), s.batch_size)
    squares = [both_losses(trained.model, batch, s, _square)[1] for batch in batches]
    return float(torch.stack(squares).mean().sqrt())


def _square(guess: Guess, schedule: NoiseSchedule) -> Tensor:
    return guess.x0_hat.square().mean()


def _digest(model: nn.Module) -> str:
    """A name for all numbers of a network."""
    each = (value.numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]


def _judged(trained: Trained) -> dict[str, float]:
    """Samples guided a little, their classes round and round: distance, accuracy, variety."""
    s, eye = trained.settings, recipes.find("digit_features").model
    images = sample_in_batches(trained, s.judged, s.judge_steps, seed=99, scale=1.5)
    known = to_images(mnist(source="small").images[: s.judged])
    shares = precision_recall(features_of(eye, known), features_of(eye, images))
    return {
        "frechet": frechet_to((eye.reference_mean, eye.reference_cov), images, eye),
        "accuracy": accuracy(eye, images, balanced_labels(range(s.judged))),
    } | shares._asdict()
