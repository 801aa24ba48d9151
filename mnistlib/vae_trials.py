"""What an autoencoder's choices cost: the weight of its KL divergence, the channels of its latent.

Legend: N digits, Z latent channels, h and w the sides of the latent.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mnistlib import recipes
from mnistlib.data import generator_for, holdout, mnist, to_images
from mnistlib.metrics import frechet_to
from mnistlib.recipes import VaeSettings
from mnistlib.train import TrainConfig, fit
from mnistlib.vae import Posterior, Vae, VaeConfig

__all__ = ["CHANNELS", "KL_WEIGHTS", "table", "vae_run"]

_BASE = VaeSettings(
    model=VaeConfig(widths=(8, 16, 32)),
    train=TrainConfig(steps=200, lr=4e-3, warmup=20, ema=0.98),
    batch_size=64,
)

KL_WEIGHTS = {f"{w:g}": replace(_BASE, kl_weight=w) for w in (0.0, 0.005, 0.05, 0.5, 5.0)}
CHANNELS = {
    f"{z}": replace(_BASE, model=replace(_BASE.model, latent_channels=z)) for z in (1, 2, 4)
}


def vae_run(settings: VaeSettings, seed: int, n: int = 2000) -> dict[str, Any]:
    """Train a small autoencoder briefly on 55,000 digits and judge it on n of the other 5,000.

    Every Frechet distance is that of n images to the 60,000 training digits.
    """
    settings = replace(settings, train=replace(settings.train, seed=seed))
    digits, unseen = holdout(mnist(source="full"))
    *_, last = fit(*recipes.begin("vae", settings, digits), settings.train)
    vae = last.ema
    images = to_images(unseen.images[:n])
    posterior = _encoded(vae, images)
    eps = torch.randn(posterior.mean.shape, generator=generator_for(77))
    there_and_back = _reconstruction(vae, images, posterior, eps)
    return there_and_back | _drawn_from_nothing(vae, posterior, eps)


@torch.no_grad()
def _encoded(vae: Vae, images: Tensor) -> Posterior:
    parts = [vae.encode(x) for x in images.split(500)]
    return Posterior(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _reconstruction(vae: Vae, images: Tensor, p: Posterior, eps: Tensor) -> dict[str, Any]:
    """Images (N, 1, H, W) there and back, from the posterior's mean and from a draw.

    Squared errors are means over pixels; ``kl`` is in nats a digit, and ``kl_of_channels`` its
    parts (Z,). ``spread`` and ``noise`` (Z,): how wide each channel's means lie over the digits,
    and the posterior's standard deviation (root mean square), in the latent's own unit.
    """
    back, drawn = (_pictures(vae, z) for z in (p.mean, p.draw(eps)))
    channels = Posterior(*(part.transpose(0, 1) for part in p)).kl() / len(images)
    return {
        "squared_error": float((back - images).square().mean()),
        "squared_error_drawn": float((drawn - images).square().mean()),
        "kl": float(p.kl().mean()),
        "kl_of_channels": _rounded(channels),
        "spread": _rounded(p.mean.std((0, 2, 3))),
        "noise": _rounded(p.log_var.exp().mean((0, 2, 3)).sqrt()),
        "frechet": _distance(back),
    }


def _drawn_from_nothing(vae: Vae, p: Posterior, eps: Tensor) -> dict[str, float]:
    """Decode standard normal numbers, as they are and with each channel's mean and spread."""
    mean, spread = (f(p.mean, (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return {
        "frechet_noise": _distance(_pictures(vae, eps)),
        "frechet_fitted_noise": _distance(_pictures(vae, mean + spread * eps)),
    }


@torch.no_grad()
def _pictures(vae: Vae, z: Tensor) -> Tensor:
    """Latents in their own unit (N, Z, h, w) -> images (N, 1, H, W) clipped to [-1, 1]."""
    return torch.cat([vae.decode(part) for part in z.split(500)]).clamp(-1, 1)


def _distance(images: Tensor) -> float:
    eye = recipes.train_or_load("digit_features", "read").model
    return frechet_to((eye.reference_mean, eye.reference_cov), images, eye)


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]


# ---- the results as a table ----------------------------------------------------------------


def _signal(row: dict[str, Any]) -> float:
    """The share of the latent's variance that is spread of the means; the rest is noise."""
    spread, noise = (sum(x**2 for x in row[part]) for part in ("spread", "noise"))
    return spread / (spread + noise)


COLUMNS: dict[str, tuple[Callable[[dict[str, Any]], float], str]] = {
    "error": (lambda row: row["squared_error"], ".4f"),
    "nats": (lambda row: row["kl"], ".0f"),
    "signal": (_signal, ".0%"),
    "channels": (lambda row: sum(nats > 0.5 for nats in row["kl_of_channels"]), "d"),
    "back": (lambda row: row["frechet"], ".2f"),
    "noise": (lambda row: row["frechet_noise"], ".1f"),
}
"""Name -> what is taken from a row, and its format. A channel counts from half a nat."""


def table(rows: list[dict[str, Any]]) -> str:
    """A line a variant, in each column the lowest and the highest of its seeds."""
    lines = [f"{'':6}" + "".join(f"{name:>13}" for name in COLUMNS)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [row for row in rows if row["variant"] == variant]
        cells = [_range([f(row) for row in found], form) for f, form in COLUMNS.values()]
        lines.append(f"{variant:6}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def _range(values: list[float], form: str) -> str:
    low, high = (format(v, form) for v in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"
