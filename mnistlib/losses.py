"""Batches and losses that trainings on different pictures share.

Legend: B images of a batch, L tokens of a prompt.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mnistlib.configs import ReaderSettings, VaeSettings
from mnistlib.data import batch_indices, generator_for
from mnistlib.guidance import bind
from mnistlib.objective import NoisyBatch, diffusion_loss, drop_captions
from mnistlib.schedules import make_schedule
from mnistlib.text import Tokenizer
from mnistlib.text_to_image import TextToImage
from mnistlib.vae import Vae, vae_loss

__all__ = ["AutoencoderBatch", "PromptBatch", "reading", "reconstruction"]


class AutoencoderBatch(NamedTuple):
    """Images (B, C, H, W) and the noise (B, Z, h, w) of their latents."""

    images: Tensor
    eps: Tensor


class PromptBatch(NamedTuple):
    """A ``NoisyBatch`` with the captions that the network is told, as ``Tokens``: (B, L) each."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    ids: Tensor
    mask: Tensor


def reconstruction(settings: VaeSettings, images_at: Callable[[int, int], Tensor]):
    """The loss and the batches of an autoencoder of the images that (seed, step) gives."""

    def batch_at(seed: int, step: int) -> AutoencoderBatch:
        images, down = images_at(seed, step), settings.model.down
        shape = (
            len(images),
            settings.model.latent_channels,
            *(n // down for n in images.shape[2:]),
        )
        return AutoencoderBatch(images, torch.randn(shape, generator=generator_for(seed, step)))

    def loss(model: Vae, batch: AutoencoderBatch) -> Tensor:
        return vae_loss(model, *batch, settings.kl_weight)

    return loss, batch_at


def reading(
    settings: ReaderSettings,
    latents: Tensor,
    tokenize: Tokenizer,
    captions_at: Callable[[int, int, Tensor], Sequence[str]],
):
    """The loss and the batches of a diffusion of latents (N, Z, h, w) that is told captions.

    Args:
        captions_at: (seed, step, indices (B,)) -> the captions of these latents in this step.
    """
    schedule, B = make_schedule(settings.schedule, settings.T), settings.batch_size
    indices = batch_indices(len(latents), B)

    def batch_at(seed: int, step: int) -> PromptBatch:
        i, generator = indices(seed, step), generator_for(seed, step)
        t = torch.randint(1, settings.T + 1, (B,), generator=generator)
        eps = torch.randn(latents[i].shape, generator=generator)
        captions = captions_at(seed, step, i)
        told = drop_captions(captions, settings.label_dropout, generator=generator)
        return PromptBatch(latents[i], t, eps, *tokenize(told))

    def loss(model: TextToImage, batch: PromptBatch) -> Tensor:
        told = bind(model, model.of_tokens(batch.ids, batch.mask))
        return diffusion_loss(
            told, NoisyBatch(*batch[:3]), schedule, settings.predicts, settings.weighting
        )

    return loss, batch_at
