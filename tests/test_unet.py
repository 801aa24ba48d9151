"""The network and its bricks: formulas, shapes, what each setting does, refusals."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tiny import alive, numbers
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mnistlib.attention import Attention, TransformerBlock
from mnistlib.layers import (
    AdditiveBlock,
    Downsample,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    TimeEmbedding,
    Upsample,
    sinusoidal,
)
from mnistlib.recipes import RECIPES
from mnistlib.settings import from_dict
from mnistlib.types import Cond, InputError
from mnistlib.unet import UNet, UNetConfig

SMALL = UNetConfig(widths=(8, 16), attention=(1,), heads=2, time_dim=16)


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


# ---- words, and the other options of a latent UNet ------------------------------------------

READING = replace(SMALL, depth=1, context_dim=6, attention=(0, 1))
WORDS = numbers(2, 5, 6, seed=3)
HEARD = torch.tensor([[True, True, False, False, False], [True, True, True, True, False]])


def read(network, x, cond):
    """Return the answers of a network that is told a condition."""
    with torch.no_grad():
        return network(x, torch.full((len(x),), 50), cond)


def test_words_change_the_answer_of_their_own_image():
    network, x = alive(UNet(READING)), numbers(2, 1, 8, 8)
    before, other = read(network, x, Cond(tokens=WORDS, mask=HEARD)), WORDS.clone()
    other[1, 2] += 1
    after = read(network, x, Cond(tokens=other, mask=HEARD))
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-2)


def test_a_masked_word_never_changes_the_answer():
    network, x = alive(UNet(READING)), numbers(2, 1, 8, 8)
    before = read(network, x, Cond(tokens=WORDS, mask=HEARD))
    other = torch.where(HEARD[..., None], WORDS, 10.0)
    assert torch.equal(read(network, x, Cond(tokens=other, mask=HEARD)), before)
    assert not torch.equal(read(network, x, Cond(tokens=other)), before), "no mask hides nothing"


def test_no_mask_means_every_word():
    network, x = alive(UNet(READING)), numbers(2, 1, 8, 8)
    everything = torch.ones(2, 5, dtype=torch.bool)
    found = read(network, x, Cond(tokens=WORDS))
    assert torch.equal(found, read(network, x, Cond(tokens=WORDS, mask=everything)))


def test_vector_and_words_are_both_heard():
    network, x, vector = alive(UNet(READING)), numbers(2, 1, 8, 8), numbers(2, 16, seed=4)
    plain = read(network, x, Cond(tokens=WORDS))
    assert not torch.allclose(read(network, x, Cond(vector, WORDS)), plain, atol=1e-2)
    later = network.time(torch.tensor([900])) - network.time(torch.tensor([50]))
    with torch.no_grad():  # a vector speaks as the time does
        expected = network(x, torch.full((2,), 900), Cond(tokens=WORDS))
        torch.testing.assert_close(
            read(network, x, Cond(later, WORDS)), expected, rtol=1e-4, atol=1e-4
        )


def test_one_row_of_a_condition_serves_all_images():
    network, x = alive(UNet(READING)), numbers(2, 1, 8, 8)
    one = Cond(numbers(1, 16, seed=4), WORDS[:1], HEARD[:1])
    each = Cond(*(part.repeat_interleave(2, 0) for part in one))
    torch.testing.assert_close(read(network, x, one), read(network, x, each), rtol=1e-4, atol=1e-5)


def test_a_class_and_words_can_be_told_together():
    """Where no class is told, it is "no label", as without words."""
    network, x = alive(UNet(replace(READING, classes=3))), numbers(2, 1, 8, 8)
    nobody, somebody = (network.of_class(torch.full((2,), k)).vector for k in (3, 1))
    silent = read(network, x, Cond(tokens=WORDS))
    assert torch.equal(silent, read(network, x, Cond(nobody, WORDS)))
    assert not torch.allclose(silent, read(network, x, Cond(somebody, WORDS)), atol=1e-2)


OPTIONS = {
    "self-attention in a transformer": {"depth": 1},
    "cross-attention": {"depth": 1, "context_dim": 6},
    "two blocks": {"depth": 2, "context_dim": 6},
    "heads of a width": {"depth": 1, "head_width": 4},
    "additive time": {"time_mix": "add"},
    "residual resampling": {"resampling": "residual"},
    "all": {
        "depth": 1,
        "context_dim": 6,
        "head_width": 8,
        "time_mix": "add",
        "resampling": "residual",
        "blocks": 2,
        "dropout": 0.1,
    },
}
every_option = pytest.mark.parametrize("name", OPTIONS)


def with_option(name):
    """Return a network that has an option, and what it may be told."""
    config = replace(SMALL, **OPTIONS[name])
    return UNet(config), Cond(tokens=WORDS, mask=HEARD) if config.context_dim else None


@every_option
def test_options_give_networks_that_work(name):
    network, cond = with_option(name)
    x, t = numbers(2, 1, 8, 12), torch.tensor([1, 1000])
    assert (network(x, t, cond) == 0).all(), "a fresh network answers zero"
    alive(network).train()
    out = network(x, t, cond)
    assert out.shape == x.shape
    (out * numbers(2, 1, 8, 12, seed=1)).sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    network.eval()
    both = network(x, t, cond)
    other_time = network(x, t.flip(0), cond)
    assert not torch.allclose(both, other_time, atol=1e-2)


def test_each_option_does_what_it_says():
    blocks = all_of(SpatialTransformer, UNet(replace(READING, depth=3, blocks=2)))
    assert len(blocks) == 2 * 2 * 2 + 1
    assert {len(part.blocks) for part in blocks} == {3}
    assert all_of(SelfAttention, UNet(READING)) == []

    silent = all_of(TransformerBlock, UNet(replace(READING, context_dim=0)))
    assert {part.read for part in silent} == {None}
    reading = all_of(TransformerBlock, UNet(READING))
    assert {part.read.k.in_features for part in reading} == {6}

    for depth in (0, 1):  # heads of four channels: two at the fine level, four at the coarse
        network = UNet(replace(READING, depth=depth, context_dim=0, head_width=4))
        kind = Attention if depth else SelfAttention
        found = [{part.heads for part in all_of(kind, level)} for level in network.down]
        assert found == [{2}, {4}]

    added = UNet(replace(SMALL, time_mix="add", resampling="residual"))
    assert {type(part) for part in all_of(ResidualBlock, added)} == {AdditiveBlock}
    plain = UNet(replace(SMALL, resampling="residual"))
    assert {type(part) for part in all_of(ResidualBlock, plain)} == {ResidualBlock}
    for network in (added, plain):
        assert all_of(Downsample, network) == all_of(Upsample, network) == []
        assert len(all_of(nn.AvgPool2d, network)) == len(all_of(nn.Upsample, network)) == 1
        assert len(all_of(ResidualBlock, network)) == 5 + 2, "two of them change the size"


def test_time_reaches_residual_resampling():
    for mix in ("film", "add"):
        network = alive(UNet(replace(SMALL, resampling="residual", time_mix=mix)))
        h, early, late = numbers(1, 8, 4, 4), *network.time(torch.tensor([10, 900])).split(1)
        down = network.downsample[0]
        assert not torch.allclose(down(h, early), down(h, late), atol=1e-2)


def test_older_checkpoints_lack_the_options_and_mean_the_defaults():
    values = asdict(SMALL)
    for name in ("head_width", "depth", "context_dim", "time_mix", "resampling"):
        del values[name]
    assert from_dict(UNetConfig, values) == SMALL


def test_latent_network_for_text_costs_at_most_0_15_gflop():
    """Counted by torch, and the words' share by hand: it is small where words are few."""
    config = UNetConfig(
        in_channels=4, out_channels=4, widths=(64, 128), attention=(0, 1), depth=1, context_dim=128
    )
    network = UNet(config).eval()
    flops = []
    for words in (16, 17):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            cond = Cond(tokens=torch.zeros(1, words, 128))
            network(torch.zeros(1, 4, 8, 8), torch.ones(1), cond)
        flops.append(counter.get_total_flops())
    assert 0.05e9 < flops[0] <= 0.15e9
    # a word more: its key and value, and one product with each place in either of two uses
    per_layer = [(64, 64), (128, 16), (128, 16), (64, 64), (128, 16)]
    by_hand = sum(2 * (2 * 128 * width + 2 * places * width) for width, places in per_layer)
    assert flops[1] - flops[0] == by_hand


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cond", "message"),
    [
        ({}, None, "this UNet reads words; give it tokens"),
        ({}, Cond(vector=numbers(2, 16)), "this UNet reads words"),
        ({}, Cond(tokens=numbers(2, 5, 7)), r"shape \(2, 5, 7\) cannot be read; .* width 6"),
        ({}, Cond(tokens=numbers(2, 6)), r"shape \(2, 6\) cannot be read"),
        ({}, Cond(tokens=numbers(3, 5, 6)), "give one row, or 2, of width 6"),
        ({}, Cond(numbers(2, 9), WORDS), r"vector of shape \(2, 9\) .* time embedding: 16"),
        ({}, Cond(numbers(3, 16), WORDS), "give one row, or 2, as wide as"),
        ({}, Cond(tokens=WORDS, mask=HEARD[:, :4]), r"a mask of \(2, 5\) .* torch.bool, \(2, 4\)"),
        ({}, Cond(tokens=WORDS, mask=HEARD & ~HEARD[:1]), "mark one token of each row at least"),
        ({}, Cond(tokens=WORDS, mask=HEARD.float()), "must be bool, .* got torch.float32"),
        ({"context_dim": 0}, Cond(tokens=WORDS), r"width 0 \(0: this UNet reads none\)"),
        ({"time_input": False}, Cond(numbers(2, 16), WORDS), "time embedding: 0"),
    ],
)
def test_conditions_that_cannot_be_told_are_refused(changes, cond, message):
    network, x = UNet(replace(READING, **changes)), numbers(2, 1, 8, 8)
    with pytest.raises(InputError, match=message) as error:
        network(x, torch.ones(2), cond)
    assert "\n" not in str(error.value)


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
        ({"widths": (), "attention": ()}, "each level needs a width"),
        ({"blocks": 0}, "must be 1 or more"),
        ({"attention": (2,)}, r"attention levels \(2,\) must lie in 0\.\.1"),
        ({"attention": (-1,)}, r"attention levels \(-1,\) must lie in 0\.\.1"),
        ({"classes": -1}, "must not be negative"),
        ({"classes": 10, "time_input": False}, "need time_input=True"),
        ({"heads": 3}, "16 channels do not divide into 3 heads"),
        ({"heads": 3, "depth": 1}, "16 does not divide into 3 heads"),
        ({"head_width": 5}, "16 channels do not divide into heads of 5"),
        ({"head_width": -4}, "must not be negative"),
        ({"depth": -1}, "must not be negative"),
        ({"context_dim": 6}, "needs depth of 1 or more, and an attention level"),
        ({"context_dim": 6, "depth": 1, "attention": ()}, "and an attention level"),
        ({"time_mix": "mix"}, "time_mix must be film or add"),
        ({"resampling": "none"}, "resampling plain or residual"),
        ({"time_mix": "add", "time_input": False}, "time_mix=add needs time_input=True"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        UNet(replace(SMALL, **changes))


@pytest.mark.parametrize("shape", [(1, 1, 9, 8), (1, 1, 8, 9), (1, 8, 8)])
def test_sides_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(InputError, match=r"a UNet of 2 levels needs .* divisible by 2, got"):
        UNet(SMALL)(torch.zeros(shape), torch.ones(1))
