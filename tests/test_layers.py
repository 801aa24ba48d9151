"""The bricks of a latent UNet, held against those of diffusers with the same weights.

Those that chapter 2 builds are tested in test_unet.py.
"""

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from test_attention import MASK, alive, close, numbers
from torch import nn

from mnistlib.classifier import DigitFeaturesConfig, NoisyClassifierConfig
from mnistlib.layers import (
    AdditiveBlock,
    PassThrough,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    TimeEmbedding,
    resampling,
)
from mnistlib.types import InputError
from mnistlib.unet import UNetConfig
from mnistlib.vae import VaeConfig

RESIZE = {"down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2.0, mode="nearest")}
TIME_MIX = {AdditiveBlock: "default", ResidualBlock: "scale_shift"}


def their_residual(block, c_in, c_out, time_dim, **how):
    """Return diffusers' residual block with the same weights."""
    theirs = ResnetBlock2D(
        in_channels=c_in,
        out_channels=c_out,
        temb_channels=time_dim,
        groups=block.norm1.num_groups,
        groups_out=block.norm2.num_groups,
        eps=1e-5,
        **how,
    ).eval()
    names = {"shift": "time_emb_proj", "film": "time_emb_proj", "shortcut": "conv_shortcut"}
    copied = {}
    for name, value in block.state_dict().items():
        part, *_, kind = name.split(".")  # "conv1.1.weight" where something resizes before it
        copied[f"{names.get(part, part)}.{kind}"] = value
    theirs.load_state_dict(copied)
    return theirs


@pytest.mark.parametrize("resize", [None, "down", "up"])
@pytest.mark.parametrize(("c_in", "c_out"), [(16, 16), (16, 24)])
@pytest.mark.parametrize("kind", TIME_MIX)
def test_residual_blocks_match_diffusers(kind, c_in, c_out, resize):
    """Time added or as scale and shift, the size kept, halved or doubled."""
    block = alive(kind(c_in, c_out, 6))
    how = {"time_embedding_norm": TIME_MIX[kind]}
    if resize is not None:
        block, how[resize] = resampling(block, RESIZE[resize]), True
    x, time = numbers(2, c_in, 4, 6), numbers(2, 6, seed=1)
    expected = their_residual(block, c_in, c_out, 6, **how)(x, time)
    close(block(x, time), expected)


@pytest.mark.parametrize("kind", TIME_MIX)
def test_a_fresh_resampling_block_is_the_resize_alone(kind):
    x, time = numbers(2, 16, 4, 6), numbers(2, 6, seed=1)
    for resize in RESIZE.values():
        assert torch.equal(resampling(kind(16, 16, 6), resize)(x, time), resize(x))


# ---- the spatial transformer ---------------------------------------------------------------


def their_transformer(ours, channels, context_dim):
    """Return diffusers' spatial transformer with the same weights."""
    theirs = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=channels // 2,
        in_channels=channels,
        num_layers=len(ours.blocks),
        cross_attention_dim=context_dim,
        norm_num_groups=ours.norm.num_groups,
    ).eval()
    theirs.norm.eps = ours.norm.eps
    copies = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(copies))
    return theirs


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("context_dim", [None, 12])
def test_spatial_transformer_matches_diffusers(depth, context_dim):
    ours, x = alive(SpatialTransformer(16, 2, depth, context_dim)), numbers(2, 16, 3, 4)
    words, mask = (None, None) if context_dim is None else (numbers(2, 5, 12, seed=1), MASK)
    theirs = their_transformer(ours, 16, context_dim)
    given = {"encoder_hidden_states": words, "encoder_attention_mask": mask}
    (expected,) = theirs(x, **given, return_dict=False)
    close(ours(x, words, mask), expected)
    assert len(ours.blocks) == depth


def test_fresh_spatial_transformer_is_the_identity():
    fresh, x, words = SpatialTransformer(16, 2, 1, 12), numbers(2, 16, 3, 4), numbers(2, 5, 12)
    assert torch.equal(fresh(x, words), x)
    assert not torch.allclose(alive(fresh)(x, words), x, atol=0.1)


def test_places_that_change_places_take_their_answers_along():
    attend, x = alive(SpatialTransformer(16, 2, 1, 12)), numbers(2, 16, 3, 4)
    words, order = numbers(2, 5, 12), torch.randperm(12, generator=torch.Generator().manual_seed(1))

    def shuffle(images):
        return images.flatten(2)[..., order].reshape(images.shape)

    close(attend(shuffle(x), words), shuffle(attend(x, words)))


def test_memory_format_does_not_matter():
    attend, x, words = (
        alive(SpatialTransformer(16, 2, 1, 12)),
        numbers(2, 16, 3, 4),
        numbers(2, 5, 12),
    )
    close(attend(x.to(memory_format=torch.channels_last), words), attend(x, words))


def test_pass_through_hears_nothing():
    x, words = numbers(2, 16, 3, 4), numbers(2, 5, 12)
    assert PassThrough()(x, words, MASK) is x


def test_blocks_that_cannot_be_built_are_refused():
    for build, reason in [
        (lambda: SelfAttention(8, heads=0), "8 channels do not divide into 0 heads"),
        (lambda: SelfAttention(8, heads=-4), "8 channels do not divide into -4 heads"),
        (lambda: ResidualBlock(8, 8, None, dropout=2.0), "dropout must lie between 0 and 1"),
        (lambda: TimeEmbedding(7), "must be even and positive, got 7"),
        (lambda: TimeEmbedding(-2), "must be even and positive, got -2"),
    ]:
        with pytest.raises(InputError, match=reason):
            build()


@pytest.mark.parametrize("widths", [(), (0, 8), (8, -8)])
@pytest.mark.parametrize("config", [UNetConfig, DigitFeaturesConfig, NoisyClassifierConfig])
def test_levels_without_channels_are_refused(config, widths):
    with pytest.raises(InputError, match="each level needs a width of 1 or more"):
        config(widths=widths)


def test_a_level_of_an_autoencoder_without_channels_is_refused():
    with pytest.raises(InputError, match="each level needs a width of 1 or more"):
        VaeConfig(widths=(0, 8, 16))
