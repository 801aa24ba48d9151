"""How much of the image is left at each time: the noise schedule.

Shapes: T is the number of noise levels, B the batch size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mnistlib.types import InputError

__all__ = [
    "SCHEDULES",
    "NoiseSchedule",
    "cosine",
    "linear",
    "make_schedule",
    "scaled_linear",
    "uniform_times",
]


@dataclass(frozen=True)
class NoiseSchedule:
    """The cumulative signal power of every time, and all that follows from it.

    ``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`` (Ho et al. 2020, eq. 4).
    The entry at index 0 is the clean image, so no formula needs a special case at the end.

    Args:
        alpha_bar: (T+1,) float64, from exactly 1 at index 0 strictly down to a value above 0.

    Raises:
        InputError: ``alpha_bar`` breaks one of these rules.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        a = self.alpha_bar
        if a.dtype != torch.float64 or a.ndim != 1 or len(a) < 2:
            raise InputError(
                f"alpha_bar must be a float64 vector of at least 2 entries, "
                f"got {a.dtype} of shape {tuple(a.shape)}"
            )
        if a[0] != 1 or not (a > 0).all() or not (a.diff() < 0).all():
            raise InputError("alpha_bar must start at exactly 1, fall strictly and stay above 0")

    @property
    def T(self) -> int:
        """Number of noise levels; times run from 1 to T, and 0 is clean data."""
        return len(self.alpha_bar) - 1

    @property
    def beta(self) -> Tensor:
        """Shape (T,), float64; ``beta[t-1]`` is the share of signal power that step t destroys."""
        return 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]

    @property
    def snr(self) -> Tensor:
        """Shape (T+1,), float64; signal power over noise, alpha_bar / (1 - alpha_bar); inf at 0."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise amplitude of each element of a batch.

        Args:
            t: (B,) int64 times between 0 and T.
            like: (B, ...) tensor whose dtype, device and number of dimensions the rates take.

        Returns:
            ``alpha_t = sqrt(alpha_bar_t)`` and ``sigma_t = sqrt(1 - alpha_bar_t)``, each of
            shape (B, 1, ..., 1), computed in float64 and cast last.

        Raises:
            InputError: a time lies outside 0..T.
        """
        t = t.cpu()
        if t.numel() and not (int(t.min()) >= 0 and int(t.max()) <= self.T):
            raise InputError(
                f"times must lie in 0..{self.T}, got {int(t.min())}..{int(t.max())}; "
                "use times of the same schedule"
            )
        a = self.alpha_bar[t].view(-1, *[1] * (like.ndim - 1))  # (B,) -> (B, 1, ..., 1)
        return a.sqrt().to(like), (1 - a).sqrt().to(like)


def _from_beta(beta: Tensor) -> NoiseSchedule:
    return NoiseSchedule(torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)]))


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> NoiseSchedule:
    """beta grows linearly from ``beta_1`` to ``beta_T`` (Ho et al. 2020, section 4)."""
    return _from_beta(torch.linspace(beta_1, beta_T, T, dtype=torch.float64))


def scaled_linear(T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012) -> NoiseSchedule:
    """sqrt(beta) grows linearly: the schedule of Stable Diffusion (Rombach et al. 2022)."""
    return _from_beta(torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """alpha_bar follows cos^2, each beta capped (Nichol & Dhariwal 2021, eq. 17)."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return _from_beta((1 - f[1:] / f[:-1]).clamp(max=max_beta))


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
}


def make_schedule(name: str, T: int = 1000) -> NoiseSchedule:
    """The schedule called ``name`` (a key of ``SCHEDULES``) with T noise levels.

    Raises:
        InputError: the name is unknown.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](T)


def uniform_times(T: int, steps: int) -> list[int]:
    """``steps + 1`` evenly spaced times from T down to 0, the grid that a sampler walks.

    Raises:
        InputError: ``steps`` is not between 1 and T.
    """
    if not 1 <= steps <= T:
        raise InputError(f"steps must be between 1 and {T}, got {steps}")
    return [round(T * (steps - i) / steps) for i in range(steps + 1)]
