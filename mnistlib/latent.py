"""Diffusion in the autoencoder's latents: encode, bring to unit scale, diffuse, decode.

A schedule takes it for granted that clean data spreads about as wide as the noise; latents do not,
until they are shifted and scaled. "Latents" below always means the scaled ones, (B, Z, h, w).
"""

import math

import torch
from torch import Tensor

from mnistlib.types import InputError
from mnistlib.vae import Vae

__all__ = ["decode", "encode", "latent_shape", "measure_scale"]

PIXELS = 2**20  # that an autoencoder looks at together: a hundred digits, but few large pictures


@torch.no_grad()
def measure_scale(vae: Vae, images: Tensor) -> None:
    """Measure mean and spread of the latents of images (N, C, H, W) and store them.

    ``encode`` then gives each channel mean 0, and all numbers together standard deviation 1, over
    these images. There is one scale for all channels, as in Rombach et al. 2022 (section 4.3.2 and
    appendix G, where nothing is shifted): a channel that the autoencoder left unused hardly varies,
    and a scale of its own would blow its remains up to something that has to be learned.
    """
    means = _means(vae, images, 100).transpose(0, 1).flatten(1)  # (Z, N h w)
    vae.shift.copy_(means.mean(1).view(-1, 1, 1))
    vae.scale.fill_(1 / means.var(1, correction=0).mean().sqrt())


@torch.no_grad()
def encode(vae: Vae, images: Tensor, batch_size: int = 100) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] -> their latents (N, Z, h, w), on the CPU.

    The posterior's mean is taken, not a draw: its noise is what the decoder forgives, and the
    diffusion need not learn it. A training encodes its images once and keeps the result.
    """
    return (_means(vae, images, batch_size) - vae.shift.cpu()) * vae.scale.cpu()


@torch.no_grad()
def decode(vae: Vae, latents: Tensor, batch_size: int = 100) -> Tensor:
    """Latents (N, Z, h, w) -> images (N, C, H, W) clipped to [-1, 1], on the CPU."""
    pixels = vae.config.down**2 * math.prod(latents.shape[2:])
    parts = latents.to(vae.scale.device).split(_fitting(batch_size, pixels))
    return torch.cat([vae.decode(z / vae.scale + vae.shift).clamp(-1, 1).cpu() for z in parts])


def latent_shape(vae: Vae, size: int = 32) -> tuple[int, int, int]:
    """(Z, h, w) of the latents of square pictures of ``size`` pixels a side.

    Raises:
        InputError: the sides do not divide.
    """
    if size % vae.config.down:
        raise InputError(f"sides must be divisible by {vae.config.down}, got {size}")
    side = size // vae.config.down
    return vae.config.latent_channels, side, side


def _means(vae: Vae, images: Tensor, batch_size: int) -> Tensor:
    device, pixels = vae.scale.device, math.prod(images.shape[2:])
    parts = images.split(_fitting(batch_size, pixels))
    return torch.cat([vae.encode(x.to(device)).mean.cpu() for x in parts])


def _fitting(batch_size: int, pixels: int) -> int:
    """How many pictures of so many pixels are looked at together."""
    return max(1, min(batch_size, PIXELS // pixels))
