"""UNet and text encoder as one network: what is told, guidance, training, the file."""

from dataclasses import replace

import pytest
import torch
from test_attention import alive, close, numbers

from mnistlib import checkpoints
from mnistlib.attention import attention_maps
from mnistlib.data import generator_for
from mnistlib.guidance import bind, cfg
from mnistlib.objective import NoisyBatch, diffusion_loss
from mnistlib.schedules import cosine
from mnistlib.text import TextConfig
from mnistlib.text_to_image import TextToImage, TextToImageConfig
from mnistlib.train import TrainConfig, fit
from mnistlib.types import Cond, InputError
from mnistlib.unet import UNetConfig

WORDS = ("a", "blue", "on", "red", "seven", "three", "三", "七")
TEXT = TextConfig(WORDS, max_length=6, width=12, layers=1, heads=2)
UNET = UNetConfig(
    widths=(8, 16), attention=(0, 1), heads=2, time_dim=16, depth=1, context_dim=TEXT.width
)
CONFIG = TextToImageConfig(UNET, TEXT)
VECTOR_ONLY = replace(CONFIG, unet=replace(UNET, context_dim=0))
TOKENS_ONLY = replace(CONFIG, pooled=False)
WAYS = {"both": CONFIG, "vector": VECTOR_ONLY, "tokens": TOKENS_ONLY}
every_way = pytest.mark.parametrize("way", WAYS)
X, T = numbers(2, 1, 8, 8), torch.tensor([5, 900])


def network_of(way="both"):
    """Return a network whose zero weights are filled, without gradients."""
    torch.manual_seed(0)
    return alive(TextToImage(WAYS[way])).requires_grad_(False)


# ---- what is told --------------------------------------------------------------------------


@every_way
def test_prompts_change_their_own_image(way):
    network = network_of(way)
    first = network(X, T, network.of_prompts(["a red seven", "a blue three"]))
    second = network(X, T, network.of_prompts(["a red seven", "a red three"]))
    changed = (first - second).abs().amax((1, 2, 3))
    assert changed[1] > 1e-2
    assert changed[0] < 1e-5


@pytest.mark.parametrize(
    ("way", "vector", "tokens"),
    [("both", 16, (2, 4, 12)), ("vector", 16, None), ("tokens", None, (2, 4, 12))],
)
def test_each_way_tells_what_its_name_says(way, vector, tokens):
    cond = network_of(way).of_prompts(["a red seven", ""])
    assert (cond.vector is None) == (vector is None)
    assert vector is None or cond.vector.shape == (2, vector)
    assert (cond.tokens is None) == (cond.mask is None) == (tokens is None)
    assert tokens is None or cond.tokens.shape == tokens


def test_both_ways_are_those_of_the_parts():
    network, prompts = network_of(), ["a red seven", "a blue three"]
    said = network.text.encode(prompts)
    vector = said.vector @ network.pooled.weight.T + network.pooled.bias
    expected = network.unet(X, T, Cond(vector, said.tokens, said.mask))
    close(network(X, T, network.of_prompts(prompts)), expected)


@every_way
def test_without_a_condition_the_empty_prompt_is_told(way):
    network = network_of(way)
    close(network(X, T), network(X, T, network.of_prompts(["", ""])))
    assert not torch.allclose(network(X, T), network(X, T, network.of_prompts(["三", "七"])))


@every_way
def test_one_prompt_serves_all_images(way):
    network = network_of(way)
    one, each = network.of_prompts(["a red 七"]), network.of_prompts(["a red 七"] * 2)
    close(network(X, T, one), network(X, T, each))


@every_way
def test_tokens_can_come_from_elsewhere(way):
    network, prompts = network_of(way), ["a red seven", ""]
    found = network.of_tokens(*network.text.tokenize(prompts))
    for a, b in zip(found, network.of_prompts(prompts), strict=True):
        assert (a is b is None) or torch.equal(a, b)


def test_padding_never_reaches_the_picture():
    network = network_of()
    ids, mask = network.text.tokenize(["a red seven", ""])
    before = network(X, T, network.of_tokens(ids, mask))
    after = network(X, T, network.of_tokens(ids.masked_fill(~mask, 4), mask))
    assert torch.equal(before, after)


@every_way
def test_a_prompt_beside_a_longer_one_says_the_same(way):
    network, prompts = network_of(way), ["a red seven", "a red seven on blue", ""]
    x, t = numbers(3, 1, 8, 8), torch.tensor([5, 400, 900])
    together = network(x, t, network.of_prompts(prompts))
    for i, prompt in enumerate(prompts):
        alone = network(x[i : i + 1], t[i : i + 1], network.of_prompts([prompt]))
        close(together[i : i + 1], alone)


def test_words_of_a_picture_can_be_watched():
    """Each attending layer, at its own resolution; the padding gets nothing."""
    network = network_of()
    with attention_maps(network) as maps:
        network(X, T, network.of_prompts(["a red seven on blue", ""]))
    places = {name: tuple(weights.shape) for name, weights in maps.items()}
    fine, coarse = (2, 2, 64, 6), (2, 2, 16, 6)
    assert places == {
        "unet.down.0.0.1.blocks.0.read": fine,
        "unet.down.1.0.1.blocks.0.read": coarse,
        "unet.middle.1.blocks.0.read": coarse,
        "unet.up.0.0.1.blocks.0.read": fine,
        "unet.up.1.0.1.blocks.0.read": coarse,
    }
    for weights in maps.values():
        assert (weights[0] > 0).all()
        assert (weights[1, ..., 0] == 1).all(), "the empty prompt has its start only"
        assert (weights[1, ..., 1:] == 0).all()


# ---- guidance ------------------------------------------------------------------------------


@every_way
def test_guidance_and_negative_prompts(way):
    network = network_of(way)
    red, empty, blue = (
        bind(network, network.of_prompts([prompt])) for prompt in ("a red seven", "", "blue")
    )
    assert torch.equal(cfg(red, empty, 1.0)(X, T), red(X, T))
    assert torch.equal(cfg(red, empty, 0.0)(X, T), network(X, T))
    close(cfg(red, empty, 3.0)(X, T), empty(X, T) + 3 * (red(X, T) - empty(X, T)))
    close(cfg(red, blue, 3.0)(X, T), blue(X, T) + 3 * (red(X, T) - blue(X, T)))


# ---- training ------------------------------------------------------------------------------


@every_way
def test_every_parameter_of_both_halves_learns(way):
    network = network_of(way).requires_grad_(True)
    cond = network.of_prompts(["a blue on red seven", "three 三 七"])
    (network(X, T, cond) * numbers(2, 1, 8, 8, seed=1)).sum().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == set()


PROMPTS = ("a red seven", "a blue 三")
LEVELS = torch.tensor([-0.8, 0.8])


def pictures_at(network):
    """Return batches of plain pictures whose grey level only the prompt tells."""
    ids, mask = network.text.tokenize(PROMPTS)

    def batch_at(seed, step):
        generator = generator_for(seed, step)
        i = torch.randint(2, (16,), generator=generator)
        x_0 = LEVELS[i].view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        t = torch.full((16,), 1000)  # nothing but noise: the picture itself tells nothing
        return x_0, t, torch.randn(x_0.shape, generator=generator), ids[i], mask[i]

    return batch_at


def test_fit_teaches_both_halves_together():
    """Whoever does not hear the words misses both by 0.8 at best."""
    torch.manual_seed(0)
    network, schedule = TextToImage(CONFIG), cosine()
    before = {name: p.clone() for name, p in network.named_parameters()}

    def loss(model, batch):
        told = bind(model, model.of_tokens(*batch[3:]))
        return diffusion_loss(told, NoisyBatch(*batch[:3]), schedule, "x0")

    config = TrainConfig(steps=50, lr=1e-2, warmup=10, ema=0.9, precision="fp32")
    *_, last = fit(network, loss, pictures_at(network), config)
    with torch.no_grad():
        x_t, t = numbers(2, 1, 8, 8, seed=5), torch.full((2,), 1000)
        guess = last.ema(x_t, t, last.ema.of_prompts(PROMPTS)).mean((1, 2, 3))
        turned = last.ema(x_t, t, last.ema.of_prompts(PROMPTS[::-1])).mean((1, 2, 3))
    assert (guess - LEVELS).abs().max() < 0.3
    assert (turned - LEVELS.flip(0)).abs().max() < 0.3
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys()


# ---- the file ------------------------------------------------------------------------------


@every_way
def test_the_file_alone_rebuilds_network_and_tokenizer(tmp_path, way):
    network = checkpoints.round_to_half(network_of(way))
    checkpoints.save(tmp_path / "a.safetensors", network, {}, {})
    again = checkpoints.load(tmp_path / "a.safetensors").model
    assert again.config == network.config
    assert again.config.text.vocabulary == WORDS
    prompts = ["a red 七", "three 三"]
    with torch.no_grad():
        found = again(X, T, again.of_prompts(prompts))
    close(found, network(X, T, network.of_prompts(prompts)))


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": replace(UNET, context_dim=16)}, "context_dim 16 must be the text's width, 12"),
        ({"unet": replace(UNET, context_dim=0), "pooled": False}, "needs pooled=True"),
        ({"unet": replace(UNET, classes=10)}, "needs classes=0"),
        ({"unet": replace(UNET, time_input=False)}, "its vector time_input=True"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_unknown_words_are_refused_here_too():
    with pytest.raises(InputError, match="holds no word"):
        network_of().of_prompts(["xyz"])
