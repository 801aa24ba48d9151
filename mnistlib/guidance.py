"""Steering a denoiser: functions that take denoisers and return one.

A sampler never learns of it. One convention of the scale s everywhere: the guided noise is
``u + s (c - u)``, where u does not know the condition and c does; s = 0 is unconditional, s = 1
conditional, and s > 1 exaggerates what the condition changes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mnistlib.objective import to_eps, to_x0
from mnistlib.schedules import NoiseSchedule
from mnistlib.types import Cond, Denoiser, InputError

__all__ = [
    "bind",
    "cfg",
    "cfg_between",
    "classifier_guided",
    "clipped",
    "heard_until",
    "rescaled",
]


def bind(model: Callable[[Tensor, Tensor, Cond], Tensor], cond: Cond) -> Denoiser:
    """Fix the condition of a network (x_t, t, cond): what is left is a function (x_t, t)."""
    return lambda x_t, t: model(x_t, t, cond)


def cfg(cond: Denoiser, uncond: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: ``u + s (c - u)`` (Ho & Salimans 2022, eq. 6 with s = 1 + w).

    Two network evaluations a call. ``torch.lerp`` is exact at both ends, so that scale 0 gives
    ``uncond`` and scale 1 gives ``cond`` bit for bit.

    Args:
        cond, uncond: denoisers with and without the condition. A negative prompt is another
            condition in the place of none.
        scale: s, any number.
    """
    return lambda x_t, t: torch.lerp(uncond(x_t, t), cond(x_t, t), scale)


def cfg_between(cond: Denoiser, uncond: Denoiser, scale: float, low: int, high: int) -> Denoiser:
    """``cfg`` at the times from ``low`` to ``high``, both included, and ``cond`` at all others.

    Kynkaanniemi et al. 2024: guidance at the noisiest times costs diversity, and at the cleanest
    it does nothing.

    Args:
        cond, uncond, scale: as in ``cfg``.
        low, high: times of the schedule; low above high guides nowhere.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        c = cond(x_t, t)
        inside = ((low <= t) & (t <= high)).view(-1, *[1] * (x_t.ndim - 1))
        return torch.where(inside, torch.lerp(uncond(x_t, t), c, scale), c)

    return denoise


def rescaled(cond: Denoiser, uncond: Denoiser, scale: float, phi: float = 0.7) -> Denoiser:
    """``cfg``, its spread drawn back towards that of ``cond`` (Lin et al. 2024, eq. 15-16).

    A large scale makes the guided answer too wide, and the pictures too hard. Here each image's
    standard deviation over channels, height and width becomes that of c, by the share ``phi``.
    Unlike ``cfg`` this depends on what is answered: nearly all of the spread of eps is noise,
    so give it functions that answer v, as in the paper, and turn the result with ``as_eps``.

    Args:
        cond, uncond, scale: as in ``cfg``; they may answer eps, x0 or v.
        phi: 0 (plain ``cfg``) to 1.

    Raises:
        InputError: phi is not in 0..1.
    """
    if not 0 <= phi <= 1:
        raise InputError(f"phi must lie between 0 and 1, got {phi}")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        c = cond(x_t, t)
        guided = torch.lerp(uncond(x_t, t), c, scale)
        ratio = c.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(guided, ratio * guided, phi)

    return denoise


def classifier_guided(
    denoise: Denoiser,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    scale: float,
) -> Denoiser:
    """``eps_hat - s sigma_t grad log p(y | x_t)`` (Dhariwal & Nichol 2021, algorithm 2).

    By Bayes' rule an exact classifier turns the unconditional denoiser into the conditional one
    at s = 1. One network evaluation a call, one of the classifier, and its gradient.

    Args:
        denoise: usually unconditional.
        log_prob: (x_t (B, C, H, W), t (B,)) -> log p(y | x_t) of each image's wish, (B,),
            differentiable in x_t; it must know the noise that it sees.
        schedule: the schedule of both.
        scale: s, as in ``cfg``.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(x, t).sum(), x)
        _, sigma = schedule.rates(t, x_t)
        return denoise(x_t, t) - scale * sigma * gradient

    return guided


def heard_until(
    log_prob: Callable[[Tensor, Tensor], Tensor], latest: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """A classifier for ``classifier_guided`` that keeps silent at times later than ``latest``.

    The exact gradient is alpha_t / sigma_t^2 (E[x_0 | x_t, y] - E[x_0 | x_t]): near T it vanishes
    with alpha_t. That of a trained network does not, and the guess of the clean image multiplies
    it by sigma_t^2 / alpha_t, which is 20,000 at the end of the cosine schedule.

    Args:
        log_prob: as in ``classifier_guided``.
        latest: the last time at which it is heard.
    """
    return lambda x_t, t: torch.where(t <= latest, log_prob(x_t, t), 0.0)


def clipped(denoise: Denoiser, schedule: NoiseSchedule, limit: float = 1.0) -> Denoiser:
    """The noise that agrees with the guess of the clean image, once that is cut to its range.

    Pixels lie in [-1, 1]; a guess outside is wrong for certain (Ho et al. 2020 cut likewise).
    For latents there is no such range.

    Args:
        denoise: any denoiser, guided or not.
        limit: the guess is cut to [-limit, limit].

    Raises:
        InputError: the limit is not positive.
    """
    if not limit > 0:
        raise InputError(f"limit must be positive, got {limit}")

    def cut(x_t: Tensor, t: Tensor) -> Tensor:
        x0_hat = to_x0(denoise(x_t, t), x_t, t, schedule, "eps").clamp(-limit, limit)
        return to_eps(x0_hat, x_t, t, schedule, "x0")

    return cut
