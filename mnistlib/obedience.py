"""Is a picture what its prompt asks for? Prompts by kind, and shares of what is right.

Legend: N images.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from mnistlib.captions import Caption, say
from mnistlib.data import generator_for
from mnistlib.grammar import Glyph, Scene
from mnistlib.metrics import prompt_accuracy
from mnistlib.readers import agreement, read
from mnistlib.scenes import Pool, draw_captions, draw_scenes

__all__ = [
    "ASKED",
    "KINDS",
    "SEEN",
    "agreements",
    "bound",
    "draw_prompts",
    "named_in",
    "obedience",
]

SEEN = ("one digit, seen", "two digits, seen")
KINDS = {
    "one digit, seen": (0.0, False),
    "one digit, held out": (0.0, True),
    "two digits, seen": (1.0, False),
    "two digits, held out": (1.0, True),
}
"""Of each kind of scenes the share with two digits, and whether the combination was held out."""

ASKED = {1: ("digit", "ink", "paper"), 2: ("digit", "ink", "places")}
"""What must all be right, as far as it is named, in scenes of one digit and of two."""


def draw_prompts(pool: Pool, kind: str, count: int, seed: int) -> list[Caption]:
    """Random prompts of the grammar for scenes of one of ``KINDS``.

    Those of combinations that were held out name the combination; others would test nothing new.
    """
    two, unseen = KINDS[kind]
    found: list[Caption] = []
    numbers = range(0)
    while len(found) < count:  # mostly once
        numbers = range(numbers.stop, numbers.stop + 4 * count)
        scenes = draw_scenes(pool, seed, numbers, two=two, unseen=unseen).scenes
        captions = draw_captions(scenes, seed, numbers)
        found += [c for c in captions if not unseen or _names_combination(c.named)]
    return found[:count]


def _names_combination(named: Scene) -> bool:
    """Whether the digit and its ink, or both of two digits and their places, are named."""
    if len(named.glyphs) == 1:
        return None not in (named.glyphs[0].digit, named.glyphs[0].ink)
    return named.placed and None not in [glyph.digit for glyph in named.glyphs]


def named_in(pool: Pool, kind: str, count: int, seed: int, *, inks: bool = True) -> list[Caption]:
    """Prompts for scenes of one of ``KINDS`` that name all digits, and no places.

    Args:
        inks: name each ink and the paper as well.
    """
    two, unseen = KINDS[kind]
    captions = []
    for i, scene in enumerate(draw_scenes(pool, seed, range(count), two=two, unseen=unseen).scenes):
        glyphs = tuple(Glyph(glyph.digit, glyph.ink if inks else None) for glyph in scene.glyphs)
        named = Scene(glyphs, scene.paper if inks else None)
        text = say(named, generator=generator_for(seed, i, 1), language="en")
        captions.append(Caption(text, named))
    return captions


def agreements(
    images: Tensor, named: Sequence[Scene], classifier: Callable[[Tensor], Tensor]
) -> list[dict[str, bool | None]]:
    """What ``readers.agreement`` says of each image (N, 3, 32, 32), looked at for its digits."""
    digits = [len(scene.glyphs) for scene in named]
    seen: dict[int, Scene] = {}
    for n in {*digits}:
        i = [j for j, m in enumerate(digits) if m == n]
        seen |= zip(i, read(images[i], classifier, n), strict=True)
    return [agreement(scene, seen[i]) for i, scene in enumerate(named)]


def obedience(
    found: Sequence[dict[str, bool | None]], named: Sequence[Scene]
) -> dict[str, dict[str, float]]:
    """Shares of ``agreements``: by attribute, ``everything`` together, and ``asked``.

    ``asked`` counts the images in which all of ``ASKED`` that was named is right; it is left out
    where no scene names any of it. Each share is that of ``metrics.Share`` as a dictionary, with
    the share itself, ``right / of``, added.
    """
    asked = [
        {k: each[k] for k in ASKED[len(scene.glyphs)]}
        for each, scene in zip(found, named, strict=True)
    ]
    shares, of_asked = prompt_accuracy(found), prompt_accuracy(asked)
    if of_asked:
        shares["asked"] = of_asked["everything"]
    return {name: {"share": s.right / s.of} | s._asdict() for name, s in shares.items()}


def bound(named: Scene, seen: Scene) -> bool | None:
    """Does each digit have its own ink, wherever it stands?

    None unless two digits in two inks are asked for, and these digits and these inks are there. A
    network that knows all four and not which belong together is right half of the time.
    """
    for part in ("digit", "ink"):
        wanted, there = ({getattr(g, part) for g in scene.glyphs} for scene in (named, seen))
        if len(wanted) < 2 or wanted != there:
            return None
    return {(g.digit, g.ink) for g in named.glyphs} == {(g.digit, g.ink) for g in seen.glyphs}
