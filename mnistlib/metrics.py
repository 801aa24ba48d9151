"""How good are the samples? Distances, coverage and accuracies, on features of a network.

Legend: N samples, M samples of another set, D features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from mnistlib.types import InputError

__all__ = [
    "Extrapolation",
    "Neighbours",
    "PrecisionRecall",
    "Share",
    "accuracy",
    "feature_statistics",
    "features_of",
    "frechet_distance",
    "frechet_infinity",
    "frechet_to",
    "in_batches",
    "nearest",
    "precision_recall",
    "prompt_accuracy",
    "wilson_interval",
]

Statistics = tuple[Tensor, Tensor]


@torch.no_grad()
def in_batches(
    f: Callable[[Tensor], Tensor], x: Tensor, device: torch.device | str = "cpu", size: int = 100
) -> Tensor:
    """``f`` of all of x, computed ``size`` at a time on ``device``; the result is on the CPU.

    A hundred images stay in the cache of a CPU; five hundred take half as long again per image.
    """
    return torch.cat([f(part.to(device)).float().cpu() for part in x.split(size)])


def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """Features (N, D) of images (N, 1, 32, 32) in [-1, 1], on the CPU."""
    return in_batches(network.features, images, next(network.parameters()).device)


def feature_statistics(features: Tensor) -> Statistics:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64, unbiased.

    Raises:
        InputError: fewer than two samples, or a feature that is not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"need features of at least 2 samples, got {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise InputError("some features are not finite; look at the samples first")
    x = features.double()
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` between two Gaussians.

    Dowson & Landau 1982; Heusel et al. 2017, eq. 6. The trace of the root is the sum of the roots
    of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric, so that no complex number
    appears; eigenvalues that rounding made negative count as zero.

    Args:
        a, b: mean (D,) and covariance (D, D).
    """
    (m_a, c_a), (m_b, c_b) = [(m.double(), c.double()) for m, c in (a, b)]
    values, vectors = torch.linalg.eigh(c_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ c_b @ root_a).clamp(min=0).sqrt().sum()
    return float((m_a - m_b).square().sum() + c_a.trace() + c_b.trace() - 2 * cross)


def frechet_to(reference: Statistics, images: Tensor, network: nn.Module) -> float:
    """Frechet distance of images (N, 1, 32, 32) in [-1, 1] to the statistics of a reference set.

    ``network.features`` says what is compared; the reference must come from the same network.
    """
    return frechet_distance(reference, feature_statistics(features_of(network, images)))


class Extrapolation(NamedTuple):
    """A straight line through Frechet distances, drawn over 1/n.

    Attributes:
        value: the distance at 1/n = 0, that is of infinitely many samples.
        slope: what is added for every 1/n; ``value + slope / n`` is the distance to expect of n.
        sizes, distances: the n of each subset and the distance that was measured on it.
    """

    value: float
    slope: float
    sizes: list[int]
    distances: list[float]


def frechet_infinity(
    reference: Statistics,
    features: Tensor,
    *,
    points: int = 15,
    generator: Generator | None = None,
) -> Extrapolation:
    """The Frechet distance that infinitely many samples would have: Chong & Forsyth 2020.

    The distance of n samples is too large by an amount that falls like 1/n. It is measured on
    random subsets of ``points`` sizes, evenly spaced from a tenth of the samples to all of them;
    a line in 1/n is fitted by least squares. The law needs n well above D: the smallest subset
    must have more samples than features.

    Args:
        reference: mean (D,) and covariance (D, D) of the real set.
        features: (N, D) of the samples.
        points: how many sizes, at least 2.
        generator: draws the subsets.

    Raises:
        InputError: fewer than 2 points, or fewer than 10 (D + 1) samples.
    """
    N, D = features.shape
    if points < 2 or N // 10 <= D:
        raise InputError(
            f"a line needs 2 points or more and {10 * (D + 1)} samples or more of {D} features, "
            f"got {points} points and {N} samples"
        )
    sizes = torch.linspace(N // 10, N, points).round().long().tolist()
    subsets = [features[torch.randperm(N, generator=generator)[:n]] for n in sizes]
    distances = [frechet_distance(reference, feature_statistics(part)) for part in subsets]
    x = 1 / torch.tensor(sizes, dtype=torch.float64)
    line = torch.stack([torch.ones_like(x), x], dim=1)
    y = torch.tensor(distances, dtype=torch.float64)
    value, slope = torch.linalg.lstsq(line, y[:, None]).solution.flatten().tolist()
    return Extrapolation(value, slope, sizes, distances)


class Neighbours(NamedTuple):
    """The nearest members of a set, nearest first.

    Attributes:
        distances: (N, k) Euclidean, float64.
        indices: (N, k) where in the set they stand.
    """

    distances: Tensor
    indices: Tensor


def nearest(x: Tensor, others: Tensor, k: int = 1) -> Neighbours:
    """The k members of ``others`` (M, ...) that lie nearest to each x (N, ...).

    Give images for distances in pixels, or features. A point that is in both sets is its own
    nearest neighbour, at distance 0.

    Raises:
        InputError: shapes that do not match, or not 1 <= k <= M.
    """
    if not 1 <= k <= len(others):
        raise InputError(f"k must lie between 1 and the size of the set, {len(others)}; got {k}")
    found = [_distances(part, others).topk(k, largest=False) for part in x.split(500)]
    return Neighbours(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of a (N, ...) and b (M, ...); exactly 0 for equal points."""
    if a.shape[1:] != b.shape[1:]:
        raise InputError(f"cannot compare {tuple(a.shape[1:])} with {tuple(b.shape[1:])}")
    a, b = a.double().flatten(1), b.double().flatten(1)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1.

    Attributes:
        precision: of the generated points that lie where real ones do.
        recall: of the real points that lie where generated ones do.
    """

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of features (M, D) and (N, D): Kynkaanniemi et al. 2019.

    A set is thought of as filling a ball around each of its points that reaches to the point's
    k-th nearest neighbour in the set (eq. 1). Precision is the share of generated points inside
    the real set's balls, recall the share of real points inside the generated set's (eq. 2).
    Both depend on M and N, so compare sets of the same size only.

    Raises:
        InputError: a set with no more than k points, or features of different length.
    """
    if min(len(real), len(generated)) <= k:
        got = f"got {len(real)} and {len(generated)}"
        raise InputError(f"need more than k = {k} points in each set, {got}")
    return PrecisionRecall(_share_inside(generated, real, k), _share_inside(real, generated, k))


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of points that lie in the ball of one centre or more."""
    radii = nearest(centres, centres, k + 1).distances[:, -1]  # each is nearest to itself
    inside = [(_distances(part, centres) <= radii).any(1) for part in points.split(500)]
    return float(torch.cat(inside).double().mean())


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, 1, 32, 32) whose highest score is that of their label (N,).

    Raises:
        InputError: there are none, or not as many of each.
    """
    if len(images) != len(labels) or not len(labels):
        raise InputError(f"got {len(images)} images and {len(labels)} labels; give as many of each")
    scores = in_batches(network, images, next(network.parameters()).device)
    return float((scores.argmax(1) == labels.cpu()).double().mean())


def wilson_interval(right: int, of: int) -> tuple[float, float]:
    """Where a share lies of which ``right`` in ``of`` trials were seen, with 95 % confidence.

    Wilson 1927: all shares p from which the share seen is less than 1.96 standard deviations,
    those of p itself, away. Unlike the usual one it is right near 0 and 1 also.

    Raises:
        InputError: no trials, or not 0 <= right <= of.
    """
    if not 0 <= right <= of or not of:
        raise InputError(f"a share needs 0 <= right <= of and of > 0; got {right} of {of}")
    z = 1.959964
    seen, scale = right / of, 1 / (1 + z**2 / of)
    middle = scale * (seen + z**2 / (2 * of))
    half = scale * z * math.sqrt(seen * (1 - seen) / of + z**2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


class Share(NamedTuple):
    """How often something was right.

    Attributes:
        right, of: in so many of so many trials.
        low, high: see ``wilson_interval``.
    """

    right: int
    of: int
    low: float
    high: float


def prompt_accuracy(agreements: Sequence[Mapping[str, bool | None]]) -> dict[str, Share]:
    """How often each attribute is as the prompt named it, and all that a prompt named together.

    Args:
        agreements: what ``readers.agreement`` says of each image.

    Returns:
        One ``Share`` for each attribute that some prompt named, and ``everything``. A prompt that
        names nothing cannot be disobeyed, and counts nowhere.
    """
    judged = [
        {**each, "everything": False not in each.values()}
        for each in agreements
        if {*each.values()} != {None} and each
    ]
    shares = {}
    for name in dict.fromkeys(name for each in judged for name in each):
        named = [each[name] for each in judged if each.get(name) is not None]
        if named:
            shares[name] = Share(sum(named), len(named), *wilson_interval(sum(named), len(named)))
    return shares
