"""Small things to test with: MNIST folders of made digits, a network and a training of a second.

Run as a program, it trains that network with its state in the file named, resuming what is there;
the tests of ``fit`` kill it.
"""

import hashlib
import io
import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mnistlib import checkpoints, recipes
from mnistlib.classifier import DigitFeatures, DigitFeaturesConfig
from mnistlib.data import Digits, batch_indices, generator_for, holdout, mnist
from mnistlib.jobs import LabelledBatch
from mnistlib.scenes import measured
from mnistlib.train import TrainConfig, fit
from mnistlib.vae import Posterior

CONFIG = TrainConfig(steps=150, lr=1e-2, warmup=10, ema=0.9, checkpoint_every=7, seed=3)


def idx(array):
    """Return an array of bytes as an idx file, written from the format's description."""
    header = [0, 0, 8, array.ndim, *b"".join(n.to_bytes(4, "big") for n in array.shape)]
    return bytes(header) + array.astype(np.uint8).tobytes()


def made_digits(n, seed=0):
    """Return n images (n, 28, 28) of noise and their labels (n,)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10


def write_mnist(root, n_train=100, n_test=20):
    """Write made digits in torchvision's layout and return the root."""
    raw = Path(root) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in [("train", n_train), ("t10k", n_test)]:
        images, labels = made_digits(n, seed=n)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return Path(root)


def write_manifest(folder):
    """Write the SHA-256 sums of a folder of weights."""
    files = sorted(folder.glob("*.safetensors"))
    sums = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files]
    (folder / "SHA256SUMS").write_text("".join(sums))


def stand_among_made_digits(folder, patch, module):
    """Stand in a folder with made digits, of which ``module`` holds out the last 40."""
    patch.setenv("MNISTLIB_DATA", str(write_mnist(folder / "digits")))
    patch.setattr(module, "holdout", lambda digits: holdout(digits, 40))
    patch.chdir(folder)


def hold_out_few(patch):
    """Let the smoke profiles of scenes hold out 20 digits, not 200; there are 100 made ones."""
    for name in ("rgb_vae", "text_to_image"):
        recipe = recipes.RECIPES[name]
        few = recipe._replace(smoke=replace(recipe.smoke, held_out=20))
        patch.setitem(recipes.RECIPES, name, few)


def write_weights(folder, trainings):
    """Train recipes, {name: settings}, on made digits; lay them out like the shipped weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNISTLIB_DATA", str(write_mnist(folder / "digits")))
        patch.setattr(recipes, "WEIGHTS", folder)
        for name, settings in trainings.items():
            *_, last = recipes.train(name, settings, profile="smoke")
            path = folder / f"{name}.safetensors"
            checkpoints.save(path, last.model, asdict(last.settings), last.record)
            write_manifest(folder)
    return folder


def train_scene_vae(folder):
    """Train an autoencoder of scenes for a moment on made digits; return its file."""
    few = {"held_out": "20", "steps": "5", "judged": "4", "checkpoint_every": "5"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNISTLIB_DATA", str(write_mnist(folder / "digits")))
        settings = recipes.settings_of("rgb_vae", "smoke", few)
        *_, _ = recipes.train("rgb_vae", settings, profile="smoke", out=folder)
    return folder / "rgb_vae.safetensors"


def file_of(pixels, kind="PNG", **how):
    """Return a picture as a file in memory."""
    picture, file = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), None
    picture.save(file := io.BytesIO(), kind, **how)
    return file


@cache
def painting():
    """Return 1,000 real digits to paint with, measured, and as they were."""
    images, labels, source = mnist(source="small")
    some = Digits(images[:1000], labels[:1000], source)
    return measured(some), some


class Clear(nn.Module):
    """Stand for an autoencoder of scenes that loses nothing: its latents are the pictures."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(down=1)
        self.register_buffer("shift", torch.zeros(3, 1, 1))
        self.register_buffer("scale", torch.ones(3, 1, 1))

    def encode(self, x):
        """Return the picture."""
        return Posterior(x, torch.zeros_like(x))

    def decode(self, z):
        """Return the picture."""
        return z


def numbers(*shape, seed=0, dtype=torch.float32):
    """Return standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alive(module, seed=0):
    """Move every parameter away from where it starts, zeros included, and switch to eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return module.eval()


def network(seed=0, dropout=0.3):
    """Return a fresh small network with dropout."""
    torch.manual_seed(seed)
    return DigitFeatures(DigitFeaturesConfig(widths=(4, 8), dropout=dropout))


def cross_entropy(model, batch):
    """Return the loss of a labelled batch."""
    return F.cross_entropy(model(batch.images).float(), batch.labels)


def batch_at(seed, step):
    """Return 4 noisy images of 8x8 and labels; the same labels come round once per epoch."""
    labels = batch_indices(10, 4)(seed, step)
    noise = torch.randn(4, 1, 8, 8, generator=generator_for(seed, step))
    return LabelledBatch(noise + labels.view(-1, 1, 1, 1) / 5, labels)


def trained(config=CONFIG, **kwargs):
    """Train to the end and return the last step."""
    *_, last = fit(network(), cross_entropy, batch_at, config, **kwargs)
    return last


def weights(step):
    """Return the weights of a step and their average as one dictionary of copies."""
    both = [("model", step.model), ("ema", step.ema)]
    return {f"{k}.{name}": v.clone() for k, m in both for name, v in m.state_dict().items()}


def same(a, b):
    """Are two dictionaries of tensors identical, bit for bit, NaN included?"""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].numpy().tobytes() == b[k].numpy().tobytes()
        for k in a
    )


def scalars(folder):
    """Return what TensorBoard shows of a training: {tag: {step: value}}, each step there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(folder) / "tensorboard"), size_guidance={"scalars": 0})
    found = {}
    for tag in events.Reload().Tags()["scalars"]:
        rows = [(event.step, event.value) for event in events.Scalars(tag)]
        found[tag] = dict(rows)
        assert len(found[tag]) == len(rows), f"{tag} holds a step twice"
    return found


if __name__ == "__main__":
    state = Path(sys.argv[1])
    run = fit(network(), cross_entropy, batch_at, CONFIG, state=state, resume=state.exists())
    for step in run:
        print(step.step, flush=True)
