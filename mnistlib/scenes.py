"""Scenes of one or two coloured digits: real digits, measured once, painted without end.

Legend: B scenes, K digits in each (1 or 2), N digits to paint with. A coverage is how much of a
pixel is ink, 0 to 1. Scene number i is a pure function of (seed, i).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnistlib.captions import Caption, describe
from mnistlib.data import Digits, generator_for
from mnistlib.grammar import COLOURS, Scene, glyph_of
from mnistlib.readers import PALETTE, SMALL, enlarged, halves, slant_class, stroke_class
from mnistlib.types import InputError

__all__ = [
    "HELD_OUT_INKS",
    "HELD_OUT_PAIRS",
    "Painted",
    "Pool",
    "draw_captions",
    "draw_scenes",
    "measured",
    "paint",
    "shrunk",
    "side_by_side",
]

HELD_OUT_INKS = tuple((digit, COLOURS[(3 * digit + 1) % 8]) for digit in range(10))
"""Ten of the 80 pairs of a digit and its ink, one of each digit, that no training scene shows."""

_PAIRS = [(left, right) for left in range(10) for right in range(10)]
HELD_OUT_PAIRS = tuple((left, (3 * left + 5) % 10) for left in range(10))
"""Ten of the 100 ordered pairs of digits that no training scene shows; each digit is once on each
side."""

_SEEN_PAIRS = tuple(pair for pair in _PAIRS if pair not in HELD_OUT_PAIRS)
_UNSEEN_INKS = torch.zeros(10, 8, dtype=torch.bool)
_UNSEEN_INKS[range(10), [COLOURS.index(ink) for _, ink in HELD_OUT_INKS]] = True

_LEFT, _RIGHT = (1, 16, 8, 9), (16, 1, 8, 9)  # what surrounds the 15 pixels of a small digit


class Pool(NamedTuple):
    """Digits to paint with, sorted by class, in two sizes: large and small, in this order.

    Attributes:
        large: (N, 28, 28) uint8, as in MNIST.
        small: (N, 15, 15) uint8.
        strokes, slants: (N, 2) int64 for each size, as ``stroke_class`` and ``slant_class`` give.
        starts, counts: (10,) int64, where each class begins and how many digits it has.
    """

    large: Tensor
    small: Tensor
    strokes: Tensor
    slants: Tensor
    starts: Tensor
    counts: Tensor


class Painted(NamedTuple):
    """Images (B, 3, 32, 32) in [-1, 1], and what is in each of them."""

    images: Tensor
    scenes: list[Scene]


# ---- measure -------------------------------------------------------------------------------


def measured(digits: Digits) -> Pool:
    """Shrink digits and measure both sizes, 500 at a time.

    Raises:
        InputError: a class has no digit.
    """
    counts = digits.labels.bincount(minlength=10)
    if (counts == 0).any():
        raise InputError(f"no digit is a {int(counts.argmin())}; scenes need all ten classes")
    labels, order = digits.labels.sort(stable=True)
    large = digits.images[order]
    small = torch.cat([shrunk(raw) for raw in large.split(500)])
    sizes = [_called(_large, large, labels), _called(_small, small, labels)]
    strokes, slants = torch.stack(sizes, 1).unbind(2)
    return Pool(large, small, strokes, slants, counts.cumsum(0) - counts, counts)


def _called(form: Callable[[Tensor], Tensor], raw: Tensor, labels: Tensor) -> Tensor:
    """Stroke and slant (N, 2) of digits in one of the two sizes."""
    parts = zip(raw.split(500), labels.split(500), strict=True)
    covered = ((form(part), of) for part, of in parts)
    return torch.cat([torch.stack([stroke_class(c), slant_class(c, of)], 1) for c, of in covered])


def _large(raw: Tensor) -> Tensor:
    """uint8 (B, 28, 28) -> coverage (B, 1, 32, 32)."""
    return F.pad(raw[:, None] / 255, [2] * 4)


def _small(raw: Tensor) -> Tensor:
    """uint8 (B, 15, 15) -> coverage (B, 1, 32, 32), as its reader sees it."""
    return enlarged(halves(side_by_side(raw, raw))[0])


def shrunk(raw: Tensor) -> Tensor:
    """uint8 (B, 28, 28) -> uint8 (B, 15, 15): the 20 pixels around the digit's middle, smaller.

    A thin stroke pales when it shrinks; it is brought back to where its strongest pixel was full.
    """
    rows, columns = _middle(raw.amax(2)), _middle(raw.amax(1))  # (B, 20)
    each = torch.arange(len(raw))[:, None, None]
    framed = F.pad(raw, [20] * 4)[each, rows[:, :, None], columns[:, None, :]]
    side = round(20 * SMALL)
    x = F.interpolate(framed[:, None].float(), (side, side), mode="bicubic", antialias=True)
    x = x[:, 0].clamp(min=0)
    return (255 * x / x.amax((1, 2), keepdim=True).clamp(min=1)).round().to(torch.uint8)


def _middle(profile: Tensor) -> Tensor:
    """The 20 places around the middle of the ink of (B, 28), counted in a frame 20 wider."""
    inked = (profile > 25).int()
    first, last = inked.argmax(1), profile.shape[1] - 1 - inked.flip(1).argmax(1)
    return ((first + last + 1) // 2 + 10)[:, None] + torch.arange(20)


# ---- paint ---------------------------------------------------------------------------------


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two digits, uint8 (B, 15, 15) each -> their coverages (B, 2, 32, 32)."""
    return torch.stack([F.pad(left, _LEFT), F.pad(right, _RIGHT)], 1) / 255


def paint(coverage: Tensor, inks: Tensor, paper: Tensor) -> Tensor:
    """``paper + sum over k of coverage_k (ink_k - paper)``: images (B, 3, H, W).

    Args:
        coverage: (B, K, H, W), of digits that do not overlap.
        inks: (B, K, 3), colours in [-1, 1].
        paper: (B, 3).
    """
    ways = (inks - paper[:, None])[..., None, None]  # (B, K, 3, 1, 1)
    return paper[..., None, None] + (coverage[:, :, None] * ways).sum(1)


def draw_scenes(
    pool: Pool, seed: int, indices: Sequence[int], *, two: float = 0.5, unseen: bool = False
) -> Painted:
    """Paint the scenes with the given numbers.

    All classes, inks and papers are equally frequent, as far as the lists of what is held out
    allow. Two digits may have the same ink; the paper has another.

    Args:
        pool: see ``measured``.
        two: the share of scenes with two digits.
        unseen: False never gives what is held out; True gives only that: one digit has an ink of
            ``HELD_OUT_INKS``, two are one of ``HELD_OUT_PAIRS`` in inks that each was seen in.

    Raises:
        InputError: no numbers, or a share that is not between 0 and 1.
    """
    if not len(indices) or not 0 <= two <= 1:
        raise InputError(f"need scene numbers and a share from 0 to 1; got {indices} and {two}")
    u = torch.stack([torch.rand(8, generator=generator_for(seed, int(i))) for i in indices])
    double = u[:, 0] < two
    pairs = torch.tensor(HELD_OUT_PAIRS if unseen else _SEEN_PAIRS)
    single = _nth(u[:, 1], 10)[:, None].expand(-1, 2)
    labels = torch.where(double[:, None], pairs[_nth(u[:, 1], len(pairs))], single)  # (B, 2)
    which = pool.starts[labels] + _nth(u[:, 2:4], pool.counts[labels])
    wanted = (unseen & ~double)[:, None, None]
    inks = _one_of(u[:, 4:6], _UNSEEN_INKS[labels] == wanted)
    inks = torch.where(double[:, None], inks, inks[:, :1])
    paper = _one_of(u[:, 6], torch.ones(len(u), 8).scatter(1, inks, 0) > 0)
    large = F.pad(_large(pool.large[which[:, 0]]), [0, 0, 0, 0, 0, 1])  # the second is empty
    small = side_by_side(*pool.small[which].unbind(1))
    coverage = torch.where(double[:, None, None, None], small, large)
    images = paint(coverage, PALETTE[inks], PALETTE[paper])
    size = double.long()[:, None]
    calls = (labels, inks, pool.strokes[which, size], pool.slants[which, size])
    each = zip(torch.stack(calls, 2).tolist(), double.tolist(), paper.tolist(), strict=True)
    shown = [
        Scene(tuple(glyph_of(*of) for of in pair[: 1 + two]), COLOURS[on], two)
        for pair, two, on in each
    ]
    return Painted(images, shown)


def _nth(u: Tensor, n: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1) -> integers 0..n-1."""
    return (u * n).long()


def _one_of(u: Tensor, allowed: Tensor) -> Tensor:
    """An index with ``allowed`` (..., M), each with the same chance, by u (...)."""
    nth = _nth(u, allowed.sum(-1))[..., None]
    return (allowed.cumsum(-1) > nth).int().argmax(-1)


def draw_captions(
    scenes: Sequence[Scene], seed: int, indices: Sequence[int], **how: Any
) -> list[Caption]:
    """A caption for each scene: a pure function of the scene, of (seed, i) and of ``how``.

    Args:
        scenes: say those of ``draw_scenes`` with the same seed and numbers.
        seed, indices: as there.
        how: ``language``, ``attributes``, ``in_order`` and ``fine``, as in ``describe``.
    """
    return [
        describe(scene, generator=generator_for(seed, int(i), 1), **how)
        for scene, i in zip(scenes, indices, strict=True)
    ]
