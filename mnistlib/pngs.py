"""Folders of numbered PNG files, the table beside them, and single pictures from outside."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnistlib.data import write_atomically
from mnistlib.types import InputError

__all__ = [
    "check_plan",
    "numbered",
    "opened",
    "read_colours",
    "read_lines",
    "read_picture",
    "read_pngs",
    "read_table",
    "write_table",
]


def numbered(folder: Path, i: int) -> Path:
    """Where image i lies: 00001.png is the first, number 0."""
    return folder / f"{i + 1:05d}.png"


def check_plan(out: Path, plan: dict[str, Any]) -> None:
    """Note in plan.json how the images of a folder are made; they must all be made alike.

    Raises:
        InputError: the folder holds images of another plan, or of none.
    """
    path, others = out / "plan.json", [p for p in out.glob("*.png") if not p.stem.isdecimal()]
    if path.is_file() and path.read_text() != json.dumps(plan):
        raise InputError(f"{out} holds samples made with other settings; choose another --out")
    if others or (not path.is_file() and any(out.glob("*.png"))):
        raise InputError(f"{out} holds other pictures; choose another --out")
    write_atomically(path, json.dumps(plan).encode())


def write_table(folder: Path, column: str, values: Sequence[Any], count: int) -> None:
    """COLUMNs.csv (file,COLUMN) for the first ``count`` images and for those drawn earlier.

    The values go round and round over the images.
    """
    there = max((int(path.stem) for path in folder.glob("*.png")), default=0)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", column])
    for i in range(max(count, there)):
        rows.writerow([numbered(folder, i).name, values[i % len(values)]])
    write_atomically(folder / f"{column}s.csv", text.getvalue().encode())


def read_table(folder: Path, column: str, kind: Callable[[str], Any] = str) -> list[Any]:
    """The values of COLUMNs.csv in the order of the PNG files' names.

    Raises:
        InputError: a PNG without a value, or a value that is not of this kind.
    """
    path = folder / f"{column}s.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            values = {name: value for name, value in filter(None, csv.reader(file))}
        return [kind(values[path.name]) for path in sorted(folder.glob("*.png"))]
    except (ValueError, KeyError, csv.Error) as e:
        reason = f"{path.name} must hold a line file,{column} for every PNG ({e})"
        raise InputError(reason) from e


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without blank ones.

    Raises:
        InputError: it cannot be read, or all its lines are blank.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"{path} is not a readable text file; give one prompt a line, in UTF-8"
        ) from e
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompt; give one a line")
    return lines


def opened(path: Path):
    """A picture of any kind, as Pillow's in RGB.

    Cameras note which side is up, and that is heeded; what is transparent becomes white.

    Raises:
        InputError: the file is no picture, or a damaged one.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return _rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise InputError(f"{path} is not a readable picture; replace it, or leave it out") from e


def _rgb(picture):
    from PIL import Image

    if picture.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def read_picture(path: Path, mode: str = "RGB", side: int | None = None) -> Tensor:
    """A picture of any kind as uint8 (C, H, W).

    Args:
        path: a PNG file, or another that Pillow reads.
        mode: "RGB", or "L" for grey.
        side: squeezed or stretched to so many pixels each way; None leaves its size.

    Raises:
        InputError: as ``opened``.
    """
    from PIL import Image

    picture = opened(path).convert(mode)
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1).movedim(2, 0)


def read_pngs(folder: str | Path) -> Tensor:
    """All PNGs of a folder in the order of their names, uint8 (N, H, W), as grey images.

    Raises:
        InputError: no folder, no PNG in it, a file that is not a picture, or sizes that differ.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds PNG files")
    pictures = [np.asarray(opened(path).convert("L")) for path in sorted(folder.glob("*.png"))]
    if not pictures:
        raise InputError(f"{folder} holds no PNG file")
    if len({p.shape for p in pictures}) > 1:
        raise InputError(f"the PNG files of {folder} differ in size; they must all be alike")
    return torch.from_numpy(np.stack(pictures))


def read_colours(folder: Path) -> Tensor:
    """All PNGs of a folder in the order of their names, (N, 3, 32, 32) in [-1, 1].

    Raises:
        InputError: there is none, one is not a picture, or measures something else.
    """
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise InputError(f"{folder} holds no PNG file")
    pictures = [read_picture(path) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[1:] != (32, 32):
            raise InputError(
                f"{path} measures {tuple(picture.shape[1:])}; prompts are read in 32x32"
            )
    return torch.stack(pictures) / 127.5 - 1
