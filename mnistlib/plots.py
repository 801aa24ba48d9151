"""One look for every figure: pictures, curves, and a player that needs no kernel.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. Backgrounds are transparent
and lines of text mid-grey, so that a figure reads on a light page and on a dark one.
"""

import base64
import hashlib
import inspect
import io
import json
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mnistlib.data import to_uint8, write_atomically
from mnistlib.types import InputError

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "RED",
    "SKY",
    "figure",
    "player",
    "png",
    "save_figure",
    "sheet",
    "show_figure",
    "show_images",
    "show_source",
]

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#767676"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)

_STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.labelcolor": GREY,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "image.cmap": "gray",
}
_DPI = 144  # twice the size shown, for dense screens


def figure(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 2.6, **kwargs: Any
):
    """``plt.subplots`` in the style of the book; width and height in inches."""
    plt.rcParams.update(_STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def show_figure(fig: Figure, *, alt: str, caption: str = "") -> HTML:
    """A matplotlib figure as an HTML figure with alternative text and a caption; closes ``fig``.

    The caption may hold inline HTML such as ``<em>``.
    """
    width = round(fig.get_figwidth() * 72 * 1.25)
    return _html_figure(_png_of_figure(fig), alt, caption, f"width:{width}px;max-width:100%")


def save_figure(path: str | Path, fig: Figure) -> None:
    """Write a matplotlib figure as a PNG file, whole or not at all; closes ``fig``."""
    write_atomically(path, _png_of_figure(fig))


def sheet(images: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """Put images (B, C, H, W) in [-1, 1] side by side on grey paper: uint8 (C, rows, columns).

    Rows are filled from the left; ``columns`` defaults to one row.
    """
    if images.ndim != 4 or not len(images):
        raise InputError(f"a sheet needs images (B, C, H, W), got {tuple(images.shape)}")
    B, C, H, W = images.shape
    columns = columns or B
    rows = -(-B // columns)
    paper = torch.full(
        (C, rows * (H + gap) + gap, columns * (W + gap) + gap), 118, dtype=torch.uint8
    )
    for i, image in enumerate(to_uint8(images)):
        y, x = (i // columns) * (H + gap) + gap, (i % columns) * (W + gap) + gap
        paper[:, y : y + H, x : x + W] = image
    return paper


def show_images(
    images: Tensor, *, alt: str, caption: str = "", columns: int | None = None, scale: float = 2.0
) -> HTML:
    """Images (B, C, H, W) in [-1, 1] as a sheet with alternative text and a caption.

    ``scale`` is the size of one image pixel on the page.
    """
    paper = sheet(images, columns)
    style = f"width:{round(paper.shape[-1] * scale)}px;max-width:100%;image-rendering:pixelated"
    return _html_figure(png(paper), alt, caption, style)


def player(
    frames: Sequence[Tensor | Figure],
    labels: Sequence[str],
    *,
    alt: str,
    caption: str = "",
    start: int = 0,
    scale: float = 3.0,
    fps: int = 5,
) -> HTML:
    """A film strip with a slider and a Play button that works on a static page.

    Args:
        frames: images (C, H, W) in [-1, 1], sheets (C, H, W) uint8, or matplotlib figures.
        labels: one short text per frame, shown beside the slider.
        alt: what the moving picture shows.
        start: the frame shown first.
        scale: size of one image pixel on the page (figures keep their own size).
        fps: frames a second while playing.

    Raises:
        InputError: no frame, or not one label per frame.
    """
    if len(frames) == 0 or len(frames) != len(labels):
        raise InputError(f"a player needs one label per frame, got {len(frames)} and {len(labels)}")
    figures = isinstance(frames[0], Figure)
    width = frames[0].get_figwidth() * 90 if figures else frames[0].shape[-1] * scale
    data = [_uri(_png_of_figure(f) if figures else png(_as_pixels(f))) for f in frames]
    name = "player-" + hashlib.sha256("".join([*data, *labels, alt]).encode()).hexdigest()[:12]
    return HTML(
        _PLAYER.format(
            name=name,
            first=data[start],
            alt=escape(alt, quote=True),
            style=f"width:{round(width)}px;max-width:100%"
            + ("" if figures else ";image-rendering:pixelated"),
            last=len(data) - 1,
            start=start,
            label=escape(labels[start]),
            caption=f"<figcaption>{caption}</figcaption>" if caption else "",
            frames=json.dumps(data),
            labels=json.dumps(list(labels)).replace("</", "<\\/"),  # would end the script
            pause=round(1000 / fps),
        )
    )


def show_source(thing: Any) -> Markdown:
    """The library's own source of a function or class, so that page and library cannot differ."""
    return Markdown(f"```python\n{textwrap.dedent(inspect.getsource(thing)).rstrip()}\n```")


_PLAYER = """<figure class="mnistlib-player" id="{name}" style="margin:1em 0">
<img class="dark-light" src="{first}" alt="{alt}" style="{style}">
<div style="display:flex;gap:.6em;align-items:center;margin:.4em 0;max-width:34em">
<button type="button" style="min-width:4.5em">Play</button>
<input type="range" min="0" max="{last}" value="{start}" step="1" aria-label="frame" style="flex:1">
<output style="min-width:7em">{label}</output></div>{caption}
<script>(function () {{
  const box = document.getElementById("{name}"), frames = {frames}, labels = {labels};
  const image = box.querySelector("img"), slider = box.querySelector("input");
  const button = box.querySelector("button"), output = box.querySelector("output");
  let timer = null;
  function show(i) {{ slider.value = i; image.src = frames[i]; output.textContent = labels[i]; }}
  function stop() {{ clearInterval(timer); timer = null; button.textContent = "Play"; }}
  slider.addEventListener("input", function () {{ stop(); show(+slider.value); }});
  button.addEventListener("click", function () {{
    if (timer) return stop();
    if (+slider.value === frames.length - 1) show(0);
    button.textContent = "Pause";
    timer = setInterval(function () {{
      if (+slider.value < frames.length - 1) show(+slider.value + 1); else stop();
    }}, {pause});
  }});
}})();</script></figure>"""


def _html_figure(png: bytes, alt: str, caption: str, style: str) -> HTML:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return HTML(
        f'<figure class="mnistlib-figure" style="margin:1em 0"><img class="dark-light" '
        f'src="{_uri(png)}" alt="{escape(alt, quote=True)}" style="{style}">{below}</figure>'
    )


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png_of_figure(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    plt.close(fig)
    # A palette of 128 colours makes the file three times smaller, with no visible loss.
    picture = Image.open(buffer).quantize(128, method=Image.Quantize.FASTOCTREE)
    return _encode(picture)


def _as_pixels(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else to_uint8(image[None])[0]


def png(pixels: Tensor) -> bytes:
    """Pixels (C, H, W) uint8, C 1 or 3, as the bytes of a PNG file."""
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())  # (H, W) or (H, W, 3)
    return _encode(Image.fromarray(array))


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
