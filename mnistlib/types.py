"""The words that the rest of the library speaks in."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``(x_t (B, C, H, W), t (B,) int64) -> eps_hat (B, C, H, W)``: anything that guesses the noise."""


class InputError(ValueError):
    """Something given to the library cannot be used; the message says what, and what to do."""


class InputWarning(UserWarning):
    """Only a part of what was given is used; the message says which part is not."""


class Cond(NamedTuple):
    """What a network is told besides the image and the time; each part may be absent.

    A condition of one row, B = 1, tells every image of a batch the same.

    Attributes:
        vector: (B, D), added to the time embedding: one thing said of the whole image.
        tokens: (B, L, D), a sequence to look things up in.
        mask: (B, L) bool, True where ``tokens`` holds something.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Step(NamedTuple):
    """The state after one step of a sampler.

    Attributes:
        t: the time at which ``x_t`` now lives; 0 means clean data.
        x_t: the sample at time ``t``, shape (B, C, H, W).
        x0_hat: the clean image that this step went towards, shape (B, C, H, W): the guess where it
            began, or what a sampler of second order made of two guesses.
    """

    t: int
    x_t: Tensor
    x0_hat: Tensor
