"""What a trained denoiser can do besides drawing from pure noise.

Change a picture, repaint a part of it, walk from one noise to another, ask for two things at once,
and find the noise behind a picture. Nothing is trained for any of it. A "picture" is what the
denoiser denoises: images, or latents.

Legend: B pictures of C channels, h high and w wide.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import dropwhile

import torch
from torch import Tensor

from mnistlib.guidance import cfg
from mnistlib.objective import add_noise, to_x0
from mnistlib.samplers import Generators, Sampler, ddim, draw_noise, pairs
from mnistlib.schedules import NoiseSchedule
from mnistlib.types import Denoiser, InputError, Step

__all__ = [
    "composed",
    "image_to_image",
    "inpaint",
    "interpolate",
    "inverted",
    "mixed",
    "shortened",
    "slerp",
]


# ---- from one picture to another -----------------------------------------------------------


def image_to_image(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    eps: Tensor,
    times: Sequence[int],
    strength: float,
    *,
    sampler: Sampler = ddim,
    generator: Generators = None,
) -> Iterator[Step]:
    """Noise a picture part of the way, then denoise it: SDEdit (Meng et al. 2022, section 3).

    What the noise drowns is drawn anew, as ``denoise`` wishes; what still shows through is kept:
    colours and places longer than strokes.

    Args:
        denoise, schedule: as in the samplers.
        x_0: (B, C, h, w), the pictures to start from.
        eps: (B, C, h, w) standard normal noise. The same at every strength, it makes a series.
        times: decreasing ints that end in 0, the grid of a whole run.
        strength: 0 gives the picture itself, in one step that calls no network; 1 starts from
            ``eps`` alone and never sees the picture. See ``shortened``.
        sampler: walks the rest of the grid, one ``Step`` for each pair of times.
        generator: for the fresh noise of the sampler.

    Raises:
        InputError: the strength is not in 0..1, or what the sampler raises.
    """
    times = shortened(times, strength)
    if times == [0]:
        yield Step(0, x_0, x_0)
        return
    x_t = eps if strength == 1 else _noised(x_0, eps, times[0], schedule)
    yield from sampler(denoise, schedule, x_t, times, generator=generator)


def shortened(times: Sequence[int], strength: float) -> list[int]:
    """The part of a grid that is walked at a strength: from ``strength * times[0]`` down to 0.

    Raises:
        InputError: the strength is not in 0..1.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength must lie between 0 and 1, got {strength}")
    first = round(strength * times[0])
    return [first, *dropwhile(lambda t: t >= first, times)]


def inpaint(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    times: Sequence[int],
    *,
    known: Tensor,
    mask: Tensor,
    repeats: int = 1,
    sampler: Sampler = ddim,
    generator: Generators = None,
) -> Iterator[Step]:
    """A sampler that keeps a part of a picture: RePaint (Lugmayr et al. 2022, algorithm 1).

    After every step the known part is replaced by the picture itself, noised to that time, so
    that the rest is drawn to go with it. But the step was taken before the replacement, and the
    two do not quite fit. Therefore it is noised back to where the step began and taken again:
    the more often, the nearer is the result to a draw from what is unknown given what is known.

    With ``functools.partial`` it becomes a sampler like any other; given to ``image_to_image`` it
    repaints a part at a strength below 1.

    Args:
        denoise, schedule, x_T, times: as in the samplers.
        known: (B, C, h, w), the picture of which a part is kept.
        mask: (B, 1, h, w) or (1, 1, h, w): 1 where it is drawn anew, 0 where it is kept (in the
            paper it is the other way round), a blend of both in between.
        repeats: how often each step is taken, with a network evaluation each time; 1 never goes
            back. The last step is taken once: it answers with a mean, and repeated it would make
            all results alike. (The paper may go back several steps at once.)
        sampler: takes the steps, each by itself: ``dpm_solver_pp`` forgets its last guess.
        generator: for the noise of the known part, of going back, and of the sampler.

    Raises:
        InputError: the mask is not of that shape or range, there is nothing to repeat, or what
            the sampler raises.
    """
    _check_mask(mask, known)
    mask = mask.to(known)  # a bool mask too
    if repeats < 1:
        raise InputError(f"each step is taken once or more, got repeats={repeats}")
    noise, x = partial(draw_noise, known.shape, known, generator=generator), x_T
    for i, (t, s) in enumerate(pairs(schedule, times)):
        for again in range(repeats if s > 0 else 1):
            x = _renoised(x, noise(), s, t, schedule) if again else x
            step = next(sampler(denoise, schedule, x, times[i:], generator=generator))
            x = torch.lerp(_noised(known, noise(), s, schedule), step.x_t, mask)
        yield Step(s, x, torch.lerp(known, step.x0_hat, mask))


def _noised(x_0: Tensor, eps: Tensor, t: int, schedule: NoiseSchedule) -> Tensor:
    return add_noise(x_0, eps, _batch_of(t, x_0), schedule)


def _renoised(x_s: Tensor, eps: Tensor, s: int, t: int, schedule: NoiseSchedule) -> Tensor:
    """From time s back up to a later time t (Ho et al. 2020, eq. 2, for any pair of times)."""
    kept = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return float(kept.sqrt()) * x_s + float((1 - kept).sqrt()) * eps


def _batch_of(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _check_mask(mask: Tensor, known: Tensor) -> None:
    B, _, h, w = known.shape
    if mask.shape not in ((B, 1, h, w), (1, 1, h, w)):
        raise InputError(
            f"a mask for {tuple(known.shape)} is ({B}, 1, {h}, {w}) or (1, 1, {h}, {w})"
        )
    if not ((mask >= 0) & (mask <= 1)).all():
        raise InputError("a mask lies between 0, where the picture is kept, and 1")


# ---- between two noises --------------------------------------------------------------------


def slerp(first: Tensor, last: Tensor, weight: float) -> Tensor:
    """From one noise to another along a circle's arc (Shoemake 1985; Song et al. 2021, 5.3).

    A straight line cuts the corner: half-way between two independent noises the variance is half
    as large, and no denoiser has seen such noise. On the arc length and angle change evenly.

    Args:
        first, last: (B, C, h, w); each pair has an arc of its own. Where two point the same way
            or opposite ways there is no arc, and the line is taken.
        weight: 0 gives ``first`` and 1 ``last``, exactly.
    """
    a, b = (x.double().flatten(1) for x in (first, last))
    cos = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cos.clamp(-1, 1).acos()
    shares = torch.stack([((1 - weight) * angle).sin(), (weight * angle).sin()]) / angle.sin()
    line = torch.tensor([[1 - weight], [weight]]).to(shares)
    shares = torch.where(angle.sin() > 1e-6, shares, line).view(2, -1, *[1] * (first.ndim - 1))
    return (shares[0] * first + shares[1] * last).to(first)


def interpolate(
    first: Tensor,
    last: Tensor,
    count: int,
    between: Callable[[Tensor, Tensor, float], Tensor] = slerp,
) -> Tensor:
    """``count`` noises at equal distances from ``first`` to ``last``, both included.

    Args:
        first, last: (1, C, h, w).
        count: 2 or more.
        between: ``slerp``, or ``torch.lerp`` to see what goes wrong.

    Returns:
        (count, C, h, w), a batch for a sampler.

    Raises:
        InputError: fewer than two.
    """
    if count < 2:
        raise InputError(f"from one end to the other there are 2 or more noises, got {count}")
    return torch.cat([between(first, last, i / (count - 1)) for i in range(count)])


# ---- between two prompts, and several at once ----------------------------------------------


def mixed(first: Denoiser, last: Denoiser, weight: float) -> Denoiser:
    """A denoiser that leans between two others, say between two prompts.

    It is the formula of ``cfg``, whose scale goes on beyond 1: there one leads away from the
    first. Two network evaluations a call, four where both are guided.

    Args:
        first, last: any denoisers; guided ones too.
        weight: 0 gives ``first`` and 1 ``last``, exactly.
    """
    return cfg(last, first, weight)


def composed(uncond: Denoiser, wishes: Sequence[tuple[Denoiser, float]]) -> Denoiser:
    """Several wishes at once: ``u + sum_i s_i (c_i - u)`` (Liu et al. 2022, conjunction).

    Where the wishes have nothing to do with each other, as an ink and a paper, and each s is 1,
    it is the denoiser of their conjunction. A negative s leads away from a wish. One network
    evaluation a wish, and one more.

    Args:
        uncond: the denoiser without a condition.
        wishes: pairs of a denoiser with a condition and its guidance scale, as in ``cfg``.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        u = uncond(x_t, t)
        return u + sum(scale * (cond(x_t, t) - u) for cond, scale in wishes)

    return denoise


# ---- from a picture to its noise -----------------------------------------------------------


def inverted(
    denoise: Denoiser, schedule: NoiseSchedule, x_0: Tensor, times: Sequence[int]
) -> Iterator[Step]:
    """Walk ``ddim`` backwards, from a picture to the noise that draws it (Song et al. 2021, 4.3).

    The slope is taken where a step begins, on the way up as on the way down. So the two ways
    differ by an error of the first order in the size of the steps. Guidance makes it larger.

    Args:
        denoise, schedule: as in the samplers.
        x_0: (B, C, h, w), pictures.
        times: the decreasing grid of the sampler; it is walked from its end to its beginning.

    Yields:
        One ``Step`` for each pair of times, at the later of the two; the last holds the noise.
        No network knows time 0, so the first step asks it about time 1.

    Raises:
        InputError: the grid does not decrease to 0.
    """
    x = x_0
    for t, s in reversed([*pairs(schedule, times)]):
        before = _batch_of(s, x)
        eps = denoise(x, before.clamp(min=1))
        x0_hat = to_x0(eps, x, before, schedule, "eps")
        x = _noised(x0_hat, eps, t, schedule)
        yield Step(t, x, x0_hat)
