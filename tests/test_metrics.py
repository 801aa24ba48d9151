"""The metrics: Frechet distance against scipy and closed forms, accuracy, refusals."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from mnistlib.metrics import (
    accuracy,
    feature_statistics,
    features_of,
    frechet_distance,
    frechet_to,
    in_batches,
)
from mnistlib.types import InputError


def features(n, d, seed, scale=1.0):
    """Return n correlated feature vectors of d numbers, float32 as networks give them."""
    rng = np.random.default_rng(seed)
    mix, shift = rng.standard_normal((d, d)), rng.standard_normal(d)
    return torch.from_numpy(scale * (rng.standard_normal((n, d)) @ mix + shift)).float()


def matrix(*rows):
    """Return a float64 matrix or vector."""
    return torch.tensor(rows, dtype=torch.float64)


class Eye(nn.Module):
    """A network whose features are the first pixels, and whose scores are the first ten."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def features(self, x):
        """(B, 1, H, W) -> (B, 3)."""
        return self.scale * x.flatten(1)[:, :3]

    def forward(self, x):
        """(B, 1, H, W) -> (B, 10)."""
        return self.scale * x.flatten(1)[:, :10]


# ---- statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(2, 1), (50, 1), (50, 6), (4, 9)])
def test_statistics_equal_numpy(n, d):
    x = features(n, d, seed=0)
    mean, cov = feature_statistics(x)
    assert mean.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(mean, x.double().numpy().mean(0), rtol=1e-12)
    expected = np.cov(x.double().numpy().T, ddof=1).reshape(d, d)
    np.testing.assert_allclose(cov, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (4,), (2, 2, 2)])
def test_too_few_samples_are_refused(shape):
    with pytest.raises(InputError, match="features of at least 2 samples, got"):
        feature_statistics(torch.zeros(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    x = features(10, 3, seed=0)
    x[4, 1] = bad
    with pytest.raises(InputError, match="not finite; look at the samples"):
        feature_statistics(x)


# ---- Frechet distance ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("d", [1, 5, 40])
def test_frechet_matches_scipy(d, seed):
    a, b = (
        feature_statistics(features(300, d, seed)),
        feature_statistics(features(200, d, 9 + seed)),
    )
    (m_a, c_a), (m_b, c_b) = [[part.numpy() for part in statistics] for statistics in (a, b)]
    cross = np.trace(sqrtm(c_a @ c_b)).real
    expected = ((m_a - m_b) ** 2).sum() + np.trace(c_a) + np.trace(c_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [5, 500])  # 5 samples of 8 features: a singular covariance
def test_frechet_of_equal_sets_is_zero(n):
    x = features(n, 8, seed=3)
    statistics = feature_statistics(x)
    scale = float(statistics[1].trace())
    assert abs(frechet_distance(statistics, statistics)) < 1e-6 * scale
    shuffled = feature_statistics(x.flip(0))
    assert abs(frechet_distance(statistics, shuffled)) < 1e-6 * scale


def test_frechet_of_known_gaussians():
    """Independent numbers: squared distance of the means plus that of the standard deviations."""
    a = matrix(1, 2, 3), torch.diag(matrix(4, 9, 1))
    b = matrix(1, 0, 3), torch.diag(matrix(1, 4, 25))
    assert frechet_distance(a, b) == pytest.approx(2**2 + 1 + 1 + 16)
    moved = a[0] + matrix(3, 0, 4), a[1]
    assert frechet_distance(a, moved) == pytest.approx(25)


def test_frechet_of_singular_gaussians():
    """Each on a line of its own: the root of u u' v v' has the trace |u . v|."""
    u, v, zero = matrix(1, 2, 0), matrix(2, 1, 3), torch.zeros(3)
    distance = frechet_distance((zero, torch.outer(u, u)), (zero, torch.outer(v, v)))
    assert distance == pytest.approx(5 + 14 - 2 * 4, rel=1e-6)
    point = zero, torch.zeros(3, 3)
    assert frechet_distance(point, (zero, torch.outer(v, v))) == pytest.approx(14)


def test_frechet_to_uses_the_features_of_the_network():
    images = features(700, 16, seed=5).view(700, 1, 4, 4)
    reference = feature_statistics(features(400, 3, seed=6))
    assert torch.equal(features_of(Eye(), images), images.flatten(1)[:, :3])
    expected = frechet_distance(reference, feature_statistics(images.flatten(1)[:, :3]))
    assert frechet_to(reference, images, Eye()) == pytest.approx(expected)


# ---- accuracy ------------------------------------------------------------------------------


def test_accuracy_counts_the_highest_scores():
    images = torch.full((1200, 1, 4, 4), -1.0)
    labels = torch.arange(1200) % 10
    images.view(1200, 16)[torch.arange(1200), labels] = 1.0
    assert accuracy(Eye(), images, labels) == 1
    wrong = torch.where(torch.arange(1200) < 300, (labels + 1) % 10, labels)
    assert accuracy(Eye(), images, wrong) == pytest.approx(0.75)


@pytest.mark.parametrize(("n_images", "n_labels"), [(3, 2), (2, 3), (0, 0)])
def test_images_without_labels_are_refused(n_images, n_labels):
    with pytest.raises(InputError, match=f"got {n_images} images and {n_labels} labels"):
        accuracy(Eye(), torch.zeros(n_images, 1, 4, 4), torch.zeros(n_labels).long())


def test_batches_are_put_together_in_order():
    x, sizes = features(12, 4, seed=7), []
    weight = torch.ones(4, requires_grad=True)

    def f(part):
        sizes.append(len(part))
        return (part * weight).bfloat16()

    out = in_batches(f, x, size=5)
    assert sizes == [5, 5, 2]
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert torch.equal(out, x.bfloat16().float())
