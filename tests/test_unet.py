"""The network and its bricks: formulas, shapes, what each setting does, refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mnistlib.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    sinusoidal,
)
from mnistlib.recipes import RECIPES
from mnistlib.types import InputError
from mnistlib.unet import UNet, UNetConfig

SMALL = UNetConfig(widths=(8, 16), attention=(1,), heads=2, time_dim=16)


def numbers(*shape, seed=0):
    """Return standard normal float32 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alive(module, seed=0):
    """Move every parameter away from where it starts, zeros included, and switch to eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return module.eval()


def all_of(kind, module):
    """Return the parts of a network that are of one kind."""
    return [part for part in module.modules() if isinstance(part, kind)]


def answers(network, x, t):
    """Return the answer of a network to images at one time."""
    with torch.no_grad():
        return network(x, torch.full((len(x),), t))


# ---- time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 8, 128])
def test_sinusoidal_equals_the_formula(dim):
    t = [0, 1, 17, 1000]
    half = dim // 2
    expected = [
        [f(time / 10_000 ** (i / half)) for f in (math.cos, math.sin) for i in range(half)]
        for time in t
    ]
    found = sinusoidal(torch.tensor(t), dim)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=2e-4)  # float32 angles up to 1,000


def test_every_time_has_its_own_embedding():
    rows = sinusoidal(torch.arange(1001), 128)
    gaps = torch.cdist(rows, rows) + torch.eye(1001) * 9
    assert gaps.min() > 0.1


def test_odd_embedding_is_refused():
    with pytest.raises(InputError, match="must be even, got 7"):
        sinusoidal(torch.tensor([1]), 7)


def test_time_embedding_is_a_perceptron_on_sinusoids():
    embed, t = alive(TimeEmbedding(16)), torch.tensor([3, 500])
    first, _, last = embed.mlp
    expected = F.linear(
        F.silu(F.linear(sinusoidal(t, 16), first.weight, first.bias)), last.weight, last.bias
    )
    torch.testing.assert_close(embed(t), expected)


# ---- the residual block --------------------------------------------------------------------


@pytest.mark.parametrize("time_dim", [None, 16])
@pytest.mark.parametrize("kind", [ResidualBlock, SelfAttention])
def test_fresh_block_is_the_identity(kind, time_dim):
    x, time = numbers(2, 16, 4, 4), None if time_dim is None else numbers(2, time_dim)
    if kind is SelfAttention:
        fresh, inputs = SelfAttention(16), (x,)
    else:
        fresh, inputs = ResidualBlock(16, 16, time_dim, dropout=0.1), (x, time)
    assert torch.equal(fresh(*inputs), x)
    assert not torch.allclose(alive(fresh)(*inputs), x, atol=0.1)


def test_fresh_block_of_another_width_is_its_projection():
    x, block = numbers(2, 8, 4, 4), ResidualBlock(8, 16, None)
    torch.testing.assert_close(block(x), F.conv2d(x, block.shortcut.weight, block.shortcut.bias))


def group_norm(x, norm):
    """GroupNorm of (B, C, H, W) in NumPy: mean 0 and variance 1 in each group of an image."""
    B, C, H, W = x.shape
    groups = x.reshape(B, norm.num_groups, -1)
    mean, var = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(B, C, H, W)
    weight, bias = [p.detach().numpy()[:, None, None] for p in (norm.weight, norm.bias)]
    return weight * x + bias


def silu(x):
    """x times its logistic function."""
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(("c_in", "c_out"), [(16, 16), (8, 24)])
def test_residual_block_equals_the_formula(c_in, c_out):
    """Norm, SiLU, convolution, twice; between the two the time scales by 1 + scale and shifts."""
    block = alive(ResidualBlock(c_in, c_out, 6))
    x, time = numbers(2, c_in, 4, 4), numbers(2, 6, seed=1)
    with torch.no_grad():
        h = block.conv1(torch.from_numpy(silu(group_norm(x.numpy(), block.norm1)))).numpy()
        film = silu(time.numpy()) @ block.film.weight.numpy().T + block.film.bias.numpy()
        scale, shift = film[:, :c_out, None, None], film[:, c_out:, None, None]
        h = silu((1 + scale) * group_norm(h, block.norm2) + shift)
        expected = block.shortcut(x) + block.conv2(torch.from_numpy(h))
        torch.testing.assert_close(block(x, time), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 12, 16, 24, 32, 48, 64, 100, 128])
def test_every_width_has_a_norm(channels):
    """Groups divide the channels and hold at least about eight of them, or what there is."""
    norm = ResidualBlock(channels, channels, None).norm1
    assert channels % norm.num_groups == 0
    assert channels / norm.num_groups >= min(channels, 8) / 2


# ---- attention -----------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_matches_torch(heads):
    attend, x = alive(SelfAttention(16, heads)), numbers(3, 16, 4, 5)
    with torch.no_grad():
        qkv = attend.qkv(attend.norm(x)).flatten(2).transpose(1, 2)  # (B, L, 3C)
        q, k, v = [p.unflatten(2, (heads, -1)).transpose(1, 2) for p in qkv.chunk(3, dim=2)]
        found = F.scaled_dot_product_attention(q, k, v)  # (B, heads, L, C / heads)
        found = found.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(attend(x), x + attend.out(found), rtol=1e-4, atol=1e-5)


def test_attention_is_permutation_equivariant():
    """Attention knows no places: shuffled positions give the same answers, shuffled."""
    attend, x = alive(SelfAttention(8, 2)), numbers(2, 8, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))

    def shuffle(images):
        return images.flatten(2)[..., order].reshape(images.shape)

    torch.testing.assert_close(attend(shuffle(x)), shuffle(attend(x)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(attend(x), shuffle(attend(x)), atol=0.1)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="16 channels do not divide into 3 heads"):
        SelfAttention(16, 3)


# ---- down and up ---------------------------------------------------------------------------


def test_downsample_halves_and_upsample_repeats():
    x = numbers(2, 8, 6, 4)
    assert Downsample(8)(x).shape == (2, 8, 3, 2)
    up = Upsample(8, 4)
    small = F.conv2d(x, up.conv.weight, up.conv.bias).detach().numpy()
    np.testing.assert_allclose(
        up(x).detach(), small.repeat(2, axis=2).repeat(2, axis=3), rtol=1e-4, atol=1e-6
    )


# ---- the UNet ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (32, 32)),
        ({"widths": (8,), "attention": ()}, (5, 7)),
        ({"widths": (8, 16, 24), "attention": (0, 2), "heads": 4}, (28, 28)),
        ({"widths": (16, 8, 8, 8), "attention": ()}, (32, 16)),
        ({"blocks": 3}, (8, 8)),
        ({"in_channels": 4, "out_channels": 2}, (8, 8)),
        ({"skips": False, "time_input": False, "blocks": 2}, (8, 8)),
        ({"dropout": 0.3, "time_dim": 32, "heads": 8}, (8, 8)),
    ],
)
def test_unet_shapes(changes, size):
    config = replace(SMALL, **changes)
    network = UNet(config)
    x, t = numbers(2, config.in_channels, *size), torch.tensor([1, 1000])
    out = network(x, t)
    assert out.shape == (2, config.out_channels, *size)
    assert (out == 0).all(), "a fresh network answers zero"
    assert alive(network)(x, t).std() > 0.1


def test_time_changes_the_answer():
    network, x = alive(UNet(SMALL)), numbers(2, 1, 8, 8)
    early, late = answers(network, x, 10), answers(network, x, 900)
    assert not torch.allclose(early, late, atol=0.05)
    assert torch.equal(early, answers(network, x, 10))
    with torch.no_grad():  # each image has its own time
        mixed = network(x, torch.tensor([10, 900]))
    torch.testing.assert_close(mixed, torch.stack([early[0], late[1]]), rtol=1e-4, atol=1e-4)


def without(network, level):
    """Silence what comes up from below a level; what is left has crossed by a skip."""
    network.upsample[level].register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    return network


def test_no_skips_and_no_time_are_ablations():
    """Each switch cuts exactly what it names, and costs no other part."""
    x, y = numbers(2, 1, 8, 8), numbers(2, 1, 8, 8, seed=1)
    timeless = alive(UNet(replace(SMALL, time_input=False)))
    assert torch.equal(answers(timeless, x, 10), answers(timeless, x, 900))
    assert [
        name for name, _ in timeless.named_parameters() if "time" in name or "film" in name
    ] == []
    cut = without(alive(UNet(replace(SMALL, skips=False))), 0)
    assert torch.equal(answers(cut, x, 10), answers(cut, y, 10))
    whole = without(alive(UNet(SMALL)), 0)
    assert not torch.allclose(answers(whole, x, 10), answers(whole, y, 10), atol=0.05)
    plain = UNet(SMALL)
    for change in ({"time_input": False}, {"skips": False}):
        other = UNet(replace(SMALL, **change))
        for kind in (ResidualBlock, SelfAttention, Downsample, Upsample):
            assert len(all_of(kind, other)) == len(all_of(kind, plain))


def test_skips_meet_their_own_level_and_block():
    """Every block on the way up reads the mirror-image block of the way down."""
    network = alive(UNet(replace(SMALL, blocks=2)))
    down, up = [], []
    for blocks in network.down:
        for _, attend in blocks:
            attend.register_forward_hook(lambda module, given, out: down.append(out))
    for blocks in reversed(network.up):
        for residual, _ in blocks:
            residual.register_forward_pre_hook(lambda module, given: up.append(given[0]))
    answers(network, numbers(1, 1, 8, 8), 5)
    assert len(up) == len(down) == 4
    for h, skip in zip(up, reversed(down), strict=True):
        assert torch.equal(h[:, -skip.shape[1] :], skip)


def test_each_setting_does_what_it_says():
    blocks = UNet(replace(SMALL, blocks=3))
    assert len(all_of(ResidualBlock, blocks)) == 2 * 2 * 3 + 1
    assert len(all_of(Downsample, blocks)) == len(all_of(Upsample, blocks)) == 1

    wide = UNet(replace(SMALL, widths=(8, 24, 40), attention=()))
    assert [level[0][0].conv2.out_channels for level in wide.down] == [8, 24, 40]
    assert [level[0][0].conv2.out_channels for level in wide.up] == [8, 24, 40]
    assert wide.middle[0].conv1.in_channels == 40
    assert all_of(SelfAttention, wide) == []

    for levels in [(0,), (1,), (0, 1)]:
        network = UNet(replace(SMALL, attention=levels))
        for way in (network.down, network.up):
            found = [i for i, level in enumerate(way) if all_of(SelfAttention, level)]
            assert found == list(levels)
        assert bool(all_of(SelfAttention, network.middle)) == (1 in levels)

    for heads in (1, 8):
        parts = all_of(SelfAttention, UNet(replace(SMALL, heads=heads)))
        assert {part.heads for part in parts} == {heads}

    assert UNet(replace(SMALL, time_dim=48)).time.dim == 48
    assert {part.p for part in all_of(nn.Dropout, UNet(replace(SMALL, dropout=0.4)))} == {0.4}


def test_dropout_acts_in_training_only():
    network, x = alive(UNet(replace(SMALL, dropout=0.5))), numbers(1, 1, 8, 8)
    assert torch.equal(answers(network, x, 5), answers(network, x, 5))
    torch.manual_seed(0)
    network.train()
    assert not torch.allclose(answers(network, x, 5), answers(network, x, 5), atol=0.05)


def test_images_of_a_batch_do_not_mix():
    network, x = alive(UNet(SMALL)), numbers(3, 1, 8, 8)
    alone = torch.cat([answers(network, image[None], 5) for image in x])
    torch.testing.assert_close(answers(network, x, 5), alone, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns():
    """No part of the network is built and then left out of the answer."""
    network = alive(UNet(replace(SMALL, blocks=2))).train()
    network(numbers(2, 1, 8, 8), torch.tensor([5, 900])).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_ddpm_recipe_costs_at_most_0_3_gflop():
    network = UNet(RECIPES["ddpm"].full.model).eval()
    with FlopCounterMode(display=False) as counter:
        answers(network, torch.zeros(1, 1, 32, 32), 1)
    assert 0.01e9 < counter.get_total_flops() <= 0.3e9


# ---- classes -------------------------------------------------------------------------------

CLASSY = replace(SMALL, classes=3)


def told(network, x, labels):
    """Return the answers of a network that is told the class of each image."""
    with torch.no_grad():
        return network(x, torch.full((len(x),), 50), network.of_class(torch.tensor(labels)))


def test_class_changes_the_answer_of_its_own_image():
    network, x = alive(UNet(CLASSY)), numbers(3, 1, 8, 8)
    first, second = told(network, x, [0, 1, 2]), told(network, x, [0, 2, 2])
    changed = (first - second).abs().amax((1, 2, 3))
    assert changed[1] > 0.05
    assert changed[[0, 2]].max() < 1e-5


def test_without_a_condition_the_null_class_is_told():
    network, x = alive(UNet(CLASSY)), numbers(2, 1, 8, 8)
    assert network.null == 3
    assert torch.equal(answers(network, x, 50), told(network, x, [3, 3]))
    assert not torch.allclose(answers(network, x, 50), told(network, x, [0, 0]), atol=0.05)


def test_class_embedding_is_added_to_the_time_embedding():
    """A class whose row is zero says what a network without classes hears: the time alone."""
    network, plain, x = alive(UNet(CLASSY)), UNet(SMALL).eval(), numbers(2, 1, 8, 8)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k != "label.weight"})
    with torch.no_grad():
        network.label.weight[1] = 0
        network.label.weight[2] = network.time(torch.tensor(900)[None]) - network.time(
            torch.tensor(50)[None]
        )
    torch.testing.assert_close(told(network, x, [1, 1]), answers(plain, x, 50))
    torch.testing.assert_close(told(network, x, [2, 2]), answers(plain, x, 900), rtol=0, atol=1e-4)


def test_every_row_of_the_class_embedding_learns():
    network = alive(UNet(CLASSY)).train()
    cond = network.of_class(torch.arange(4))
    network(numbers(4, 1, 8, 8), torch.full((4,), 50), cond).square().sum().backward()
    assert (network.label.weight.grad.abs().sum(1) > 0).all()


def test_a_network_without_classes_has_no_embedding():
    assert not any("label" in name for name in UNet(SMALL).state_dict())


# ---- refusals ------------------------------------------------------------------------------


def test_labels_that_are_not_classes_are_refused():
    with pytest.raises(InputError, match="without classes; it cannot be told a label"):
        UNet(SMALL).of_class(torch.tensor([1]))
    for label in (-1, 4):
        with pytest.raises(InputError, match=r"must lie in 0\.\.2, or be 3 for none"):
            UNet(CLASSY).of_class(torch.tensor([label]))


def test_another_number_of_channels_is_refused():
    with pytest.raises(InputError, match="reads images of 1 channels, got 3"):
        UNet(SMALL)(torch.zeros(2, 3, 8, 8), torch.ones(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (), "attention": ()}, "at least one level"),
        ({"blocks": 0}, "one block per level"),
        ({"attention": (2,)}, r"attention levels \(2,\) must lie in 0\.\.1"),
        ({"attention": (-1,)}, r"attention levels \(-1,\) must lie in 0\.\.1"),
        ({"classes": -1}, "must not be negative"),
        ({"classes": 10, "time_input": False}, "need time_input=True"),
        ({"heads": 3}, "16 channels do not divide into 3 heads"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        UNet(replace(SMALL, **changes))


@pytest.mark.parametrize("shape", [(1, 1, 9, 8), (1, 1, 8, 9), (1, 8, 8)])
def test_sides_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(InputError, match=r"a UNet of 2 levels needs .* divisible by 2, got"):
        UNet(SMALL)(torch.zeros(shape), torch.ones(1))
