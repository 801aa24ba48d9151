"""Worlds in which everything about diffusion is known exactly, and the schedules to try them with.

NumPy in float64 throughout, and nothing of the library inside: these are the answers that the
library's formulas are held against. N points, D numbers each, K components.
"""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from mnistlib.schedules import SCHEDULES, NoiseSchedule, make_schedule


class Mixture(NamedTuple):
    """A mixture of Gaussians, whose noisy versions are mixtures of Gaussians again.

    Attributes:
        weights: (K,) positive, adding up to 1.
        means: (K, D).
        covs: (K, D, D).
    """

    weights: np.ndarray
    means: np.ndarray
    covs: np.ndarray

    def log_density(self, x, alpha_bar):
        """Logarithm of the density of x_t at x (N, D): (N,)."""
        return np.logaddexp.reduce(self._look(x, alpha_bar)[0], axis=1)

    def score(self, x, alpha_bar):
        """Gradient of ``log_density`` at x (N, D): (N, D)."""
        log_p, pull = self._look(x, alpha_bar)
        return self._average(log_p, -pull)

    def x0_given(self, x, alpha_bar):
        """E[x_0 | x_t = x]: Gaussian conditioning in each component, then their average."""
        log_p, pull = self._look(x, alpha_bar)
        gain = np.sqrt(alpha_bar) * np.einsum("kde,nke->nkd", self.covs, pull)
        return self._average(log_p, self.means + gain)

    def eps_given(self, x, alpha_bar):
        """E[eps | x_t = x], likewise."""
        log_p, pull = self._look(x, alpha_bar)
        return self._average(log_p, np.sqrt(1 - alpha_bar) * pull)

    def draw(self, n, rng):
        """n points (n, D) of clean data."""
        k = rng.choice(len(self.weights), n, p=self.weights)
        z = rng.standard_normal((n, self.means.shape[1]))
        return self.means[k] + np.einsum("nde,ne->nd", np.linalg.cholesky(self.covs)[k], z)

    def denoiser(self, schedule):
        """The perfect denoiser (x_t (B, C, H, W), t (B,)) -> eps_hat, where C H W = D."""

        def denoise(x_t, t):
            assert t.dtype == torch.int64
            assert t.shape == x_t.shape[:1]
            assert (t == t[0]).all()
            points = x_t.double().flatten(1).numpy()
            eps = self.eps_given(points, float(schedule.alpha_bar[t[0]]))
            return torch.from_numpy(eps).view_as(x_t).to(x_t)

        return denoise

    def _look(self, x, alpha_bar):
        """Log of weight times density (N, K), and cov^-1 (x - mean) (N, K, D), at a noise level."""
        cov = alpha_bar * self.covs + (1 - alpha_bar) * np.eye(self.means.shape[1])
        away = x[:, None] - np.sqrt(alpha_bar) * self.means
        pull = np.linalg.solve(cov, away.transpose(1, 2, 0)).transpose(2, 0, 1)
        log_volume = np.linalg.slogdet(2 * np.pi * cov)[1] / 2
        return np.log(self.weights) - log_volume - (away * pull).sum(-1) / 2, pull

    @staticmethod
    def _average(log_p, values):
        share = np.exp(log_p - np.logaddexp.reduce(log_p, axis=1, keepdims=True))
        return (share[..., None] * values).sum(1)


def gaussian(mean, cov):
    """A mixture of one."""
    return Mixture(np.ones(1), np.asarray(mean, float)[None], np.asarray(cov, float)[None])


def posterior(alpha_bar, t, s, x_0, x_t):
    """Mean and variance of x_s given x_t and x_0, for s < t.

    The chain is walked step by step to get the joint covariance of (x_s, x_t) given x_0, which is
    then conditioned with the textbook formula. ``alpha_bar`` (T+1,).
    """
    keep = np.sqrt(alpha_bar[1:] / alpha_bar[:-1])  # amplitude that each step keeps
    mean, var = x_0, 0.0
    for k in keep[:s]:
        mean, var = k * mean, k**2 * var + 1 - k**2
    mean_s, var_s, cov = mean, var, var
    for k in keep[s:t]:
        mean, var, cov = k * mean, k**2 * var + 1 - k**2, k * cov
    return mean_s + cov / var * (x_t - mean), var_s - cov**2 / var


def any_schedule(max_T=200):
    """Hypothesis strategy: the library's schedules of any length, and schedules of any betas."""
    named = st.builds(make_schedule, st.sampled_from(sorted(SCHEDULES)), st.integers(1, max_T))
    betas = st.lists(st.floats(1e-4, 0.5), min_size=1, max_size=40)
    return named | betas.map(of_betas)


def of_betas(betas):
    """The schedule whose step t destroys the share betas[t-1] of the signal power."""
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - np.asarray(betas, float))])
    return NoiseSchedule(torch.from_numpy(alpha_bar))
