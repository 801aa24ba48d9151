"""Editing tried out on the shipped network: how much noise, how often, and by which way.

Scenes are painted with the 5,000 embedded digits. Prompts are English, and name what a trial needs.
Legend: N scenes, or pictures of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mnistlib import latent, recipes
from mnistlib.captions import ATTRIBUTES, say
from mnistlib.data import generator_for, mnist
from mnistlib.editing import image_to_image, inpaint, slerp
from mnistlib.grammar import COLOURS, Glyph, Scene
from mnistlib.readers import PALETTE, agreement, halves, read
from mnistlib.samplers import ddim, draw_noise
from mnistlib.scenes import HELD_OUT_INKS, Painted, Pool, draw_scenes, measured
from mnistlib.schedules import uniform_times
from mnistlib.trained import Trained
from mnistlib.types import Denoiser

__all__ = [
    "CHANGES",
    "EDITS",
    "Edit",
    "World",
    "between",
    "changed",
    "edit_run",
    "otherwise",
    "overlap",
    "papers",
    "repainted",
    "right_half",
]

STEPS = 12
CHANGES = ("digit", "ink", "paper")


class World(NamedTuple):
    """What all trials of a seed share: the network, who reads its pictures, digits to paint with.

    Attributes:
        eye: grey images (N, 1, 32, 32) -> scores (N, 10).
        scale: of classifier-free guidance.
    """

    trained: Trained
    eye: Callable[[Tensor], Tensor]
    pool: Pool
    scale: float
    seed: int

    def noise(self, count: int, number: int = 0) -> Tensor:
        """Standard normal noise of the network's shape, one of several series."""
        generator = generator_for(self.seed, number, 2)
        return draw_noise((count, *self.trained.shape), generator=generator)

    def told(self, wanted: Sequence[Scene]) -> Denoiser:
        """The denoiser that draws what is named, said in random words."""
        seeds = [generator_for(self.seed, i, 1) for i in range(len(wanted))]
        said = zip(wanted, seeds, strict=True)
        prompts = [say(scene, generator=g, language="en") for scene, g in said]
        return self.trained.prompted(prompts, self.scale)

    @property
    def times(self) -> list[int]:
        """The grid of a whole run."""
        return uniform_times(self.trained.schedule.T, STEPS)


# ---- image to image ------------------------------------------------------------------------


def changed(world: World, strength: float, count: int) -> dict[str, Any]:
    """Pictures of one digit, asked to change in one respect, at a strength.

    Returns:
        For each of ``CHANGES`` three numbers. ``obeys`` is the share that shows the new digit, ink
        and paper, all of them named; ``keeps`` the share in which slant and stroke, which nobody
        named, are read as before; ``overlap`` is explained there. And for "nothing", where the
        network is told the empty prompt, the share that keeps each attribute. Compared is with the
        picture as the autoencoder gives it back, so that nothing but the edit counts.
    """
    trained, painted = world.trained, draw_scenes(world.pool, world.seed, range(count), two=0.0)
    z_0, eps = latent.encode(trained.vae, painted.images), world.noise(count)
    before = trained.pictures(z_0)
    were = read(before, world.eye)

    def edited(denoise: Denoiser) -> Tensor:
        *_, last = image_to_image(denoise, trained.schedule, z_0, eps, world.times, strength)
        return trained.pictures(last.x_t)

    found = {}
    for what in CHANGES:
        wanted = [otherwise(scene, what, world.seed, i) for i, scene in enumerate(painted.scenes)]
        after = edited(world.told(wanted))
        are = read(after, world.eye)
        found[what] = {
            "obeys": _share(wanted, are, ("digit", "ink", "paper")),
            "keeps": _share(were, are, ("slant", "stroke")),
            "overlap": float(overlap(before, after).mean()),
        }
    free = read(edited(trained.prompted([""])), world.eye)
    kept = [name for name in ATTRIBUTES if name != "places"]
    return found | {"nothing": {name: _share(were, free, (name,)) for name in kept}}


def otherwise(scene: Scene, what: str, seed: int, number: int) -> Scene:
    """Digit, ink and paper of a scene of one digit, one of them another at random.

    No digit gets an ink that was held out for it.
    """
    (old,) = scene.glyphs
    others = []
    for value in range(10) if what == "digit" else COLOURS:
        digit, ink = (value if what == k else getattr(old, k) for k in ("digit", "ink"))
        new = Scene((Glyph(digit, ink),), value if what == "paper" else scene.paper)
        same = value == (scene.paper if what == "paper" else getattr(old, what))
        if not same and ink != new.paper and (digit, ink) not in HELD_OUT_INKS:
            others.append(new)
    i = torch.randint(len(others), (1,), generator=generator_for(seed, number, 3))
    return others[int(i)]


def overlap(before: Tensor, after: Tensor) -> Tensor:
    """How far the strokes of two pictures (N, 3, H, W) lie in the same places, (N,).

    It is the correlation, over the pixels, of their distances from the picture's own paper: 1 for
    the same drawing in any colours, about 0 for drawings that know nothing of each other.
    """
    drawn = []
    for images in (before, after):
        paper = papers(images)[:, :, None, None]
        away = (images - paper).norm(dim=1).flatten(1)
        away = away - away.mean(1, keepdim=True)
        drawn.append(away / away.norm(dim=1, keepdim=True).clamp(min=1e-6))
    return (drawn[0] * drawn[1]).sum(1)


def papers(part: Tensor) -> Tensor:
    """The colour of the paper (N, 3) of images or halves of them: where no digit stands."""
    return part[:, :, [0, 1, -2, -1]].flatten(2).median(dim=2).values


def _share(named: Sequence[Scene], seen: Sequence[Scene], names: Sequence[str]) -> float:
    """The share of pictures in which all of these are as they were named, where they were."""
    found = [agreement(a, b) for a, b in zip(named, seen, strict=True)]
    return sum(all(each[k] is not False for k in names) for each in found) / len(found)


# ---- repainting ----------------------------------------------------------------------------


def repainted(world: World, repeats: int, count: int) -> dict[str, float]:
    """Two digits, of which the right one is drawn anew; the prompt does not name the paper.

    Args:
        repeats: see ``inpaint``; 0 draws a whole picture and pastes its right half in.

    Returns:
        ``obeys`` is the share with the new digit and ink on the right, ``keeps`` with the old ones
        on the left, ``fits`` with the same of eight papers in both halves; ``gap`` is the root mean
        square difference of their colours.
    """
    trained = world.trained
    before = draw_scenes(world.pool, world.seed, range(count), two=1.0)
    z_0, mask = latent.encode(trained.vae, before.images), right_half(trained.shape)
    wanted = _with_new_right(before, world)
    how = (world.told(wanted), trained.schedule, world.noise(count), world.times)
    known = {"known": z_0, "mask": mask, "generator": generator_for(world.seed, 4)}
    *_, last = inpaint(*how, **known, repeats=repeats) if repeats else ddim(*how)
    parts = halves(trained.pictures(torch.lerp(z_0, last.x_t, mask)))
    kept, drawn = (
        _share([_side(scene, side) for scene in wanted], _alone(half, world.eye), ("digit", "ink"))
        for side, half in enumerate(parts)
    )
    left, right = map(papers, parts)
    called = [torch.cdist(colour, PALETTE).argmin(1) for colour in (left, right)]
    return {
        "obeys": drawn,
        "keeps": kept,
        "fits": float((called[0] == called[1]).double().mean()),
        "gap": float((left - right).square().mean().sqrt()),
    }


def _alone(half: Tensor, eye: Callable[[Tensor], Tensor]) -> list[Scene]:
    """What is in each half (N, 3, 32, 16) of a picture, read on the half's own paper."""
    return [_side(scene, 0) for scene in read(torch.cat([half, half], dim=3), eye, 2)]


def _side(scene: Scene, side: int) -> Scene:
    return Scene((scene.glyphs[side],))


def right_half(shape: Sequence[int]) -> Tensor:
    """The mask (1, 1, h, w) for latents (Z, h, w) that repaints their right half."""
    _, h, w = shape
    return (torch.arange(w) >= w // 2).float().expand(1, 1, h, w)


def _with_new_right(before: Painted, world: World) -> list[Scene]:
    """The left digits as they are, beside right ones of other scenes, in inks that can be seen."""
    wanted = []
    others = draw_scenes(world.pool, world.seed + 1000, range(len(before.scenes)), two=1.0).scenes
    for scene, other in zip(before.scenes, others, strict=True):
        left, right = scene.glyphs[0], other.glyphs[1]
        ink = other.paper if right.ink == scene.paper else right.ink  # they are never the same
        wanted.append(Scene((Glyph(left.digit, left.ink), Glyph(right.digit, ink)), None, True))
    return wanted


# ---- between two noises --------------------------------------------------------------------

WAYS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "end": lambda first, last, weight: first,
    "lerp": torch.lerp,
    "slerp": slerp,
}


def between(world: World, way: str, count: int) -> dict[str, float]:
    """Half-way between two noises, told one prompt: a digit, its ink and the paper.

    Returns:
        ``norm`` is the root mean square of the noise, ``spread`` the standard deviation within a
        latent drawn from it, ``obeys`` the share of pictures that show what was asked for.
    """
    trained = world.trained
    scenes = draw_scenes(world.pool, world.seed, range(count), two=0.0).scenes
    wanted = [
        Scene((Glyph(scene.glyphs[0].digit, scene.glyphs[0].ink),), scene.paper) for scene in scenes
    ]
    eps = WAYS[way](world.noise(count), world.noise(count, 1), 0.5)
    *_, last = ddim(world.told(wanted), trained.schedule, eps, world.times)
    seen = read(trained.pictures(last.x_t), world.eye)
    return {
        "norm": float(eps.square().mean().sqrt()),
        "spread": float(last.x_t.std((1, 2, 3)).mean()),
        "obeys": _share(wanted, seen, ("digit", "ink", "paper")),
    }


# ---- all of them ---------------------------------------------------------------------------


class Edit(NamedTuple):
    """One trial: how much noise, how many repeats, or which way between two noises."""

    kind: Literal["strength", "repeats", "between"]
    value: float | int | str
    scenes: int = 100


EDITS = {
    f"{kind} {value}": Edit(kind, value)
    for kind, values in {
        "strength": (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "repeats": (0, 1, 5, 10),
        "between": tuple(WAYS),
    }.items()
    for value in values
}

_TRIALS = {"strength": changed, "repeats": repainted, "between": between}


def edit_run(edit: Edit, seed: int) -> dict[str, Any]:
    """Edit pictures with the shipped ``text_to_image`` and read what came of it."""
    trained, eye = recipes.find("text_to_image"), recipes.find("digit_features").model
    pool, scale = measured(mnist(source="small")), trained.record["metrics"]["scale"]
    world = World(trained, eye, pool, scale, seed)
    result = _TRIALS[edit.kind](world, edit.value, edit.scenes)
    return edit._asdict() | result | {"weights": trained.record["sha256"]}
