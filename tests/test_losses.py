"""What the trainings of autoencoders and of networks that read have in common."""

from types import SimpleNamespace

import pytest
import torch
from test_text_to_image import CONFIG, WORDS, network_of
from torch.nn import functional as F

from mnistlib.losses import reading, reconstruction
from mnistlib.schedules import cosine
from mnistlib.text import Tokenizer
from mnistlib.vae import VaeConfig

CAPTIONS = ("a red seven", "a blue 三", "", "three", "七")
LATENTS = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 8) / 5


def job(batch_size=5, dropout=0.0):
    """Return the loss and the batches of a training on five latents, each all one number."""
    settings = SimpleNamespace(
        schedule="cosine",
        T=1000,
        batch_size=batch_size,
        label_dropout=dropout,
        predicts="v",
        weighting="simple",
    )
    tokenize = Tokenizer(WORDS, CONFIG.text.max_length)

    def captions_at(seed, step, i):
        return [CAPTIONS[j] for j in i.tolist()]

    return reading(settings, LATENTS, tokenize, captions_at)


def said(batch):
    """Return what a batch says, in words again."""
    rows = zip(batch.ids, batch.mask, strict=True)
    return [" ".join(WORDS[n - 2] for n in ids[mask].tolist()[1:]) for ids, mask in rows]


def test_latents_come_with_their_captions():
    _, batch_at = job()
    for step in range(4):
        batch = batch_at(0, step)
        which = (batch.x_0[:, 0, 0, 0] * 5).round().int().tolist()
        assert sorted(which) == [0, 1, 2, 3, 4]
        assert said(batch) == [CAPTIONS[i] for i in which]


def test_captions_are_left_out_at_the_rate():
    _, batch_at = job(batch_size=1000, dropout=0.25)
    batch = batch_at(0, 0)
    silent = sum(not caption for caption in said(batch))
    assert 335 < silent < 465  # 200 of 1,000 are empty already; the standard deviation is 12


def test_loss_is_the_error_of_what_the_network_was_told():
    """The velocity, written out; other captions give another loss."""
    loss, batch_at = job()
    model, batch = network_of(), batch_at(0, 0)
    a = cosine().alpha_bar[batch.t].float().view(-1, 1, 1, 1)
    x_t = a.sqrt() * batch.x_0 + (1 - a).sqrt() * batch.eps
    v = a.sqrt() * batch.eps - (1 - a).sqrt() * batch.x_0
    told = model.of_prompts(said(batch))
    expected = float(F.mse_loss(model(x_t, batch.t, told), v))
    assert float(loss(model, batch)) == pytest.approx(expected, rel=1e-5)
    deaf = float(loss(model, batch._replace(ids=batch.ids.flip(0), mask=batch.mask.flip(0))))
    assert deaf != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("widths", [(8, 8, 16), (8, 8, 16, 16)])
def test_noise_of_an_autoencoder_has_the_shape_of_its_latents(widths):
    config = VaeConfig(widths=widths, latent_channels=2)
    images = torch.zeros(3, 1, 32, 64)
    _, batch_at = reconstruction(SimpleNamespace(model=config), lambda seed, step: images)
    batch = batch_at(0, 1)
    assert batch.images is images
    assert batch.eps.shape == (3, 2, 32 // config.down, 64 // config.down)
    assert torch.equal(batch.eps, batch_at(0, 1).eps)
    assert not torch.equal(batch.eps, batch_at(0, 2).eps)
