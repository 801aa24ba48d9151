"""Pictures and films of digits on their way out of the noise."""

import io
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnistlib.data import to_uint8
from mnistlib.types import InputError

__all__ = ["encoded", "frames", "sheet", "spread", "wanted_digits"]

PAPER = -0.1  # the grey between pictures
BLOCK = 16  # the sides of a frame are multiples of it: video codecs ask for that


def wanted_digits(text: str) -> list[int]:
    """ "0-9" or "3,1,4" -> a list of digits.

    Raises:
        InputError: it names something else.
    """
    digits: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= 9):
            raise InputError(f"{text!r} names no digits; give a range such as 0-9, or 3,1,4")
        digits += range(int(first), int(last) + 1)
    return digits


def spread(steps: int, count: int) -> list[int]:
    """``count`` of so many steps at equal distances, the first, 0, and the last among them.

    Raises:
        InputError: there are not so many.
    """
    if not 2 <= count <= steps:
        raise InputError(f"cannot take {count} snapshots of {steps} steps; take 2 to {steps}")
    return [round(i * (steps - 1) / (count - 1)) for i in range(count)]


def sheet(images: Tensor, columns: int, enlarge: int = 3, gap: int = 1) -> Tensor:
    """Images (B, C, H, W) in rows on grey paper, one image (C, H', W'), all pixels enlarged."""
    B, C, H, W = images.shape
    rows = -(-B // columns)
    paper = torch.full((C, rows * (H + gap) + gap, columns * (W + gap) + gap), PAPER)
    for i, image in enumerate(images):
        y, x = (i // columns) * (H + gap) + gap, (i % columns) * (W + gap) + gap
        paper[:, y : y + H, x : x + W] = image
    return paper.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2)


def frames(states: Sequence[Tensor], columns: int, hold: int = 15, enlarge: int = 3) -> Tensor:
    """One RGB frame a state, the last one ``hold`` times more: uint8 (N, H, W, 3)."""
    film = torch.stack([sheet(images, columns, enlarge) for images in states])
    down, right = (-film.shape[-2] % BLOCK, -film.shape[-1] % BLOCK)
    margins = [right // 2, right - right // 2, down // 2, down - down // 2]
    film = to_uint8(F.pad(film, margins, value=PAPER)).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return torch.cat([film, film[-1:].expand(hold, -1, -1, -1)])


def encoded(frames: Tensor, suffix: str, fps: int) -> bytes:
    """Frames (N, H, W, 3) as a film; a GIF counts in hundredths of a second.

    Raises:
        InputError: another suffix than .mp4 or .gif, or a package is missing.
    """
    try:
        import imageio.v3 as imageio
        import imageio_ffmpeg  # noqa: F401  (imageio asks for it when it meets an MP4)
    except ImportError as e:
        raise InputError("films need two packages: pip install imageio imageio-ffmpeg") from e
    how = {
        ".mp4": {"extension": ".mp4", "plugin": "FFMPEG", "fps": fps, "macro_block_size": BLOCK},
        ".gif": {"extension": ".gif", "plugin": "pillow", "duration": 1000 / fps, "loop": 0},
    }
    if suffix not in how:
        raise InputError(f"films end in .mp4 or .gif, not in {suffix!r}")
    buffer = io.BytesIO()
    imageio.imwrite(buffer, frames.numpy(), **how[suffix])
    return buffer.getvalue()
