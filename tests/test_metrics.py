"""The metrics, against scipy, scikit-learn, torchmetrics, closed forms; and their refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import binomtest
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from mnistlib import metrics
from mnistlib.data import generator_for
from mnistlib.metrics import (
    accuracy,
    feature_statistics,
    features_of,
    frechet_distance,
    frechet_infinity,
    frechet_to,
    in_batches,
    nearest,
    precision_recall,
    prompt_accuracy,
    wilson_interval,
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


class Same(nn.Module):
    """What torchmetrics takes for its network: the "images" are features already."""

    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, x):
        """(N, D) -> (N, D)."""
        return x


@pytest.mark.parametrize("d", [3, 60])
def test_frechet_matches_torchmetrics(d):
    real, fake = features(400, d, seed=1).double(), features(300, d, seed=2).double()
    theirs = FrechetInceptionDistance(Same(d))
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(feature_statistics(real), feature_statistics(fake))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-7)


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


# ---- bias and extrapolation ----------------------------------------------------------------


def gaussian(n, deviations, seed, shift=0.0):
    """Return n independent Gaussian features with the given standard deviations, float64."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(shift + rng.standard_normal((n, len(deviations))) * deviations)


def test_bias_follows_its_law():
    """Chapter 4: n draws of a Gaussian lie c / n from it, with c from its eigenvalues."""
    deviations = np.array([3.0, 2.0, 2.0, 1.0, 0.5, 0.1])
    values = deviations**2
    products = np.outer(values, values) * (1 + np.eye(6)) / np.add.outer(values, values)
    c = values.sum() + products.sum() / 2
    truth = torch.zeros(6, dtype=torch.float64), torch.diag(torch.from_numpy(values))
    for n in (200, 800):
        found = [
            frechet_distance(truth, feature_statistics(gaussian(n, deviations, seed)))
            for seed in range(200)
        ]
        assert np.mean(found) == pytest.approx(c / n, rel=0.15)


def test_extrapolation_removes_the_bias():
    """The distance of two known Gaussians, from 10 sets of 500 samples of 8 features."""
    truth = torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    plain, corrected = [], []
    for seed in range(10):
        x = gaussian(500, 1.5 * np.ones(8), seed, shift=0.25)
        plain.append(frechet_distance(truth, feature_statistics(x)))
        line = frechet_infinity(truth, x, generator=generator_for(seed))
        corrected.append(line.value)
        assert line.distances[-1] == pytest.approx(plain[-1])
    expected = 8 * 0.25**2 + 8 * 0.5**2
    assert np.mean(plain) - expected > 4 * abs(np.mean(corrected) - expected)
    assert np.mean(corrected) == pytest.approx(expected, rel=0.03)


def test_extrapolation_is_a_line_in_the_inverse_number():
    reference, x = feature_statistics(features(900, 4, seed=0)), features(333, 4, seed=1)
    line = frechet_infinity(reference, x, points=7, generator=generator_for(0))
    assert line.sizes == [33, 83, 133, 183, 233, 283, 333]
    slope, value = np.polyfit(1 / np.array(line.sizes), line.distances, 1)
    assert (line.value, line.slope) == pytest.approx((value, slope), rel=1e-8)
    again = frechet_infinity(reference, x, points=7, generator=generator_for(0))
    assert again.sizes == line.sizes
    assert (again.value, *again.distances) == pytest.approx((line.value, *line.distances), rel=1e-9)
    other = frechet_infinity(reference, x, points=7, generator=generator_for(1))
    assert line.distances[:-1] != pytest.approx(other.distances[:-1], rel=1e-6), "they are drawn"


def test_extrapolation_uses_subsets_without_repetition(monkeypatch):
    seen = []

    def statistics(part):
        seen.append(part[:, 0])
        return feature_statistics(part)

    monkeypatch.setattr(metrics, "feature_statistics", statistics)
    x = torch.arange(100.0)[:, None]
    frechet_infinity(feature_statistics(x), x, points=4, generator=generator_for(3))
    assert [len(part) for part in seen] == [10, 40, 70, 100]
    assert all(len(part.unique()) == len(part) for part in seen)
    assert not torch.equal(seen[0], x[:10, 0])


@pytest.mark.parametrize(("n", "points"), [(409, 15), (1000, 1), (5, 15)])
def test_extrapolation_refuses(n, points):
    x = features(n, 40, seed=0)
    with pytest.raises(InputError, match=f"got {points} points and {n} samples"):
        frechet_infinity(feature_statistics(x), x, points=points)


# ---- neighbours, precision and recall ------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (1100, 7, 2)])
def test_nearest_matches_scikit_learn(n, m, d, k):
    x, others = features(n, d, seed=0), features(m, d, seed=1)
    theirs = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(others.double().numpy())
    distances, indices = theirs.kneighbors(x.double().numpy())
    found = nearest(x, others, k)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)
    np.testing.assert_array_equal(found.indices, indices)


def test_nearest_of_images_finds_copies_exactly():
    images = features(60, 64, seed=2, scale=100.0).view(60, 1, 8, 8)
    found = nearest(images[10:20], images)
    assert torch.equal(found.indices[:, 0], torch.arange(10, 20))
    assert (found.distances == 0).all()


@pytest.mark.parametrize("k", [0, 6])
def test_nearest_refuses_what_is_not_there(k):
    with pytest.raises(InputError, match=f"between 1 and the size of the set, 5; got {k}"):
        nearest(torch.zeros(2, 3), torch.zeros(5, 3), k)


def test_nearest_refuses_other_shapes():
    with pytest.raises(InputError, match=r"cannot compare \(1, 28, 28\) with \(1, 32, 32\)"):
        nearest(torch.zeros(2, 1, 28, 28), torch.zeros(5, 1, 32, 32))


def brute_force(real, generated, k):
    """Return precision and recall, point by point, as the paper's equations say."""

    def share(points, centres):
        fit = NearestNeighbors(n_neighbors=k + 1).fit(centres)
        radii = fit.kneighbors(centres)[0][:, k]
        inside = 0
        for p in points:
            inside += any(np.sqrt(((p - c) ** 2).sum()) <= r for c, r in zip(centres, radii))  # noqa: B905
        return inside / len(points)

    real, generated = real.double().numpy(), generated.double().numpy()
    return share(generated, real), share(real, generated)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_match_brute_force(seed, k):
    """Sets of different size and spread, so that precision and recall differ."""
    rng = np.random.default_rng(seed)
    real = torch.from_numpy(rng.standard_normal((120, 3)))
    generated = torch.from_numpy(1 + 0.7 * rng.standard_normal((70, 3)))
    found = precision_recall(real, generated, k)
    assert found == pytest.approx(brute_force(real, generated, k))
    assert 0 < found.recall < 1
    assert 0 < found.precision < 1


def test_precision_and_recall_of_more_than_one_batch():
    real, generated = features(1203, 2, seed=0), features(1101, 2, seed=1)
    assert precision_recall(real, generated) == pytest.approx(brute_force(real, generated, 3))


@given(seed=st.integers(0, 1000), n=st.integers(4, 40), k=st.integers(1, 3))
def test_equal_sets_are_precise_and_complete(seed, n, k):
    x = features(n, 3, seed)
    assert precision_recall(x, x.flip(0), k) == (1, 1)
    assert precision_recall(x, x + 1e4, k) == (0, 0)


@given(seed=st.integers(0, 1000))
def test_precision_and_recall_change_places_with_the_sets(seed):
    a, b = features(30, 3, seed), features(25, 3, seed + 1)
    assert precision_recall(a, b) == precision_recall(b, a)[::-1]


@given(seed=st.integers(0, 1000), angle=st.floats(0, 6), scale=st.floats(0.1, 10))
def test_precision_and_recall_do_not_depend_on_the_frame(seed, angle, scale):
    turn = scale * matrix([np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)])
    a, b = features(30, 2, seed).double(), features(25, 2, seed + 1).double()
    moved = precision_recall(a @ turn + 3, b @ turn + 3)
    assert moved == pytest.approx(precision_recall(a, b))


def test_what_is_lost_and_what_is_added():
    """Two clusters are real. One alone is precise; one more that is not real is complete."""
    left, right, wrong = (features(50, 2, seed=s) / 100 + c for s, c in enumerate((0, 20, 40)))
    real = torch.cat([left, right])
    assert precision_recall(real, left) == (1, 0.5)
    found = precision_recall(real, torch.cat([left, right, wrong]))
    assert found == pytest.approx((2 / 3, 1))


def test_precision_and_recall_refuse_small_sets():
    with pytest.raises(InputError, match="more than k = 3 points in each set, got 9 and 3"):
        precision_recall(torch.zeros(9, 2), torch.zeros(3, 2))


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


# ---- shares --------------------------------------------------------------------------------


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_matches_scipy(pair):
    wanted = binomtest(*pair).proportion_ci(0.95, method="wilson")
    assert wilson_interval(*pair) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(("right", "of"), [(0, 0), (-1, 5), (6, 5)])
def test_no_share_without_trials(right, of):
    with pytest.raises(InputError, match="a share needs"):
        wilson_interval(right, of)


def test_prompt_accuracy_counts_what_was_named():
    accuracy = prompt_accuracy(
        [
            {"digit": True, "ink": True, "paper": None, "stroke": None},
            {"digit": True, "ink": False, "paper": None, "stroke": None},
            {"digit": False, "ink": None, "paper": None, "stroke": True},
            {"digit": None, "ink": None, "paper": None, "stroke": None},
        ]
    )
    counts = {name: (share.right, share.of) for name, share in accuracy.items()}
    assert counts == {"digit": (2, 3), "ink": (1, 2), "stroke": (1, 1), "everything": (1, 3)}
    assert accuracy["ink"][2:] == wilson_interval(1, 2)


def test_features_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"cannot compare \(5,\) with \(4,\)"):
        precision_recall(features(10, 4, 0), features(10, 5, 1))
