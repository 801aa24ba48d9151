"""From noise to data: samplers as generators, one ``Step`` per pair of neighbouring times.

All share one signature. ``times`` is any decreasing sequence of ints that ends in 0; the sampler
knows nothing of conditions, guidance or latents, which are wrapped around ``denoise``.
Coefficients are combined in float64 and cast last.

A step leads from time t to time s. Steps are not network evaluations: ``heun`` calls the network
twice in each step but the last, the others once. Bad input raises at the first step, not before.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Generator, Tensor

from mnistlib.schedules import NoiseSchedule
from mnistlib.types import Denoiser, InputError, Step

__all__ = [
    "SAMPLERS",
    "Sampler",
    "ddim",
    "ddpm",
    "dpm_solver_pp",
    "draw_noise",
    "evaluations",
    "heun",
    "make_sampler",
    "pairs",
]

Sampler = Callable[..., Iterator[Step]]
"""``(denoise, schedule, x_T, times, *, generator=None)`` -> one ``Step`` per pair of times."""


Generators = Generator | Sequence[Generator] | None
"""One CPU generator for the batch, or one for each image: then no image depends on another."""


def draw_noise(
    shape: Sequence[int], like: Tensor | None = None, *, generator: Generators = None
) -> Tensor:
    """Standard normal noise (B, ...) from CPU generators, moved to where ``like`` lives.

    The same seed therefore gives the same noise on every device.

    Raises:
        InputError: a list of generators of another length than B.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise InputError(
                f"give one generator, or one for each of {shape[0]} images; got {len(generator)}"
            )
        eps = torch.stack([torch.randn(*shape[1:], generator=g) for g in generator])
    else:
        eps = torch.randn(*shape, generator=generator)
    return eps if like is None else eps.to(like)


def ddpm(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    times: Sequence[int],
    *,
    generator: Generators = None,
) -> Iterator[Step]:
    """Ancestral sampling: draw x_s from the posterior q(x_s | x_t, x_0 = x0_hat).

    Ho et al. 2020, eq. 6-7, written for any pair of times s < t so that steps may be skipped;
    the variance is the posterior's own (their "fixed small" choice), zero in the last step.
    One network evaluation a step.

    Args:
        denoise: guesses the noise in x_t.
        schedule: the schedule that ``denoise`` was trained with.
        x_T: (B, C, H, W) standard normal noise.
        times: decreasing ints that end in 0, see ``uniform_times``.
        generator: for the fresh noise of each step, see ``draw_noise``.

    Raises:
        InputError: ``times`` does not decrease to 0 or leaves the schedule.
    """
    x = x_T
    for t, s in pairs(schedule, times):
        a_t, a_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
        x0_hat = _x0_hat(x, denoise(x, _batch_of(t, x)), a_t)
        a_ts = a_t / a_s  # what the steps s+1..t leave of the signal power
        mean_x0 = a_s.sqrt() * (1 - a_ts) / (1 - a_t)
        mean_xt = a_ts.sqrt() * (1 - a_s) / (1 - a_t)
        std = ((1 - a_s) / (1 - a_t) * (1 - a_ts)).sqrt()
        x = float(mean_x0) * x0_hat + float(mean_xt) * x
        if s > 0:
            x = x + float(std) * draw_noise(x.shape, x, generator=generator)
        yield Step(s, x, x0_hat)


def ddim(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    times: Sequence[int],
    *,
    eta: float = 0.0,
    generator: Generators = None,
) -> Iterator[Step]:
    """Denoising diffusion implicit sampling (Song et al. 2021, eq. 12 and 16).

    ``eta=0`` draws no noise: the picture is a function of ``x_T``. ``eta=1`` is ``ddpm``.
    One network evaluation a step.

    Args:
        denoise, schedule, x_T, times, generator: as in ``ddpm``.
        eta: the share of the posterior's standard deviation that is drawn afresh, 0 to 1.

    Raises:
        InputError: ``times`` does not decrease to 0 or leaves the schedule, or eta is not in 0..1.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie between 0 and 1, got {eta}")
    x = x_T
    for t, s in pairs(schedule, times):
        a_t, a_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
        eps = denoise(x, _batch_of(t, x))
        x0_hat = _x0_hat(x, eps, a_t)
        var = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        x = float(a_s.sqrt()) * x0_hat + float((1 - a_s - var).clamp(min=0).sqrt()) * eps
        if eta > 0 and s > 0:
            x = x + float(var.sqrt()) * draw_noise(x.shape, x, generator=generator)
        yield Step(s, x, x0_hat)


def heun(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    times: Sequence[int],
    *,
    generator: Generators = None,
) -> Iterator[Step]:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1).

    With y = x_t / alpha_t and r = sigma_t / alpha_t the ODE is dy/dr = eps_hat (Song et al. 2021,
    eq. 14). A step of Euler's method is ddim's; Heun's repeats it with the mean of the slopes at
    both ends. The last step is Euler's, since there is no slope at r = 0. Two network evaluations
    a step, one in the last.

    A difference of the two slopes is multiplied by the step in r, which is thousands where
    alpha_T is nearly 0. With the cosine schedule take ``log_snr_times``.

    Args:
        denoise, schedule, x_T, times: as in ``ddpm``.
        generator: not used, nothing is drawn.

    Raises:
        InputError: ``times`` does not decrease to 0 or leaves the schedule.
    """
    x = x_T
    for t, s in pairs(schedule, times):
        a_t, a_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
        eps = denoise(x, _batch_of(t, x))
        x0_hat = _x0_hat(x, eps, a_t)
        euler = _mixed(x0_hat, eps, a_s)
        if s > 0:
            mean = (eps + denoise(euler, _batch_of(s, x))) / 2
            x = _mixed(_x0_hat(x, mean, a_t), mean, a_s)  # y_s = y_t + (r_s - r_t) mean
        else:
            x = euler
        yield Step(s, x, x0_hat)


def dpm_solver_pp(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    times: Sequence[int],
    *,
    generator: Generators = None,
) -> Iterator[Step]:
    """DPM-Solver++ (2M): the ODE solved for a guess of x_0 that is linear in the log-SNR.

    Lu et al. 2022, algorithm 2, with lambda half the log-SNR. The line goes through this guess
    and the last one; its value half-way through the step takes the place of x0_hat in ddim's
    step. The first step has no last guess and the last step, to infinite log-SNR, no half-way:
    both are ddim's. One network evaluation a step.

    Args:
        denoise, schedule, x_T, times: as in ``ddpm``.
        generator: not used, nothing is drawn.

    Raises:
        InputError: ``times`` does not decrease to 0 or leaves the schedule.
    """
    x, log_snr, before = x_T, schedule.log_snr, None
    for t, s in pairs(schedule, times):
        a_t, a_s, h = schedule.alpha_bar[t], schedule.alpha_bar[s], log_snr[s] - log_snr[t]
        x0_hat = x0_mid = _x0_hat(x, denoise(x, _batch_of(t, x)), a_t)
        if before is not None and s > 0:
            last_x0_hat, last_h = before
            x0_mid = x0_hat + float(h / (2 * last_h)) * (x0_hat - last_x0_hat)
        before = x0_hat, h
        x = _mixed(x0_mid, _eps(x, x0_mid, a_t), a_s)
        yield Step(s, x, x0_hat)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "heun": heun,
    "dpm_solver_pp": dpm_solver_pp,
}


def make_sampler(name: str, eta: float = 0.0) -> Sampler:
    """The sampler called ``name`` (a key of ``SAMPLERS``); ``eta`` is ddim's, others ignore it.

    Raises:
        InputError: the name is unknown.
    """
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return partial(ddim, eta=eta) if name == "ddim" else SAMPLERS[name]


def evaluations(name: str, steps: int) -> int:
    """How often the sampler called ``name`` calls the network in so many steps.

    Raises:
        InputError: the name is unknown.
    """
    make_sampler(name)
    return 2 * steps - 1 if name == "heun" else steps


def _x0_hat(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Solve x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps for x_0."""
    return (x_t - float((1 - alpha_bar_t).sqrt()) * eps) / float(alpha_bar_t.sqrt())


def _eps(x_t: Tensor, x_0: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Solve the same for eps."""
    return (x_t - float(alpha_bar_t.sqrt()) * x_0) / float((1 - alpha_bar_t).sqrt())


def _mixed(x_0: Tensor, eps: Tensor, alpha_bar_s: Tensor) -> Tensor:
    """Put an image and a noise together at time s."""
    return float(alpha_bar_s.sqrt()) * x_0 + float((1 - alpha_bar_s).sqrt()) * eps


def _batch_of(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def pairs(schedule: NoiseSchedule, times: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring times of a grid: from each a step leads to the next.

    Raises:
        InputError: the grid does not decrease from at most T to 0.
    """
    times = [int(t) for t in times]
    falls = all(t > s for t, s in pairwise(times))
    if len(times) < 2 or not falls or times[-1] != 0 or times[0] > schedule.T:
        raise InputError(
            f"times must decrease from at most {schedule.T} to 0, got {_short(times)}; "
            f"uniform_times({schedule.T}, steps) makes such a grid"
        )
    return pairwise(times)


def _short(times: list[int]) -> str:
    return str(times) if len(times) <= 8 else f"[{times[0]}, {times[1]}, ..., {times[-1]}]"
