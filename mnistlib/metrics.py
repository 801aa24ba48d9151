"""How good are the samples? Distances and accuracies measured on features of a network.

Legend: N samples, D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnistlib.types import InputError

__all__ = [
    "accuracy",
    "feature_statistics",
    "features_of",
    "frechet_distance",
    "frechet_to",
    "in_batches",
]

Statistics = tuple[Tensor, Tensor]


@torch.no_grad()
def in_batches(
    f: Callable[[Tensor], Tensor], x: Tensor, device: torch.device | str = "cpu", size: int = 500
) -> Tensor:
    """``f`` of all of x, computed ``size`` at a time on ``device``; the result is on the CPU."""
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


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, 1, 32, 32) whose highest score is that of their label (N,)."""
    if len(images) != len(labels) or not len(labels):
        raise InputError(f"got {len(images)} images and {len(labels)} labels; give as many of each")
    scores = in_batches(network, images, next(network.parameters()).device)
    return float((scores.argmax(1) == labels.cpu()).double().mean())
