"""Which ink belongs to which digit? The ways of telling once more, on pairs of a zero and a one.

Nobody takes these two digits for each other, and their inks are never the same. So a network has
little to learn but the inks, and which of them belongs to which digit. Eight of the 56 pairs of
inks are held out; with their digits exchanged they are seen in training.
"""

import base64
from dataclasses import replace
from itertools import permutations
from typing import Any

import torch

from mnistlib import latent, recipes, text_trials
from mnistlib.captions import Caption, parse, say
from mnistlib.configs import PromptSettings
from mnistlib.data import generator_for, mnist
from mnistlib.grammar import COLOURS, Glyph, Scene
from mnistlib.plots import png, sheet
from mnistlib.readers import PALETTE
from mnistlib.scenes import Painted, Pool, measured, paint, side_by_side

__all__ = [
    "BUDGET",
    "CLASSES",
    "HELD_OUT",
    "KINDS",
    "SHOWN",
    "WAYS",
    "asked_of",
    "binding_run",
    "inks_of",
    "paired",
]

BUDGET = 16_000_000_000_000  # multiply-adds of a training: some 2,000 steps with words to look at
CLASSES = 64  # one for each ink of the zero and each of the one

HELD_OUT = tuple((ink, COLOURS[(i + 3) % 8]) for i, ink in enumerate(COLOURS))
"""Inks of the zero and of the one that no training scene shows together."""

_SEEN = tuple(inks for inks in permutations(COLOURS, 2) if inks not in HELD_OUT)
KINDS = {"seen": _SEEN, "held out": HELD_OUT}

WAYS: dict[str, PromptSettings] = {
    name: replace(text_trials.WAYS[name], scenes=6000)
    for name in ("class label", "one vector", "cross-attention")
}
WAYS["class label"] = replace(
    WAYS["class label"], model=replace(WAYS["class label"].model, classes=CLASSES)
)
"""Here a class says all that is asked for: both inks, and whose they are."""

SHOWN = (
    "a red zero and a blue one on white",
    "a blue zero and a red one on white",
    "a red one and a blue zero on white",
    "a green zero and a red one on white",
    "a red zero and a green one on white",
    "a green one and a red zero on white",
    "a red zero and a purple one on yellow",
    "a purple zero and a red one on yellow",
)
"""What each network draws for its record; the fifth, sixth and eighth were held out."""


def inks_of(named: Scene) -> int:
    """The class of a scene: 8 times the number of the zero's ink, and that of the one's."""
    ink = {glyph.digit: COLOURS.index(glyph.ink) for glyph in named.glyphs}
    return 8 * ink[0] + ink[1]


def _named(inks: tuple[str, str], seed: int, i: int) -> Scene:
    """A zero and a one in these inks, in either order, on one of the other six colours."""
    order, paper = torch.rand(2, generator=generator_for(seed, i)).tolist()
    glyphs = Glyph(0, inks[0]), Glyph(1, inks[1])
    papers = [colour for colour in COLOURS if colour not in inks]
    return Scene(glyphs if order < 0.5 else glyphs[::-1], papers[int(6 * paper)])


def paired(pool: Pool, seed: int, count: int) -> Painted:
    """The training scenes: pairs that are not held out, in turn, painted with any digits."""
    scenes = [_named(_SEEN[i % len(_SEEN)], seed, i) for i in range(count)]
    labels = torch.tensor([[glyph.digit for glyph in scene.glyphs] for scene in scenes])
    chosen = torch.rand(count, 2, generator=generator_for(seed, count))
    which = pool.starts[labels] + (chosen * pool.counts[labels]).long()
    coverage = side_by_side(*pool.small[which].unbind(1))
    inks = torch.tensor([[COLOURS.index(glyph.ink) for glyph in scene.glyphs] for scene in scenes])
    papers = torch.tensor([COLOURS.index(scene.paper) for scene in scenes])
    images = paint(coverage, PALETTE[inks], PALETTE[papers])
    return Painted(images, [replace(scene, placed=True) for scene in scenes])


def asked_of(kind: str, count: int, seed: int) -> list[Caption]:
    """Prompts that name a zero, a one, both inks and the paper: the inks of ``KINDS`` in turn."""
    inks = KINDS[kind]
    scenes = [_named(inks[i % len(inks)], seed, i) for i in range(count)]
    return [
        Caption(say(scene, generator=generator_for(seed, i, 1), language="en"), scene)
        for i, scene in enumerate(scenes)
    ]


def binding_run(settings: PromptSettings, seed: int) -> dict[str, Any]:
    """Train one network; measure whose ink is whose, for both of ``KINDS``, and draw ``SHOWN``."""
    settings = replace(settings, train=replace(settings.train, seed=seed))
    shipped, pool = recipes.find("rgb_vae"), measured(mnist(source="small"))
    images, scenes = paired(pool, seed, settings.scenes)
    latents = torch.cat([latent.encode(shipped.model, part) for part in images.split(1000)])
    job = text_trials.told(settings, latents, scenes, inks_of)
    trained, spent = text_trials.trained_within(BUDGET, settings, job, shipped.model)
    shown = [Caption(text, parse(text)) for text in SHOWN]
    drawn = text_trials.draw_told(trained, shown, 99, inks_of)
    row = spent | {
        kind: text_trials.judged(trained, asked_of(kind, settings.judged, 4), inks_of)
        for kind in KINDS
    }
    return row | {
        "vae": shipped.record["sha256"],
        "sheet": base64.b64encode(png(sheet(drawn))).decode(),
    }
