"""What the network is asked to predict, and the loss that asks it.

The network may predict the noise (eps), the clean image (x0) or the velocity
v = alpha_t eps - sigma_t x_0. Given x_t and t, each of the three determines the other two.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from mnistlib.schedules import NoiseSchedule
from mnistlib.types import Denoiser, InputError

__all__ = [
    "NoisyBatch",
    "Predicts",
    "Weighting",
    "add_noise",
    "as_eps",
    "diffusion_loss",
    "drop_captions",
    "drop_labels",
    "loss_weight",
    "target",
    "to_eps",
    "to_x0",
]

Predicts = Literal["eps", "x0", "v"]
Weighting = Literal["simple", "elbo", "min_snr"]


class NoisyBatch(NamedTuple):
    """All that one training step needs: clean images, their times and their noise."""

    x_0: Tensor  # (B, C, H, W)
    t: Tensor  # (B,) int64, 1..T
    eps: Tensor  # (B, C, H, W)


def add_noise(x_0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps: any time in one jump (Ho et al. 2020, eq. 4).

    Args:
        x_0: (B, C, H, W) clean images.
        eps: (B, C, H, W) standard normal noise.
        t: (B,) int64 times between 0 and T.

    Raises:
        InputError: a time lies outside 0..T.
    """
    alpha, sigma = schedule.rates(t, x_0)
    return alpha * x_0 + sigma * eps


def target(x_0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule, predicts: Predicts):
    """The tensor (B, C, H, W) that the network should return (v: Salimans & Ho 2022, app. D).

    Raises:
        InputError: another name than eps, x0 or v.
    """
    alpha, sigma = schedule.rates(t, x_0)
    return {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0}[_known(predicts)]


def to_eps(out: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, predicts: Predicts):
    """The noise that a network's output implies at times 1..T, (B, C, H, W).

    Raises:
        InputError: another name than eps, x0 or v.
    """
    alpha, sigma = schedule.rates(t, x_t)
    if _known(predicts) == "eps":
        return out
    if predicts == "x0":
        return (x_t - alpha * out) / sigma
    return sigma * x_t + alpha * out


def to_x0(out: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, predicts: Predicts):
    """The clean image that a network's output implies, (B, C, H, W).

    Raises:
        InputError: another name than eps, x0 or v.
    """
    alpha, sigma = schedule.rates(t, x_t)
    if _known(predicts) == "x0":
        return out
    if predicts == "eps":
        return (x_t - sigma * out) / alpha
    return alpha * x_t - sigma * out


def as_eps(
    model: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, predicts: Predicts
) -> Denoiser:
    """Wrap a network that predicts eps, x0 or v into a denoiser, which returns eps.

    Raises:
        InputError: another name than these.
    """
    _known(predicts)
    return lambda x_t, t: to_eps(model(x_t, t), x_t, t, schedule, predicts)


def loss_weight(t: Tensor, schedule: NoiseSchedule, predicts: Predicts, weighting: Weighting):
    """How much the squared error of each time t (B,), 1..T, counts: (B,) float64.

    ``elbo`` and ``min_snr`` are each one function of time for the error of eps; for the other
    predictions they carry the factor that turns their squared error into that of eps (SNR for x0,
    alpha_t^2 for v).

    - ``simple``: 1 on the network's own output (for eps: Ho et al. 2020, eq. 14).
    - ``elbo``: beta_t / (2 (1 - beta_t) (1 - alpha_bar_t)) on eps, the variational bound's own
      weight with variance beta_t (their eq. 12), divided by its mean over t.
    - ``min_snr``: min(SNR, 5) on x0 (Hang et al. 2023).

    Raises:
        InputError: an unknown name, or a time outside 1..T.
    """
    if weighting not in get_args(Weighting):
        raise InputError(f"unknown weighting {weighting!r}; choose simple, elbo or min_snr")
    t = t.cpu()
    if ((t < 1) | (t > schedule.T)).any():
        raise InputError(f"a loss is weighted at times 1..{schedule.T}, got {t.tolist()}")
    if weighting == "simple":
        return torch.ones(len(t), dtype=torch.float64)
    a, snr = schedule.alpha_bar[t], schedule.snr[t]
    eps_per_out = {"eps": torch.ones_like(a), "x0": snr, "v": a}[_known(predicts)]
    if weighting == "min_snr":
        return snr.clamp(max=5) / snr * eps_per_out
    beta = schedule.beta
    elbo = beta / (2 * (1 - beta) * (1 - schedule.alpha_bar[1:]))  # (T,), entry t-1
    return (elbo / elbo.mean())[t - 1] * eps_per_out


def diffusion_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    batch: NoisyBatch,
    schedule: NoiseSchedule,
    predicts: Predicts = "eps",
    weighting: Weighting = "simple",
) -> Tensor:
    """Weighted mean squared error of the network's output, a scalar.

    Raises:
        InputError: the network answers another shape than it is asked for, an unknown name, or a
            time outside 1..T.
    """
    x_0, t, eps = batch
    out = model(add_noise(x_0, eps, t, schedule), t)
    wanted = target(x_0, eps, t, schedule, predicts)
    if out.shape != wanted.shape:
        raise InputError(f"the network answers {tuple(out.shape)}, not {tuple(wanted.shape)}")
    error = (out.float() - wanted).square().flatten(1).mean(1)
    return (loss_weight(t, schedule, predicts, weighting).to(error) * error).mean()


def drop_labels(
    labels: Tensor, rate: float, null: int, *, generator: Generator | None = None
) -> Tensor:
    """Forget each label with probability ``rate``: the index ``null`` takes its place.

    One network then learns both the conditional and the unconditional noise, which is all that
    classifier-free guidance asks of a training (Ho & Salimans 2022, algorithm 1).

    Args:
        labels: (B,) int64 classes, left as they are.
        rate: 0 keeps every label, 1 none.
        null: the index that stands for "no label".
        generator: the CPU generator that decides.

    Raises:
        InputError: the rate is not in 0..1.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"the share of dropped labels must lie between 0 and 1, got {rate}")
    dropped = torch.rand(len(labels), generator=generator) < rate
    return labels.masked_fill(dropped.to(labels.device), null)


def drop_captions(
    captions: Sequence[str], rate: float, *, generator: Generator | None = None
) -> list[str]:
    """Forget each caption with probability ``rate``: the empty one takes its place.

    The same as ``drop_labels``, for the same reason.

    Raises:
        InputError: the rate is not in 0..1.
    """
    kept = drop_labels(torch.ones(len(captions)), rate, 0, generator=generator).bool().tolist()
    return [caption if stays else "" for caption, stays in zip(captions, kept, strict=True)]


def _known(predicts: str) -> str:
    if predicts not in get_args(Predicts):
        raise InputError(f"unknown prediction {predicts!r}; choose eps, x0 or v")
    return predicts
