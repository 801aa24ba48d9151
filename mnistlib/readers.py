"""What is in a picture: paper, ink, class, stroke and slant of any image, painted or generated.

Legend: B images, K digits in each (1 or 2). A coverage says how much of a pixel is ink, from 0 to
1, (B, 1, H, W); images are (B, 3, 32, 32) in [-1, 1]. Of two digits each has its own half.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mnistlib.grammar import COLOURS, Glyph, Scene, glyph_of
from mnistlib.types import InputError

__all__ = [
    "PALETTE",
    "SMALL",
    "agreement",
    "enlarged",
    "halves",
    "read",
    "remeasured",
    "shear",
    "slant_class",
    "stroke_class",
    "stroke_width",
]

_RGB = (
    (0.0, 0.0, 0.0),
    (1.0, 1.0, 1.0),
    (0.85, 0.1, 0.1),
    (1.0, 0.55, 0.0),
    (1.0, 0.95, 0.3),
    (0.1, 0.6, 0.25),
    (0.1, 0.3, 0.9),
    (0.55, 0.15, 0.7),
)
PALETTE = 2 * torch.tensor(_RGB) - 1
"""(8, 3), what ``COLOURS`` look like, in [-1, 1]."""

SMALL = 15 / 20
"""The size of each of two digits, compared with a digit of MNIST, which fills 20 pixels."""

# Where the classes meet, and how far from there a digit must be to be called one of them: the
# smoothing of an autoencoder carries hardly a digit over a whole margin. Chosen on the last 5,000
# training digits.
STROKE_CUTS, STROKE_MARGIN = (2.1, 2.7), 0.15  # pixels
SLANT_CUTS, SLANT_MARGIN = (-0.05, 0.25), 0.05  # pixels to the right for each pixel up

# The shear that a digit has by its shape: a 9 that stands upright has its loop on the left. It is
# the median of its class in the first 55,000 training digits, less that of the symmetric 0, 1, 8.
_BY_SHAPE = torch.tensor([0.0, 0.0, -0.1, -0.15, -0.15, 0.0, -0.17, -0.17, 0.0, -0.19])

_CORE = 5  # so many pixels, the farthest from the paper's colour, show the ink's


# ---- measures of a coverage ----------------------------------------------------------------


def stroke_width(coverage: Tensor) -> Tensor:
    """Mean width of the strokes in pixels: coverage (B, 1, H, W) -> (B,).

    A stroke of width w and length L covers the area w L and has an outline of length 2 L, so that
    w is twice the area over the outline. The outline is the gradient's length, summed up: a soft
    edge has as much of it as a hard one, as long as the middle of the stroke is full.
    """
    c = F.pad(_sharpened(coverage), [1] * 4)
    down, up = c[..., 1:, 1:] - c[..., :-1, :-1], c[..., 1:, :-1] - c[..., :-1, 1:]
    outline = ((down.square() + up.square()) / 2).sqrt().flatten(1).sum(1)
    return 2 * c.flatten(1).sum(1) / outline.clamp(min=1e-6)


def shear(coverage: Tensor) -> Tensor:
    """How many pixels the digit goes to the right for each pixel up: (B, 1, H, W) -> (B,).

    The slope of the straight line that best tells the column of the ink from its row: minus the
    covariance of row and column over the variance of the row.
    """
    c = _sharpened(coverage)[:, 0]
    row, column = _centre(c)
    rows = torch.arange(c.shape[1]).view(-1, 1) - row  # (B, H, 1)
    columns = torch.arange(c.shape[2]) - column  # (B, 1, W)
    covariance, variance = (c * rows * columns).sum((1, 2)), (c * rows.square()).sum((1, 2))
    return -covariance / variance.clamp(min=1e-6)


def stroke_class(coverage: Tensor, margin: float = STROKE_MARGIN) -> Tensor:
    """Index into ``STROKES``, (B,) int64; -1 for a width less than the margin from a border."""
    return _class(stroke_width(coverage), STROKE_CUTS, margin)


def slant_class(coverage: Tensor, digits: Tensor, margin: float = SLANT_MARGIN) -> Tensor:
    """Index into ``SLANTS``, (B,) int64; -1 for a shear less than the margin from a border.

    The shear that a digit (B,) has by its shape does not count.
    """
    return _class(shear(coverage) - _BY_SHAPE[digits], SLANT_CUTS, margin)


def _class(values: Tensor, cuts: tuple[float, float], margin: float) -> Tensor:
    beyond = values[:, None] - torch.tensor(cuts)
    return (beyond > 0).sum(1).masked_fill((beyond.abs() < margin).any(1), -1)


def _sharpened(coverage: Tensor) -> Tensor:
    """More contrast, so that the faint noise of a decoder's paper weighs nothing."""
    return ((coverage - 0.2) / 0.6).clamp(0, 1)


def _centre(c: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the centre of mass of (B, H, W), each (B, 1, 1)."""
    mass = c.sum((1, 2), keepdim=True).clamp(min=1e-6)
    row = (c * torch.arange(c.shape[1]).view(-1, 1)).sum((1, 2), keepdim=True) / mass
    return row, (c * torch.arange(c.shape[2])).sum((1, 2), keepdim=True) / mass


# ---- reading images ------------------------------------------------------------------------


def halves(images: Tensor) -> list[Tensor]:
    """The left and the right half, (B, C, 32, 16) each, of images (B, C, 32, 32)."""
    return list(images.chunk(2, dim=3))


def enlarged(coverage: Tensor) -> Tensor:
    """A small digit (B, 1, 32, 16), made as large and as centred as MNIST's: (B, 1, 32, 32)."""
    H, W = coverage.shape[2:]
    row, column = _centre(coverage[:, 0])
    steps = (torch.arange(32) - 15.5) * SMALL
    y = ((row[:, 0] + steps + 0.5) * 2 / H - 1)[:, :, None].expand(-1, 32, 32)
    x = ((column[:, 0] + steps + 0.5) * 2 / W - 1)[:, None, :].expand(-1, 32, 32)
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(coverage, grid, mode="bicubic", align_corners=False).clamp(0, 1)


@torch.no_grad()
def read(images: Tensor, classifier: Callable[[Tensor], Tensor], digits: int = 1) -> list[Scene]:
    """Read off everything that a caption could name.

    The paper is the colour of the border; the ink that of the pixels farthest from it; the
    coverage, how far a pixel lies on the way from the one to the other. Nothing is left open:
    what lies on a border goes to the nearer side.

    Args:
        images: (B, 3, 32, 32) in about [-1, 1].
        classifier: grey images (B, 1, 32, 32) -> scores (B, 10), as ``DigitFeatures``.
        digits: how many to look for, 1 or 2; a prompt says how many it asks for.

    Raises:
        InputError: images of another shape, or another number of digits.
    """
    if images.shape[1:] != (3, 32, 32) or digits not in (1, 2):
        raise InputError(
            f"can read 1 or 2 digits in images (B, 3, 32, 32), "
            f"not {digits} in {tuple(images.shape)}"
        )
    return [scene for part in images.split(500) for scene in _scenes(part, classifier, digits)]


def _scenes(images: Tensor, classifier: Callable, digits: int) -> list[Scene]:
    papers = _paper(images)
    parts = _parts(images, digits)
    glyphs = zip(*(_glyphs(part, papers, classifier) for part in parts), strict=True)
    return [
        Scene(each, COLOURS[paper], digits == 2)
        for each, paper in zip(glyphs, papers.tolist(), strict=True)
    ]


def _parts(images: Tensor, digits: int) -> list[Tensor]:
    return [images] if digits == 1 else halves(images)


def _paper(images: Tensor) -> Tensor:
    """Index of the palette's colour nearest to the border's median, (B,)."""
    edges = [images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]]
    return torch.cdist(torch.cat(edges, dim=2).median(dim=2).values, PALETTE).argmin(1)


def _glyphs(part: Tensor, papers: Tensor, classifier: Callable) -> list[Glyph]:
    """What each image, or half of one (B, 3, 32, W), shows on a paper that is known (B,)."""
    inks = _ink(part, papers)
    coverage = _coverage(part, papers, inks)
    digits = classifier(2 * coverage - 1).argmax(1)
    strokes, slants = stroke_class(coverage, margin=0), slant_class(coverage, digits, margin=0)
    return [glyph_of(*each) for each in torch.stack([digits, inks, strokes, slants], 1).tolist()]


def _ink(part: Tensor, papers: Tensor) -> Tensor:
    """Index of the colour nearest to the pixels that are farthest from the paper, (B,)."""
    pixels = part.flatten(2).transpose(1, 2)  # (B, P, 3)
    far = (pixels - PALETTE[papers][:, None]).norm(dim=2).topk(_CORE).indices
    core = pixels.gather(1, far[:, :, None].expand(-1, -1, 3)).mean(1)
    distance = torch.cdist(core, PALETTE)
    return distance.scatter(1, papers[:, None], torch.inf).argmin(1)


def _coverage(part: Tensor, papers: Tensor, inks: Tensor) -> Tensor:
    """How far pixels are on the way from paper to ink (B,): (B, 1, 32, 32), enlarged if small."""
    paper = PALETTE[papers][:, :, None, None]
    way = PALETTE[inks][:, :, None, None] - paper
    along = ((part - paper) * way).sum(1, keepdim=True)
    coverage = (along / way.square().sum(1, keepdim=True)).clamp(0, 1)
    return enlarged(coverage) if part.shape[3] < 32 else coverage


@torch.no_grad()
def remeasured(images: Tensor, scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes with strokes and slants as pictures of them (N, 3, 32, 32) show them.

    None near a border, as in ``stroke_class``. An autoencoder draws strokes wider than they were
    painted, and a caption should name what will be seen. All else is taken from the scenes, in
    which it must be known.
    """
    result = list(scenes)
    for digits in {len(scene.glyphs) for scene in scenes}:
        which = [i for i, scene in enumerate(scenes) if len(scene.glyphs) == digits]
        parts = _parts(images[which], digits)
        papers = torch.tensor([COLOURS.index(scenes[i].paper) for i in which])
        glyphs = zip(*(scenes[i].glyphs for i in which), strict=True)
        seen = [_remeasured(*each, papers) for each in zip(parts, glyphs, strict=True)]
        for i, *new in zip(which, *seen, strict=True):
            result[i] = replace(scenes[i], glyphs=tuple(new))
    return result


def _remeasured(part: Tensor, glyphs: Sequence[Glyph], papers: Tensor) -> list[Glyph]:
    digits = torch.tensor([glyph.digit for glyph in glyphs])
    inks = torch.tensor([COLOURS.index(glyph.ink) for glyph in glyphs])
    coverage = _coverage(part, papers, inks)
    calls = [digits, inks, stroke_class(coverage), slant_class(coverage, digits)]
    return [glyph_of(*each) for each in torch.stack(calls, 1).tolist()]


# ---- what was asked for, and what is there -------------------------------------------------


def agreement(named: Scene, read: Scene) -> dict[str, bool | None]:
    """For each of ``ATTRIBUTES``: is it as it was named? None where it was not named.

    Of two digits, both must be right. Each is compared with the one that it fits best, by class
    and then by all the rest, wherever that one stands; on which side it stands is judged by
    ``places`` alone, where the caption says so.

    Raises:
        InputError: the scenes do not hold the same number of digits.
    """
    if len(named.glyphs) != len(read.glyphs):
        raise InputError(f"{len(named.glyphs)} digits are named and {len(read.glyphs)} were read")
    orders = dict.fromkeys((read.glyphs, read.glyphs[::-1]))
    best = max(orders, key=lambda glyphs: _fit(named.glyphs, glyphs))
    result = {f.name: _same(f.name, named.glyphs, best) for f in fields(Glyph)}
    result["paper"] = None if named.paper is None else named.paper == read.paper
    result["places"] = (best == read.glyphs) if named.placed else None
    return result


def _same(name: str, named: Sequence[Glyph], read: Sequence[Glyph]) -> bool | None:
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(named, read, strict=True)]
    right = [a == b for a, b in pairs if a is not None]
    return all(right) if right else None


def _fit(named: Sequence[Glyph], read: Sequence[Glyph]) -> tuple[int, int]:
    """How many classes fit, and how many attributes."""
    right = [
        f.name
        for a, b in zip(named, read, strict=True)
        for f in fields(Glyph)
        if getattr(a, f.name) is not None and getattr(a, f.name) == getattr(b, f.name)
    ]
    return right.count("digit"), len(right)
