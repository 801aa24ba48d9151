"""What latents need and what they save: small trainings for the chapter on latent diffusion.

Work is counted in multiply-adds of convolutions and matrix products; nothing else in these
networks comes near. Legend: N images.
"""

import base64
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mnistlib import latent, recipes
from mnistlib.data import Digits, holdout, mnist, to_images
from mnistlib.metrics import accuracy, frechet_to
from mnistlib.plots import png, sheet
from mnistlib.recipes import DiffusionSettings, LatentSettings, Trained, balanced_labels
from mnistlib.train import TrainConfig, fit
from mnistlib.unet import UNetConfig
from mnistlib.vae import Vae

__all__ = [
    "BUDGET",
    "SCALES",
    "SPACES",
    "Costs",
    "Scale",
    "costs",
    "multiply_adds",
    "rescaled",
    "scale_run",
    "space_run",
    "whole_training",
]

BUDGET = 1_100_000_000_000  # multiply-adds of a training: about 250 steps of the network of pixels
DIGITS = 6_000  # what each of the small trainings sees, once or more often

_TRAIN = TrainConfig(steps=300, lr=3e-3, warmup=30, ema=0.98)
_LATENTS = LatentSettings(
    model=UNetConfig(in_channels=4, out_channels=4, widths=(32, 64), attention=(1,), classes=10),
    train=_TRAIN,
    batch_size=32,
    judged=400,
    judge_steps=15,
)
_WIDER = replace(_LATENTS, model=replace(_LATENTS.model, widths=(64, 128)))
_PIXELS = DiffusionSettings(
    model=UNetConfig(widths=(16, 32, 64), attention=(2,), classes=10),
    train=_TRAIN,
    batch_size=32,
    judged=400,
    judge_steps=15,
)


class Scale(NamedTuple):
    """The units that latents are brought to.

    Attributes:
        of: "one" measured scale for all channels, one for each of the "channels", or "none".
        factor: the latents become so many times as wide as that.
    """

    of: Literal["one", "channels", "none"]
    factor: float = 1.0


SCALES: dict[str, Scale] = {
    "measured": Scale("one"),
    "each channel its own": Scale("channels"),
    "left out": Scale("none"),
    "ten times too narrow": Scale("one", 0.1),
    "five times too wide": Scale("one", 5.0),
}

SPACES: dict[str, DiffusionSettings] = {
    "pixels": _PIXELS,
    "latents, wider": _WIDER,
    "latents, longer": _LATENTS,
}
"""What is diffused; the number of steps follows from ``BUDGET``."""


# ---- counting ------------------------------------------------------------------------------


class Costs(NamedTuple):
    """Multiply-adds for one picture.

    Attributes:
        call: one evaluation of the diffusion network.
        train: its share of one training step, forwards and backwards.
        encode, decode: by the autoencoder; 0 where there is none.
    """

    call: int
    train: int
    encode: int = 0
    decode: int = 0


def multiply_adds(f: Callable[[], Any]) -> int:
    """How many multiply-adds of convolutions and matrix products a call of ``f`` makes."""
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops() // 2  # torch counts the two operations apart


def costs(trained: Trained) -> Costs:
    """Count the work of a diffusion model, trained or not, and of its autoencoder.

    The model is left as it was; it must be on the CPU.
    """
    network, vae = copy.deepcopy(trained.model).requires_grad_(), trained.vae
    x, t = torch.zeros(1, *trained.shape), torch.ones(1, dtype=torch.int64)
    call = multiply_adds(lambda: network(x, t))
    train = multiply_adds(lambda: network(x, t).sum().backward())
    if vae is None:
        return Costs(call, train)
    encode = multiply_adds(lambda: latent.encode(vae, _black(vae)))
    return Costs(call, train, encode, multiply_adds(lambda: latent.decode(vae, x)))


def whole_training(trained: Trained) -> int:
    """Multiply-adds of all that trained a diffusion model or an autoencoder, by its record.

    The encoding of the digits, once, is left out.
    """
    images_seen = trained.spent("images_seen")
    if not isinstance(trained.model, Vae):
        return images_seen * costs(trained).train
    vae = copy.deepcopy(trained.model).requires_grad_()
    x, eps = _black(vae), torch.zeros(1, *latent.latent_shape(vae))
    return images_seen * multiply_adds(lambda: vae(x, eps)[0].sum().backward())


def _black(vae: Vae) -> Tensor:
    return torch.full((1, vae.config.in_channels, 32, 32), -1.0)


# ---- the scale -----------------------------------------------------------------------------


def rescaled(vae: Vae, scale: Scale, images: Tensor) -> Vae:
    """A copy of an autoencoder whose latents come in other units; its pictures stay the same.

    Args:
        images: (N, C, H, W), on which the channels are measured.
    """
    vae = copy.deepcopy(vae)
    if scale.of == "channels":
        vae.scale.div_(latent.encode(vae, images).std((0, 2, 3)).view(-1, 1, 1))
    if scale.of == "none":
        vae.shift.zero_()
        vae.scale.fill_(1)
    vae.scale.mul_(scale.factor)
    return vae


def scale_run(scale: Scale, seed: int) -> dict[str, Any]:
    """Train briefly on latents in other units; measure what is drawn."""
    shipped, digits = recipes.find("vae"), _digits()
    vae = rescaled(shipped.model, scale, to_images(digits.images[:1000]))
    trained, loss = _train(_LATENTS, seed, digits, vae)
    return {"vae": shipped.record["sha256"], "loss": loss} | _judged(trained)


# ---- pixels or latents ---------------------------------------------------------------------


def space_run(settings: DiffusionSettings, seed: int) -> dict[str, Any]:
    """Train for ``BUDGET`` multiply-adds, encoding included; measure what is drawn.

    The autoencoder's own training, ``vae_multiply_adds``, is not in the budget.
    """
    shipped, digits = recipes.find("vae"), _digits()
    vae = shipped.model if isinstance(settings, LatentSettings) else None
    untrained = Trained(recipes.RECIPES["latent"].network(settings), settings, {}, vae)
    cost = costs(untrained)
    encoding, a_step = len(digits.labels) * cost.encode, settings.batch_size * cost.train
    steps = (BUDGET - encoding) // a_step
    settings = replace(settings, train=replace(settings.train, steps=steps))
    trained, loss = _train(settings, seed, digits, vae)
    return {
        "vae": shipped.record["sha256"],
        "vae_multiply_adds": whole_training(shipped),
        "parameters": sum(p.numel() for p in untrained.model.parameters()),
        "steps": steps,
        "images_seen": steps * settings.batch_size,
        "multiply_adds": encoding + steps * a_step,
        "multiply_adds_per_sample": settings.judge_steps * cost.call + cost.decode,
        "loss": loss,
    } | _judged(trained)


# ---- what both share -----------------------------------------------------------------------


def _digits() -> Digits:
    """The first of the training digits, none of them held out."""
    images, labels, source = holdout(mnist(source="full"))[0]
    return Digits(images[:DIGITS], labels[:DIGITS], source)


def _train(
    settings: DiffusionSettings, seed: int, digits: Digits, vae: Vae | None
) -> tuple[Trained, float]:
    """A small model with averaged weights, and the mean loss of the last 50 steps."""
    settings, losses = replace(settings, train=replace(settings.train, seed=seed)), []
    for step in fit(*recipes.begin("latent", settings, digits, vae), settings.train):
        losses.append(step.loss)
    late = losses[-50:]
    return Trained(step.ema, settings, {}, vae), sum(late) / len(late)


def _judged(trained: Trained) -> dict[str, Any]:
    """Distance and accuracy of samples whose classes go round, and one of each class as a PNG."""
    s, eye = trained.settings, recipes.find("digit_features").model
    samples = recipes.sample_in_batches(trained, s.judged, s.judge_steps, seed=99)
    return {
        "samples": s.judged,
        "frechet": frechet_to((eye.reference_mean, eye.reference_cov), samples, eye),
        "accuracy": accuracy(eye, samples, balanced_labels(range(s.judged))),
        "sheet": base64.b64encode(png(sheet(samples[:10]))).decode(),
    }
