"""Every formula and every number of `book/gaussians.md`, checked by quadrature or by simulation.

The two kinds of evidence are kept apart: where an integral over the line settles a claim, `average`
integrates; where the claim is about drawing, a fixed seed draws `DRAWS` values and the tolerance is
at least five standard errors wide.
"""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / "book" / "gaussians.md").read_text(encoding="utf-8")
STEP = 1e-3
LINE = STEP * np.arange(-40_000, 40_001)  # wide and fine enough for every density below
DRAWS = 1_000_000


def normal(x, mean, variance):
    """Density of N(mean, variance) at `x`."""
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def average(values, density):
    """Integral of values(x) * density(x) over LINE; the integrand vanishes at both ends."""
    return np.sum(values * density) * STEP


def slope(log_density, x, h=1e-5):
    """Central difference of a function of one number."""
    return (log_density(x + h) - log_density(x - h)) / (2 * h)


def draws(mean, variance, seed):
    """DRAWS independent values from N(mean, variance)."""
    return mean + np.sqrt(variance) * np.random.default_rng(seed).standard_normal(DRAWS)


def says(value, pattern):
    """Assert that the page prints `value`, written as `pattern`."""
    text = format(value, pattern)
    assert re.search(rf"(?<![\d.]){re.escape(text)}(?!\d)", PAGE), f"the page does not say {text}"


def test_every_test_named_on_the_page_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named, "the page names no test"
    assert named <= set(globals())


def test_density():
    standard = normal(LINE, 0.0, 1.0)
    assert average(1.0, standard) == pytest.approx(1.0, abs=1e-12)
    says(normal(0.0, 0.0, 1.0), ".3f")
    says(normal(2.0, 0.0, 1.0), ".3f")
    for sigmas in (1, 2, 3):
        inside = np.clip((sigmas - np.abs(LINE)) / STEP + 0.5, 0.0, 1.0)
        says(100 * average(inside, standard), ".1f")
    curvature = slope(lambda x: slope(lambda y: np.log(normal(y, 0.5, 0.09)), x, 1e-4), 1.0, 1e-4)
    assert curvature == pytest.approx(-1 / 0.09, rel=1e-5)


def test_mean_and_variance():
    density = normal(LINE, 0.5, 0.09)
    assert average(LINE, density) == pytest.approx(0.5, abs=1e-12)
    assert average((LINE - 0.5) ** 2, density) == pytest.approx(0.09, abs=1e-12)
    assert average(LINE**2, density) == pytest.approx(0.34, abs=1e-12)


def test_scaling():
    x = draws(2.0, 4.0, seed=0)
    assert np.mean(0.6 * x) == pytest.approx(1.2, abs=0.01)
    assert np.var(0.6 * x) == pytest.approx(1.44, abs=0.02)
    # change of variables: the density of a x + b at y is that of x at (y - b) / a, over |a|
    y = np.linspace(-6.0, 9.0, 50)
    for a, b in ((0.6, 0.0), (-2.0, 3.0)):
        moved = normal((y - b) / a, 2.0, 4.0) / abs(a)
        np.testing.assert_allclose(moved, normal(y, a * 2.0 + b, a**2 * 4.0), rtol=1e-12)


def test_sum():
    # the density of a sum is the convolution of the two densities
    for total in (-7.0, 1.0, 4.0):
        convolved = average(normal(LINE, 1.0, 9.0), normal(total - LINE, -2.0, 16.0))
        assert convolved == pytest.approx(normal(total, -1.0, 25.0), rel=1e-10)
    assert np.std(draws(1.0, 9.0, 1) + draws(-2.0, 16.0, 2)) == pytest.approx(5.0, abs=0.03)
    blend = 0.8 * draws(0.0, 1.0, 3) + 0.6 * draws(0.0, 1.0, 4)
    assert np.var(blend) == pytest.approx(1.0, abs=0.01)
    once = np.sqrt(0.9) * 0.3 + draws(0.0, 0.1, 5)
    twice = np.sqrt(0.8) * once + draws(0.0, 0.2, 6)
    assert np.mean(twice) == pytest.approx(np.sqrt(0.72) * 0.3, abs=0.005)
    assert np.var(twice) == pytest.approx(0.28, abs=0.005)


def test_reparameterisation():
    noise = draws(0.0, 1.0, seed=7)
    x = 1.0 + 0.5 * noise
    assert np.mean(x**2) == pytest.approx(1.25, abs=0.01)
    assert np.mean(2 * x * noise) == pytest.approx(1.0, abs=0.02)
    assert slope(lambda sigma: 1.0 + sigma**2, 0.5) == pytest.approx(1.0, abs=1e-8)


def test_many_dimensions():
    a = np.array([[1.0, 0.0], [0.8, 0.6]])
    np.testing.assert_allclose(a @ a.T, [[1.0, 0.8], [0.8, 1.0]], atol=1e-12)
    noise = np.random.default_rng(8).standard_normal((2, DRAWS))
    np.testing.assert_allclose(np.cov(a @ noise), a @ a.T, atol=0.01)
    # the joint density of two correlated numbers, from the formula, has mass one
    line = np.linspace(-8.0, 8.0, 401)
    points = np.stack(np.meshgrid(line, line), axis=-1)
    square = np.einsum("...i,ij,...j->...", points, np.linalg.inv(a @ a.T), points)
    density = np.exp(-square / 2) / np.sqrt((2 * np.pi) ** 2 * np.linalg.det(a @ a.T))
    assert density.sum() * (line[1] - line[0]) ** 2 == pytest.approx(1.0, abs=1e-10)
    lengths = np.linalg.norm(np.random.default_rng(9).standard_normal((20_000, 1024)), axis=1)
    assert lengths.mean() == pytest.approx(32.0, abs=0.05)
    assert lengths.std() == pytest.approx(0.71, abs=0.02)


def posterior(m0, v0, a, s2, y):
    """Mean and variance of z | y, for z ~ N(m0, v0) and y | z ~ N(a z, s2)."""
    v = 1 / (1 / v0 + a**2 / s2)
    return v * (m0 / v0 + a * y / s2), v


@pytest.mark.parametrize(
    ("m0", "v0", "a", "s2", "y"), [(0, 1, 0.8, 0.36, 1), (1.5, 0.3, -2, 0.7, 0.4)]
)
def test_posterior(m0, v0, a, s2, y):
    joint = normal(LINE, m0, v0) * normal(y, a * LINE, s2)
    evidence = average(1.0, joint)
    mean, variance = posterior(m0, v0, a, s2, y)
    assert evidence == pytest.approx(normal(y, a * m0, a**2 * v0 + s2), rel=1e-10)
    np.testing.assert_allclose(joint / evidence, normal(LINE, mean, variance), atol=1e-12)
    if (m0, v0) == (0, 1):
        assert (mean, variance) == pytest.approx((0.8, 0.36), abs=1e-12)


def test_conditioning():
    for m0, v0, a, s2, y in ((0, 1, 0.8, 0.36, 1), (1.5, 0.3, -2, 0.7, 0.4)):
        zy, yy = a * v0, a**2 * v0 + s2
        block = m0 + zy / yy * (y - a * m0), v0 - zy / yy * zy
        assert block == pytest.approx(posterior(m0, v0, a, s2, y), abs=1e-12)


def test_ddpm_posterior():
    before, beta, x0, x_t = 0.9, 0.2, -0.7, 0.35
    after = (1 - beta) * before
    assert after == pytest.approx(0.72, abs=1e-12)
    variance = (1 - before) / (1 - after) * beta
    from_clean = np.sqrt(before) * beta / (1 - after)
    from_noisy = np.sqrt(1 - beta) * (1 - before) / (1 - after)
    expected = posterior(np.sqrt(before) * x0, 1 - before, np.sqrt(1 - beta), beta, x_t)
    assert (from_clean * x0 + from_noisy * x_t, variance) == pytest.approx(expected, abs=1e-12)
    says(variance, ".4f")
    says(from_clean, ".3f")
    says(from_noisy, ".3f")


def kl(mean_p, var_p, mean_q, var_q):
    """KL(p || q) of two Gaussians on the line, in nats."""
    return (np.log(var_q / var_p) + (var_p + (mean_p - mean_q) ** 2) / var_q - 1) / 2


def test_kl():
    def log_normal(mean, variance):
        return -((LINE - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2

    for p, q in (((1, 1), (0, 1)), ((0, 1), (0, 4)), ((0, 4), (0, 1)), ((-1, 0.5), (2, 3))):
        integral = average(log_normal(*p) - log_normal(*q), normal(LINE, *p))
        assert kl(*p, *q) == pytest.approx(integral, abs=1e-10)
    assert kl(1, 1, 0, 1) == pytest.approx(0.5, abs=1e-12)
    assert kl(1.3, 0.7, 0.4, 0.7) == pytest.approx((1.3 - 0.4) ** 2 / (2 * 0.7), abs=1e-12)
    says(kl(0, 1, 0, 4), ".3f")
    says(kl(0, 4, 0, 1), ".3f")


def test_score():
    assert slope(lambda x: np.log(normal(x, 2.0, 0.25)), 1.0) == pytest.approx(4.0, abs=1e-6)
    alpha, sigma, x0, eps = 0.8, 0.6, -0.3, 1.5
    x_t = alpha * x0 + sigma * eps
    uphill = slope(lambda x: np.log(normal(x, alpha * x0, sigma**2)), x_t)
    assert uphill == pytest.approx(-2.5, abs=1e-6)


MIXTURE = {
    "weights": np.array([0.5, 0.5]),
    "means": np.array([-1.0, 1.0]),
    "variances": np.full(2, 0.25),
}


def after_noise(alpha, sigma):
    """The components of alpha x + sigma eps, for x drawn from MIXTURE."""
    variances = alpha**2 * MIXTURE["variances"] + sigma**2
    return MIXTURE | {"means": alpha * MIXTURE["means"], "variances": variances}


def mixture(x, weights, means, variances):
    """Density of the mixture at the number `x`, its score, and the components' responsibilities."""
    parts = weights * normal(x, means, variances)
    shares = parts / parts.sum()
    return parts.sum(), np.sum(shares * (means - x) / variances), shares


def test_mixture_score():
    _, score, shares = mixture(0.5, **MIXTURE)
    assert score == pytest.approx(slope(lambda x: np.log(mixture(x, **MIXTURE)[0]), 0.5), abs=1e-6)
    says(shares[1], ".3f")
    says(shares[0], ".3f")
    says(score, ".2f")
    # noise keeps a mixture a mixture: integrate the clean value out at several noisy ones
    alpha, sigma = 0.8, 0.6
    clean = sum(0.5 * normal(LINE, mean, 0.25) for mean in (-1.0, 1.0))
    noisy = after_noise(alpha, sigma)
    for x_t in (-2.0, 0.1, 0.9):
        integral = average(clean, normal(x_t, alpha * LINE, sigma**2))
        assert mixture(x_t, **noisy)[0] == pytest.approx(integral, rel=1e-10)


def test_tweedie():
    alpha, sigma = 0.8, 0.6
    assert (1.0 + sigma**2 * -1.0) / alpha == pytest.approx(0.8, abs=1e-12)
    # and for clean data that is not a Gaussian
    clean = sum(0.5 * normal(LINE, mean, 0.25) for mean in (-1.0, 1.0))
    noisy = after_noise(alpha, sigma)
    for x_t in (-1.2, 0.0, 0.5):
        joint = clean * normal(x_t, alpha * LINE, sigma**2)
        expected = average(LINE, joint) / average(1.0, joint)
        score = mixture(x_t, **noisy)[1]
        assert (x_t + sigma**2 * score) / alpha == pytest.approx(expected, abs=1e-9)
