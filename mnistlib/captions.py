"""Captions of coloured digits in English and Chinese: from a scene to words, and back.

``say`` and ``parse`` undo each other, because both go by the tables of ``grammar.py``.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator

from mnistlib.grammar import LANGUAGES, Glyph, Language, Scene
from mnistlib.types import InputError

__all__ = [
    "ATTRIBUTES",
    "FINE",
    "SHARE",
    "Caption",
    "describe",
    "parse",
    "say",
]

SHARE = {"digit": 0.9, "ink": 0.75, "stroke": 0.5, "slant": 0.5, "paper": 0.6, "places": 0.75}
"""How often ``describe`` names each attribute, where the scene has it."""

FINE = ("stroke", "slant")
"""What is not seen at once, but measured."""

ATTRIBUTES = tuple(SHARE)
"""All that a caption can name."""

_DRAWS = 64  # more random numbers than the longest caption takes
_GROUP = re.compile(r"\[([^]]*\{(\w+)\}[^]]*)\]")
_AN = re.compile(r"\ba(?= (?!one\b)(?:[aeio8]|upright))")


class Caption(NamedTuple):
    """A caption and what it names."""

    text: str
    named: Scene


# ---- from a scene to a caption -------------------------------------------------------------


class _Choices:
    """Random choices; all their numbers are drawn at once, because single draws are slow."""

    def __init__(self, generator: Generator | None):
        self.numbers = iter(torch.rand(_DRAWS, generator=generator).tolist())

    def pick(self, options: Sequence) -> Any:
        return options[int(next(self.numbers) * len(options))]

    def chance(self, share: float) -> bool:
        return next(self.numbers) < share


def describe(
    scene: Scene,
    *,
    generator: Generator | None = None,
    language: str | None = None,
    attributes: Collection[str] = ATTRIBUTES,
    in_order: bool = False,
    fine: float | None = None,
) -> Caption:
    """Name a random part of a scene, in random words.

    Each attribute is named with its ``SHARE``, digit by digit. Two digits that are not placed are
    mentioned in either order.

    Args:
        scene: what is in the picture.
        generator: draws all choices; the same state gives the same caption.
        language: "en" or "zh"; by default either, at random.
        attributes: what may be named, some of ``ATTRIBUTES``.
        in_order: where places are named, the left digit is mentioned first.
        fine: a share for what is ``FINE``, from 0 to 1.

    Raises:
        InputError: an unknown language or attribute.
    """
    unknown = set(attributes) - set(ATTRIBUTES)
    if unknown:
        raise InputError(f"unknown attribute {min(unknown)!r}; choose of {', '.join(ATTRIBUTES)}")
    choices = _Choices(generator)
    shares = SHARE if fine is None else SHARE | dict.fromkeys(FINE, fine)
    named = _part(scene, attributes, choices, shares)
    return Caption(_say(named, choices, language, in_order), named)


def say(named: Scene, *, generator: Generator | None = None, language: str | None = None) -> str:
    """Say exactly what is named, in random words; ``generator``, ``language`` as in ``describe``.

    ``parse`` of it gives ``named`` back. "A digit" is said where nothing is named; the empty
    caption, which also names nothing, is for a training to put in.
    """
    return _say(named, _Choices(generator), language)


def _part(
    scene: Scene, attributes: Collection[str], choices: _Choices, shares: dict[str, float]
) -> Scene:
    """What ``describe`` names of a scene."""

    def kept(attribute: str, value: Any) -> Any:
        chosen = choices.chance(shares[attribute])  # drawn always: one attribute moves no other
        return value if chosen and attribute in attributes else None

    glyphs = [
        Glyph(**{f.name: kept(f.name, getattr(glyph, f.name)) for f in fields(Glyph)})
        for glyph in scene.glyphs
    ]
    paper, placed = kept("paper", scene.paper), bool(kept("places", scene.placed))
    if len(glyphs) == 2 and not placed and choices.chance(0.5):
        glyphs.reverse()
    return Scene(tuple(glyphs), paper, placed)


def _say(named: Scene, choices: _Choices, language: str | None, in_order: bool = False) -> str:
    """Choose a template and the words for its slots."""
    if language not in (None, *LANGUAGES):
        raise InputError(f"unknown language {language!r}; choose one of {', '.join(LANGUAGES)}")
    lang = LANGUAGES[language or choices.pick(tuple(LANGUAGES))]
    slots = dict.fromkeys(("paper", "sheet"))
    for name, glyph in zip("ab", named.glyphs, strict=False):
        slots |= _slots(glyph, lang, choices)
        slots[name] = _filled(choices.pick(lang.glyph), slots)
    if named.paper:
        name = choices.pick(lang.ink[named.paper])
        slots |= {k: choices.pick(getattr(lang, k)).format(name) for k in ("paper", "sheet")}
    pair = lang.placed if named.placed else lang.unplaced
    pair = [t for t in pair if t.index("{a}") < t.index("{b}")] if in_order else pair
    template = choices.pick(pair if len(named.glyphs) == 2 else lang.one)
    return _AN.sub("an", _filled(template, slots))


def _slots(glyph: Glyph, lang: Language, choices: _Choices) -> dict[str, str | None]:
    """The words for each slot of a digit's template."""
    pick, slant = choices.pick, glyph.slant
    digit = pick(lang.noun)
    if glyph.digit is not None:
        digit = pick(lang.number).format(pick(lang.digit[glyph.digit]))
    return {
        "digit": digit,
        "ink": glyph.ink and pick(lang.colour).format(pick(lang.ink[glyph.ink])),
        "stroke": glyph.stroke and pick(lang.stroke[glyph.stroke]),
        "slant": slant and pick(lang.slant[slant]),
        "lean": slant and pick(lang.lean[slant]),
    }


def _filled(template: str, slots: dict[str, str | None]) -> str:
    """Fill the slots; a [part] whose slot is None vanishes."""
    whole = _GROUP.sub(lambda part: part[1] if slots[part[2]] else "", template)
    return whole.format_map(slots)


# ---- from a caption to what it names -------------------------------------------------------


class _Token(NamedTuple):
    """A phrase that means something: its kind and its value."""

    kind: str
    value: Any


def _normal(text: str) -> str:
    return " ".join(text.lower().replace("-", " ").split())


def _dictionary() -> dict[str, _Token]:
    """Every phrase of every language, and what it means."""
    known = {}
    for lang in LANGUAGES.values():
        known |= {name: _Token("digit", None) for name in lang.noun}
        known |= {name: _Token("digit", i) for i, names in enumerate(lang.digit) for name in names}
        for kind, ways in (
            ("ink", lang.ink),
            ("stroke", lang.stroke),
            ("slant", lang.slant),
            ("slant", lang.lean),
        ):
            known |= {name: _Token(kind, value) for value in ways for name in ways[value]}
        known |= {
            mark.format(name): _Token("paper", colour)
            for mark in lang.paper_marks
            for colour, names in lang.ink.items()
            for name in names
        }
        known |= {name: _Token("place", side) for name, side in lang.places.items()}
        known |= {name: _Token("joint", rank) for rank, name in enumerate(lang.joints)}
        known |= {name: _Token("count", count) for name, count in lang.counts.items()}
    return {_normal(phrase): token for phrase, token in known.items()}


def _pattern(phrase: str) -> str:
    """English words end where their letters end; Chinese has no spaces."""
    whole = phrase.isascii() and phrase[0].isalnum()
    return rf"(?<![a-z0-9]){re.escape(phrase)}(?![a-z0-9])" if whole else re.escape(phrase)


_DICTIONARY = _dictionary()
_PHRASE = re.compile("|".join(map(_pattern, sorted(_DICTIONARY, key=len, reverse=True))))


def parse(caption: str) -> Scene:
    """What a caption names: ``parse(say(named)) == named``.

    Free prompts in the same words are read as well; other words are passed over. What stands
    between two digits belongs to the first up to the word that joins them, and to the second after.

    Raises:
        InputError: more than two digits, or two values for one attribute.
    """
    tokens = [_DICTIONARY[phrase] for phrase in _PHRASE.findall(_normal(caption))]
    tokens = [  # "digit" in "the digit 7" is no digit of its own
        token
        for token, after in pairwise([*tokens, _Token("end", None)])
        if token != _Token("digit", None) or after.kind != "digit"
    ]
    digits = [i for i, token in enumerate(tokens) if token.kind == "digit"]
    if len(digits) > 2:
        raise InputError(f"{caption!r} names {len(digits)} digits; a scene holds at most two")
    cut = len(tokens) if len(digits) < 2 else _joint(tokens, *digits)
    parts = [tokens[:cut], tokens[cut:]]
    promised = max(len(digits), *(token.value for token in tokens if token.kind == "count"), 1)
    glyphs = tuple(_glyph(part, caption) for part in parts[:promised])
    sides = [token.value for token in tokens if token.kind == "place"]
    placed = len(digits) == 2 and bool(sides)
    if placed and sides[0] == "right":
        glyphs = glyphs[::-1]
    return Scene(glyphs, _only("paper", tokens, caption), placed)


def _joint(tokens: list[_Token], first: int, second: int) -> int:
    """Where the second digit's part begins: at the strongest joint, a place before all others."""
    rank = {
        i: -1 if tokens[i].kind == "place" else tokens[i].value
        for i in range(first + 1, second)
        if tokens[i].kind in ("place", "joint")
    }
    return min(rank, key=rank.get, default=first + 1)


def _glyph(tokens: list[_Token], caption: str) -> Glyph:
    return Glyph(**{f.name: _only(f.name, tokens, caption) for f in fields(Glyph)})


def _only(kind: str, tokens: list[_Token], caption: str) -> Any:
    """The one value of a kind, None where nothing is said of it."""
    values = dict.fromkeys(t.value for t in tokens if t.kind == kind and t.value is not None)
    if len(values) > 1:
        raise InputError(f"{caption!r} gives one {kind} {len(values)} values: {[*values]}")
    return next(iter(values), None)
