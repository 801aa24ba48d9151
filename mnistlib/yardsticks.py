"""What the metrics say of sets that are known: real digits, digits spoilt on purpose, samples.

Legend: N images, D features. Images are float (N, 1, 32, 32) in [-1, 1].
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnistlib import recipes
from mnistlib.classifier import DigitFeatures
from mnistlib.data import generator_for, mnist, to_images
from mnistlib.metrics import (
    Statistics,
    feature_statistics,
    frechet_distance,
    frechet_infinity,
    in_batches,
    nearest,
    precision_recall,
)

__all__ = ["CORRUPTIONS", "EYES", "copies_run", "features_run", "size_run"]

# ---- eyes: what a distance may look at -----------------------------------------------------


@cache
def _trained() -> DigitFeatures:
    return recipes.train_or_load("digit_features", "read").model


@cache
def _untrained() -> DigitFeatures:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return DigitFeatures(_trained().config).eval()


def early_layer(x: Tensor) -> Tensor:
    """The second level of the trained network, averaged over all positions: (N, 32)."""
    network = _trained()
    h = network.downsample[0](network.blocks[0](network.conv_in(x)))
    return network.blocks[1](h).mean(dim=(2, 3))


EYES: dict[str, Callable[[Tensor], Tensor]] = {
    "trained network": lambda x: _trained().features(x),
    "its second level": early_layer,
    "untrained network": lambda x: _untrained().features(x),
    "pixels": lambda x: x.flatten(1),
}
"""Functions images -> features (N, D)."""


# ---- corruptions: what a distance should notice --------------------------------------------


def blur(x: Tensor) -> Tensor:
    """Average each pixel with its neighbours, by the weights 1, 2, 1 in both directions."""
    side = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(F.pad(x, [1] * 4, value=-1.0), torch.outer(side, side)[None, None])


def splice(x: Tensor) -> Tensor:
    """The upper half of each image over the lower half of the next."""
    return torch.cat([x[:, :, :16], x.roll(1, 0)[:, :, 16:]], dim=2)


Corruption = Callable[[Tensor, Tensor, Generator], Tensor]

CORRUPTIONS: dict[str, Corruption] = {
    "none": lambda x, y, g: x,
    "blur": lambda x, y, g: blur(x),
    "noise of 0.1": lambda x, y, g: (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(-1, 1),
    "2 pixels to the right": lambda x, y, g: x.roll(2, -1),
    "halves of two digits": lambda x, y, g: splice(x),
    "no ones": lambda x, y, g: _again(x[y != 1], len(x)),
    "250 digits, repeated": lambda x, y, g: _again(x[:250], len(x)),
}
"""Functions (images, labels, generator) -> as many images."""


def _again(x: Tensor, n: int) -> Tensor:
    """The images in turn, from the first again when they run out, until there are n."""
    return x[torch.arange(n) % len(x)]


# ---- measurements for the records ----------------------------------------------------------


@cache
def _reference(eye: str) -> Statistics:
    """Mean and covariance of the 60,000 training digits; they ship with the trained network."""
    if eye == "trained network":
        return _trained().reference_mean, _trained().reference_cov
    return feature_statistics(in_batches(EYES[eye], to_images(mnist(source="full").images)))


def features_run(eye: str, seed: int, n: int = 5000) -> dict[str, Any]:
    """The distance of n random training digits to all of them, as they are and after each damage.

    Args:
        eye: a key of ``EYES``.
    """
    digits = mnist(source="full")
    chosen = torch.randperm(len(digits.labels), generator=generator_for(seed, n))[:n]
    x, y = to_images(digits.images[chosen]), digits.labels[chosen]
    found = {}
    for name, corrupt in CORRUPTIONS.items():
        features = in_batches(EYES[eye], corrupt(x, y, generator_for(seed, 1)))
        found[name] = frechet_distance(_reference(eye), feature_statistics(features))
    return {"digits": n, "frechet": found}


SIZES = (250, 500, 1000, 2000, 5000, 10_000)
STEPS = 25


@cache
def _images(source: str) -> Tensor:
    """All digits of a set, or 5,000 samples of a recipe."""
    if source in recipes.RECIPES:
        trained = recipes.train_or_load(source, "read")
        return recipes.sample_in_batches(trained, 5000, STEPS, seed=4, eta=1.0)
    if source == "embedded digits":
        return to_images(mnist(source="small").images)
    return to_images(mnist(source="full", train=source == "training digits").images)


@cache
def _pool(source: str) -> Tensor:
    return in_batches(_trained().features, _images(source))


def _weights_of(source: str) -> dict[str, Any]:
    """What the samples were made with, so that a record cannot outlive the weights unnoticed."""
    if source not in recipes.RECIPES:
        return {}
    return {"steps": STEPS, "weights": recipes.train_or_load(source, "read").record["sha256"]}


def size_run(source: str, seed: int) -> dict[str, Any]:
    """Random subsets of many sizes, judged: distance to the 60,000, precision and recall.

    Precision and recall compare with as many of the 5,000 embedded training digits, from 1,000 to
    5,000 of each. For samples the line through the distances is continued to infinitely many.

    Args:
        source: "training digits", "test digits", or a recipe that draws.
    """
    pool, reference = _pool(source), _reference("trained network")
    known = _pool("embedded digits")
    row: dict[str, Any] = {"sizes": [n for n in SIZES if n <= len(pool)], "frechet": []}
    row |= {"shares_of": [], "precision": [], "recall": []}
    for n in row["sizes"]:
        part = pool[torch.randperm(len(pool), generator=generator_for(seed, n))[:n]]
        row["frechet"].append(frechet_distance(reference, feature_statistics(part)))
        if 1000 <= n <= len(known):
            shares = precision_recall(known[:n], part)
            row["shares_of"].append(n)
            row["precision"].append(shares.precision)
            row["recall"].append(shares.recall)
    if source in recipes.RECIPES:
        line = frechet_infinity(reference, pool, generator=generator_for(seed, 2))
        row |= {"infinity": line.value, "slope": line.slope}
    return row | _weights_of(source)


def copies_run(source: str, seed: int, n: int = 500) -> dict[str, Any]:
    """How far n random images are, in pixels, from the nearest of the 60,000 training digits.

    Args:
        source: as in ``size_run``.
    """
    x = _images(source)
    x = x[torch.randperm(len(x), generator=generator_for(seed, n))[:n]]
    found = nearest(x, _images("training digits")).distances.flatten().sort().values
    return {"distances": [round(d, 2) for d in found.tolist()]} | _weights_of(source)
