"""CLIP's text encoder behind our interface: a tiny one of random weights, nothing downloaded."""

import json
import sys

import pytest
import torch
from torch import nn

from mnistlib.clip import FrozenClip, frozen_clip
from mnistlib.types import Cond, InputError
from mnistlib.unet import UNet, UNetConfig

WORDS = ("a", "red", "seven", "on", "blue")
LIMIT, WIDTH = 9, 16


@pytest.fixture(scope="module")
def transformers():
    """Return the package, or skip: it is optional."""
    return pytest.importorskip("transformers", reason="transformers, an option, is not installed")


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """Return a folder as the hub would give it: random weights, a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted({letter for word in WORDS for letter in word})
    known = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(known)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.CLIPTextConfig(
        vocab_size=len(known),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LIMIT,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LIMIT
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def clip(folder):
    """Return the tiny encoder, loaded from its folder."""
    return frozen_clip(str(folder))


def test_it_says_the_same_as_the_model_alone(clip):
    """Unpadded and one by one, straight through the model."""
    prompts = ["a seven", "red", ""]
    found = clip.encode(prompts)
    assert isinstance(found, Cond)
    assert found.vector.shape == (3, WIDTH)
    assert found.tokens.shape == (3, LIMIT, WIDTH)
    assert found.mask.dtype == torch.bool
    for i, prompt in enumerate(prompts):
        alone = clip.model(**clip.tokenizer(prompt, return_tensors="pt"))
        length = alone.last_hidden_state.shape[1]
        assert found.mask[i].tolist() == [True] * length + [False] * (LIMIT - length)
        torch.testing.assert_close(found.tokens[i, :length], alone.last_hidden_state[0])
        torch.testing.assert_close(found.vector[i], alone.pooler_output[0])
    assert found.mask.sum(1).tolist() == [8, 5, 2]  # the start, a token a letter, the end


def test_a_unet_reads_it(clip):
    network = UNet(
        UNetConfig(widths=(8, 16), attention=(1,), heads=2, time_dim=16, depth=1, context_dim=WIDTH)
    )
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 900])
    for change in ({}, {"vector": None}):
        red, empty = (clip.encode([prompt])._replace(**change) for prompt in ("red", ""))
        assert not torch.allclose(network(x, t, red), network(x, t, empty), atol=1e-3)


def test_it_is_frozen(clip):
    network = nn.ModuleList([clip, nn.Linear(2, 2)])
    network.train()
    assert not any(part.training for part in clip.modules())
    assert not any(p.requires_grad for p in clip.parameters())
    assert not clip.encode(["red"]).tokens.requires_grad


def test_too_long_a_prompt_is_refused(clip):
    assert clip.encode(["seven on"]).mask.all()
    with pytest.raises(InputError, match=r"may hold 9 tokens, .* this one holds 10: 'red seven'"):
        clip.encode(["red", "red seven"])


def test_absent_weights_are_named(transformers, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(InputError, match="no CLIP text encoder at") as error:
        frozen_clip(str(tmp_path))
    assert "\n" not in str(error.value)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers"):
        frozen_clip("openai/clip-vit-large-patch14")


def test_the_interface_needs_no_package():
    """Any pair of model and tokenizer that behaves alike will do."""
    assert "transformers" not in vars(sys.modules[FrozenClip.__module__])
