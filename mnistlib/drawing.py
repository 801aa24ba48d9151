"""What the command line draws: digits, prompts, and changed pictures, step by step.

Legend: B images of a batch, C channels.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mnistlib import latent
from mnistlib.data import generator_for
from mnistlib.editing import image_to_image, inpaint, shortened
from mnistlib.pngs import read_picture
from mnistlib.recipes import DiffusionSettings, Trained, denoising, find
from mnistlib.samplers import ddim, draw_noise
from mnistlib.schedules import uniform_times
from mnistlib.train import pick_device
from mnistlib.trained import steered
from mnistlib.types import InputError, InputWarning, Step

__all__ = [
    "CLASS_SCALE",
    "PROMPT_SCALE",
    "Start",
    "check_edits",
    "check_picture",
    "check_prompts",
    "diffusion",
    "digit_states",
    "film_files",
    "prompt_states",
    "reader",
    "scale_for",
    "states",
    "told_once",
]

CLASS_SCALE, PROMPT_SCALE = 1.5, 2.0  # the guidance scales of digits and of prompts
STRENGTH = 0.7  # how much of a picture image-to-image drowns in noise
REPEATS = 5  # how often repainting takes each step


class Start(NamedTuple):
    """A picture to start from instead of noise.

    Attributes:
        picture: its file; it is squeezed to the size that the model draws, 32x32 for scenes.
        strength: see ``editing.image_to_image``; None is ``STRENGTH``, or 1 with a mask.
        mask: the file that says where it is painted anew: white there, black where it is kept.
    """

    picture: Path
    strength: float | None = None
    mask: Path | None = None


def diffusion(source: str) -> Trained:
    """A diffusion model on the device at hand.

    Raises:
        InputError: it is none, or cannot be found.
    """
    trained = find(source)
    if not isinstance(trained.settings, DiffusionSettings):
        raise InputError(f"{source} is not a diffusion model; it draws nothing")
    return trained.to(pick_device())


def scale_for(trained: Trained, wanted: float | None, classes: float = CLASS_SCALE) -> float:
    """The guidance scale: the one wanted, else the one at which a reader of prompts obeyed best.

    Where its record does not name one it is ``PROMPT_SCALE``; for a model of classes, ``classes``.

    Raises:
        InputError: the one wanted is no finite number.
    """
    if wanted is not None:
        if not math.isfinite(wanted):
            raise InputError(f"the scale must be a number, got {wanted}")
        return wanted
    if trained.reads:
        return trained.record.get("metrics", {}).get("scale", PROMPT_SCALE)
    return classes


def reader(source: str) -> Trained:
    """A diffusion model that reads prompts, on the device at hand.

    Raises:
        InputError: it is none, or cannot be found.
    """
    trained = diffusion(source)
    if not trained.reads:
        raise InputError(f"{source} reads no prompts; name a model that does: text_to_image")
    return trained


def check_prompts(
    trained: Trained, prompts: Sequence[str], negative: str | None, scale: float
) -> None:
    """Refuse, before anything is drawn, what the model cannot be told; warn of unknown words.

    Raises:
        InputError: it knows no word of a prompt, or would not hear the negative one.
    """
    if negative is not None and scale == 1:
        raise InputError("at scale 1 no negative prompt is heard; give --scale 2")
    trained.model.text.tokenize([*prompts, negative or ""])


@contextmanager
def told_once() -> Iterator[None]:
    """Do not warn of unknown words again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        yield


def check_edits(given: set[str], prompt: str | None) -> None:
    """Refuse options of ``sample`` that would be left unheard.

    Raises:
        InputError: one of those given has nothing to change.
    """
    if given and prompt is None:
        raise InputError(f"--{min(given)} changes what a prompt draws; give --prompt")
    alone = given & {"strength", "mask"}
    if alone and "from-image" not in given:
        raise InputError(f"--{min(alone)} needs a picture; give --from-image")


def check_picture(out: Path) -> None:
    """Refuse, before anything is drawn, a file that cannot be a picture.

    Raises:
        InputError: its name has another ending than .png, or it is a folder.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(f"{out} cannot be a PNG file; give --out a name that ends in .png")


def film_files(out: Path) -> list[Path]:
    """OUT.mp4 and OUT.gif; one of these endings may be there already.

    Raises:
        InputError: there is no name, or it is that of a folder.
    """
    name = out.stem if out.suffix in (".mp4", ".gif") else out.name
    files = [out.with_name(name + suffix) for suffix in (".mp4", ".gif")] if name else []
    if not files or name == ".." or any(path.is_dir() for path in files):
        raise InputError(f"{out} cannot be the name of two films; give --out one, such as digits")
    return files


def states(model: str | None, wanted: list, *how: Any, **edits: Any) -> list[Tensor]:
    """``digit_states`` or ``prompt_states``, of the model that draws such unless one is named."""
    if isinstance(wanted[0], str):
        return prompt_states("text_to_image" if model is None else model, wanted, *how, **edits)
    return digit_states("latent" if model is None else model, wanted, *how)


def digit_states(
    source: str, digits: list[int], steps: int, scale: float | None, seed: int, eta: float = 0.0
) -> list[Tensor]:
    """The state after every step of ddim as images (B, C, 32, 32): almost noise, ..., digits.

    Raises:
        InputError: the model cannot be told these digits.
    """
    trained = diffusion(source)
    if not trained.classes:
        raise InputError(f"{source} cannot be told a digit; name a model that knows classes")
    if not set(digits) <= set(range(trained.classes)):
        raise InputError(f"{source} draws the digits 0 to {trained.classes - 1}, got {digits[0]}")
    told = {"labels": torch.tensor(digits), "scale": scale_for(trained, scale)}
    run = denoising(trained, range(len(digits)), steps, seed=seed, eta=eta, **told)
    return _pictures(trained, run, steps)


def prompt_states(
    source: str,
    prompts: Sequence[str],
    steps: int,
    scale: float | None,
    seed: int,
    eta: float = 0.0,
    negative: str | None = None,
    start: Start | None = None,
) -> list[Tensor]:
    """The same for prompts, one for each image, and from a picture where a start is given.

    Raises:
        InputError: as ``reader`` and ``check_prompts``, or a file of the start is not a picture.
    """
    trained = reader(source)
    scale = scale_for(trained, scale)
    check_prompts(trained, prompts, negative, scale)
    told = {"prompts": prompts, "negative": negative or "", "scale": scale}
    with told_once():
        if start is None:
            run = denoising(trained, range(len(prompts)), steps, seed=seed, eta=eta, **told)
            return _pictures(trained, run, steps)
        return _edited(trained, start, len(prompts), steps, seed, eta, told)


def _edited(
    trained: Trained,
    start: Start,
    count: int,
    steps: int,
    seed: int,
    eta: float,
    told: dict[str, Any],
) -> list[Tensor]:
    """Draw on a picture; its noises are those that ``denoising`` begins with."""
    device = next(trained.model.parameters()).device
    side = trained.shape[-1] * trained.vae.config.down
    image = read_picture(start.picture, side=side)[None] / 127.5 - 1
    x_0 = latent.encode(trained.vae, image).to(device).expand(count, -1, -1, -1)
    strength, sampler = start.strength, partial(ddim, eta=eta)
    if start.mask is not None:
        mask = _repainted(start.mask, x_0.shape[2:]).to(device)
        sampler = partial(inpaint, known=x_0, mask=mask, repeats=REPEATS, sampler=sampler)
    if strength is None:
        strength = STRENGTH if start.mask is None else 1.0
    generators = [generator_for(seed, i) for i in range(count)]
    eps = draw_noise(x_0.shape, x_0, generator=generators)
    schedule, denoise = trained.schedule, steered(trained, range(count), **told)
    times = uniform_times(schedule.T, steps)
    how = {"sampler": sampler, "generator": generators}
    run = image_to_image(denoise, schedule, x_0, eps, times, strength, **how)
    return _pictures(trained, run, len(shortened(times, strength)) - 1)


def _repainted(path: Path, shape: Sequence[int]) -> Tensor:
    """A mask for latents (1, 1, h, w): 1 where any pixel of a mask of any size is nearer white."""
    white = (read_picture(path, "L") > 127).float()
    return F.adaptive_max_pool2d(white[None], tuple(shape))


def _pictures(trained: Trained, run: Iterator[Step], steps: int) -> list[Tensor]:
    return [trained.pictures(step.x_t) for step in tqdm(run, total=steps, disable=None)]
