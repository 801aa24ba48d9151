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
    "GRIDS",
    "SCHEDULES",
    "NoiseSchedule",
    "cosine",
    "leading_times",
    "linear",
    "log_snr_times",
    "make_schedule",
    "make_times",
    "quadratic_times",
    "scaled_linear",
    "uniform_times",
]


@dataclass(frozen=True, eq=False)
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

    @property
    def log_snr(self) -> Tensor:
        """Shape (T+1,), float64; natural logarithm of ``snr``; inf at 0."""
        return self.alpha_bar.log() - (1 - self.alpha_bar).log()

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
        InputError: the name is unknown, or T is not positive.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if T < 1:
        raise InputError(f"a schedule needs T of 1 or more, got {T}")
    return SCHEDULES[name](T)


# ---- time grids ----------------------------------------------------------------------------
#
# A grid is ``steps + 1`` decreasing ints that end in 0. Where the formula would name an integer
# twice, its neighbours are used: see ``_distinct``.


def uniform_times(T: int, steps: int) -> list[int]:
    """``steps + 1`` evenly spaced times from T down to 0, the grid that a sampler walks.

    It is the grid called "trailing" by Lin et al. 2024, table 2.

    Raises:
        InputError: ``steps`` is not between 1 and T.
    """
    _check_steps(T, steps)
    return [round(T * (steps - i) / steps) for i in range(steps + 1)]


def leading_times(T: int, steps: int) -> list[int]:
    """Evenly spaced times that end in 1, 0; where steps divide T they begin a whole step below T.

    It is the grid called "leading" by Lin et al. 2024, table 2, who show what is wrong with it:
    the sampler starts at a time that still holds signal, with pure noise.

    Raises:
        InputError: ``steps`` is not between 1 and T.
    """
    _check_steps(T, steps)
    return [*range(1 + (steps - 1) * (T // steps), 0, -(T // steps)), 0]


def quadratic_times(T: int, steps: int) -> list[int]:
    """Times from T down to 0 whose square roots are evenly spaced: short steps near the data.

    Song et al. 2021 (DDIM), appendix D.2.

    Raises:
        InputError: ``steps`` is not between 1 and T.
    """
    _check_steps(T, steps)
    return _distinct([round(T * ((steps - i) / steps) ** 2) for i in range(steps)])


def log_snr_times(schedule: NoiseSchedule, steps: int, lowest: float = -10.2) -> list[int]:
    """Times whose log-SNR is evenly spaced, down to time 1, then 0 (Lu et al. 2022).

    The first is T, unless the log-SNR falls below ``lowest`` on the way, as the cosine schedule's
    does: then it is the last time above. With T of 500 or more, less than 1 part in 20,000 of the
    variance is signal there, so that pure noise may stand for x_t, and no step is spent on what is
    noise alone. Coarser cosine schedules jump past ``lowest`` in their last step.

    Raises:
        InputError: ``steps`` is not between 1 and the first time.
    """
    known = schedule.log_snr[1:]  # entry i belongs to time i + 1
    first = max(int((known >= lowest).sum()), 1)
    _check_steps(first, steps)
    wanted = torch.linspace(float(known[first - 1]), float(known[0]), steps, dtype=torch.float64)
    return _distinct([1 + int((known - w).abs().argmin()) for w in wanted])


GRIDS: dict[str, Callable[[NoiseSchedule, int], list[int]]] = {
    "uniform": lambda schedule, steps: uniform_times(schedule.T, steps),
    "leading": lambda schedule, steps: leading_times(schedule.T, steps),
    "quadratic": lambda schedule, steps: quadratic_times(schedule.T, steps),
    "log_snr": log_snr_times,
}


def make_times(name: str, schedule: NoiseSchedule, steps: int) -> list[int]:
    """The grid called ``name`` (a key of ``GRIDS``) with ``steps + 1`` times of a schedule.

    Raises:
        InputError: the name is unknown, or the grid cannot hold so many steps.
    """
    if name not in GRIDS:
        raise InputError(f"unknown grid {name!r}; choose one of {', '.join(GRIDS)}")
    return GRIDS[name](schedule, steps)


def _check_steps(most: int, steps: int) -> None:
    if not 1 <= steps <= most:
        raise InputError(f"steps must be between 1 and {most}, got {steps}")


def _distinct(times: list[int]) -> list[int]:
    """Let times that fall upon each other make room, and end in 0.

    From the left each time becomes smaller than the one before it; where that pushes the last
    ones below 1, they move up again, and those before them with them. The first is at least
    ``len(times)``, so there is room for all.
    """
    n = len(times)
    for i in range(1, n):
        times[i] = min(times[i], times[i - 1] - 1)
    return [max(t, n - i) for i, t in enumerate(times)] + [0]
