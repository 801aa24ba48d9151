"""The trainings on a folder of your own: an autoencoder of its pictures, then words to pictures.

Legend: N pictures, (Z, h, w) the shape of a latent.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mnistlib import latent
from mnistlib.configs import FolderSettings, FolderVaeSettings
from mnistlib.data import batch_indices
from mnistlib.folders import Captioned, read_pictures
from mnistlib.jobs import Find, fixed_batches
from mnistlib.losses import reading, reconstruction
from mnistlib.sources import pictures_of
from mnistlib.text import TextConfig, Tokenizer, split, vocabulary_of
from mnistlib.text_to_image import TextToImage, TextToImageConfig
from mnistlib.train import moved
from mnistlib.trained import Trained
from mnistlib.types import InputError
from mnistlib.vae import Vae

__all__ = ["first_captions", "text_config"]

AT_ONCE = 16  # pictures that are read and encoded together


# ---- the autoencoder -------------------------------------------------------------------------


def folder_vae_job(settings: FolderVaeSettings, pictures: Captioned, vae: Vae | None = None):
    """Reconstruction of the pictures, which are read from their files as they are needed."""
    paths, indices = pictures.paths, batch_indices(len(pictures.names), settings.batch_size)

    def images_at(seed: int, step: int) -> Tensor:
        return read_pictures([paths[i] for i in indices(seed, step)], settings.size)

    return reconstruction(settings, images_at)


def judge_folder_vae(trained: Trained, pictures: Captioned, kept: Captioned | None, find: Find):
    """Measure the latent scale, then the squared error of what comes back of a picture."""
    model, s = trained.model, trained.settings
    images = read_pictures(pictures.paths[: s.judged], s.size)
    latent.measure_scale(model, images)
    if kept is not None:
        images = read_pictures(kept.paths[: s.judged], s.size)
    back = latent.decode(model, latent.encode(model, images))
    return {
        "pictures": len(images),
        "held_out": kept is not None,
        "squared_error": float((back - images).square().mean()),
        "scale": round(float(model.scale.mean()), 4),
        "shift": [round(float(s), 4) for s in model.shift.flatten()],
    }


# ---- words to pictures -----------------------------------------------------------------------


def network(settings: FolderSettings) -> TextToImage:
    """The untrained network; it knows every word of the captions that it will learn from."""
    return TextToImage(TextToImageConfig(settings.model, text_config(settings), settings.pooled))


def text_config(settings: FolderSettings) -> TextConfig:
    """What the text encoder knows: the words of the captions that the training learns from.

    A caption is cut at ``max_length``; where none is so long, no more tokens than needed are kept.
    """
    s, (pictures, _) = settings, pictures_of(settings)
    said = [split(text)[: s.max_length - 1] for text in pictures.texts]
    longest = min(s.max_length, 1 + max(map(len, said)))
    vocabulary = vocabulary_of(" ".join(words) for words in said)
    return TextConfig(vocabulary, longest, s.text_width, s.text_layers, s.text_heads)


def folder_job(settings: FolderSettings, pictures: Captioned, vae: Vae):
    """Predict the noise in latents of the pictures, told what is written of them.

    The pictures are encoded once, here, and their latents kept in memory: 64 kB each where they
    are 4x64x64 numbers.
    """
    return _told(settings, pictures, encoded(settings, pictures, vae))


def _told(settings: FolderSettings, pictures: Captioned, latents: Tensor):
    text = text_config(settings)
    said = _known(pictures.texts, text)
    return reading(
        settings,
        latents,
        Tokenizer(text.vocabulary, text.max_length),
        lambda seed, step, i: [said[j] for j in i.tolist()],
    )


def encoded(settings: FolderSettings, pictures: Captioned, vae: Vae) -> Tensor:
    """The latents (N, Z, h, w) of the pictures, on the CPU."""
    step = vae.config.down * 2 ** (len(settings.model.widths) - 1)
    if settings.size % step:
        raise InputError(
            f"size={settings.size} cannot be halved by the autoencoder and then once per level of "
            f"the UNet; give a multiple of {step}"
        )
    paths = pictures.paths
    parts = (paths[i : i + AT_ONCE] for i in range(0, len(paths), AT_ONCE))
    return torch.cat([latent.encode(vae, read_pictures(part, settings.size)) for part in parts])


def first_captions(settings: FolderSettings, count: int) -> list[str]:
    """The folder's first captions as the network is told them, round and round where they end."""
    pictures, _ = pictures_of(settings)
    said = _known(pictures.texts[:count], text_config(settings))
    return [said[i % len(said)] for i in range(count)]


def _known(texts: Sequence[str], text: TextConfig) -> list[str]:
    """Captions without the words that no training teaches, and cut to what can be told."""
    known = set(text.vocabulary)
    words = ([word for word in split(each) if word in known] for each in texts)
    return [" ".join(row[: text.max_length - 1]) for row in words]


@torch.no_grad()
def judge_folder(
    trained: Trained, pictures: Captioned, kept: Captioned | None, find: Find
) -> dict[str, Any]:
    """The mean loss over pictures, told their captions and told nothing; the noise is the same.

    They are those that were held out or, where none were, the first that the training learnt from.
    """
    s, device = trained.settings, next(trained.model.parameters()).device
    shown = (pictures if kept is None else kept).part(slice(s.judged))
    latents, found = encoded(s, shown, trained.vae), {}
    for name, dropout in (("loss", 0.0), ("loss_untold", 1.0)):
        loss, batch_at = _told(replace(s, label_dropout=dropout), shown, latents)
        batches = fixed_batches(batch_at, len(shown.names), s.batch_size)
        values = [loss(trained.model, moved(batch, device)) for batch in batches]
        found[name] = float(torch.stack(values).mean())
    return {"pictures": len(shown.names), "held_out": kept is not None} | found
