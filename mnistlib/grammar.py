"""What can be said of a scene of coloured digits, and the English and Chinese words for it.

``captions.say`` fills the templates, and ``captions.parse`` looks for the same words.
"""

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from mnistlib.types import InputError

__all__ = [
    "CHINESE",
    "COLOURS",
    "ENGLISH",
    "LANGUAGES",
    "SLANTS",
    "STROKES",
    "Glyph",
    "Language",
    "Scene",
    "glyph_of",
    "texts",
]

COLOURS = ("black", "white", "red", "orange", "yellow", "green", "blue", "purple")
STROKES = ("thin", "medium", "thick")
SLANTS = ("left", "upright", "right")
_KNOWN = {"digit": range(10), "ink": COLOURS, "stroke": STROKES, "slant": SLANTS, "paper": COLOURS}


def _check(thing: Any, *names: str) -> None:
    for name in names:
        value, known = getattr(thing, name), _KNOWN[name]
        if value is not None and value not in known:
            raise InputError(f"unknown {name} {value!r}; choose of {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Glyph:
    """One written digit; None is what is not said, or is too near a border to be called.

    Attributes:
        digit: 0..9.
        ink: one of ``COLOURS``.
        stroke: one of ``STROKES``.
        slant: one of ``SLANTS``, where its top leans.

    Raises:
        InputError: a value that is none of these.
    """

    digit: int | None = None
    ink: str | None = None
    stroke: str | None = None
    slant: str | None = None

    def __post_init__(self) -> None:
        _check(self, "digit", "ink", "stroke", "slant")


def glyph_of(digit: int, ink: int, stroke: int, slant: int) -> Glyph:
    """A digit whose attributes are indices; -1 of a stroke or a slant leaves it open."""
    return Glyph(digit, COLOURS[ink], (*STROKES, None)[stroke], (*SLANTS, None)[slant])


@dataclass(frozen=True)
class Scene:
    """All that is in a picture, or what a caption names of it.

    A caption names any part. What it leaves open is None, and no accuracy is measured on it.

    Attributes:
        glyphs: one digit, or two: left and right where ``placed``, else as they are mentioned.
        paper: one of ``COLOURS``.
        placed: whether it is said which of two digits stands on the left.

    Raises:
        InputError: another number of digits, or an unknown paper.
    """

    glyphs: tuple[Glyph, ...] = (Glyph(),)
    paper: str | None = None
    placed: bool = False

    def __post_init__(self) -> None:
        _check(self, "paper")
        if len(self.glyphs) != 1 + self.placed and len(self.glyphs) != 2:
            raise InputError(
                f"a scene holds one digit or two, and only two have places; got {self}"
            )


@dataclass(frozen=True)
class Language:
    """The words and templates of a language.

    A part of a template in [brackets] is left out where what it names is None, so that each
    template says any subset of the attributes. ``{a}`` and ``{b}`` are the digits, each said by
    one of ``glyph``; in ``placed`` a is the left one.

    Attributes:
        glyph, one, placed, unplaced: templates of a digit, and of scenes of one and two.
        digit, ink, stroke, slant, lean: the ways to say each value; ``lean`` follows the digit.
        number, noun: what may stand around a digit's name, and what stands for an unnamed digit.
        colour: the ways to write an ink's name.
        paper, sheet: the ways to say the paper, after "on" and by itself.
        paper_marks: what makes a colour the paper's, for ``parse``.
        places: marks of place -> the side of the digit that is mentioned first.
        joints: what stands between two digits, the strongest first.
        counts: what sounds like a digit and is none -> how many digits it promises.
    """

    glyph: tuple[str, ...]
    one: tuple[str, ...]
    placed: tuple[str, ...]
    unplaced: tuple[str, ...]
    digit: tuple[tuple[str, ...], ...]
    ink: dict[str, tuple[str, ...]]
    stroke: dict[str, tuple[str, ...]]
    slant: dict[str, tuple[str, ...]]
    lean: dict[str, tuple[str, ...]]
    number: tuple[str, ...]
    noun: tuple[str, ...]
    colour: tuple[str, ...]
    paper: tuple[str, ...]
    sheet: tuple[str, ...]
    paper_marks: tuple[str, ...]
    places: dict[str, str]
    joints: tuple[str, ...]
    counts: dict[str, int]


# fmt: off
ENGLISH = Language(
    glyph=(
        "a [{stroke} ][{ink} ]{digit}[ {lean}]",
        "the [{stroke} ][{ink} ]{digit}[ {lean}]",
        "[{stroke} ][{ink} ]{digit}[ {lean}]",
        "a [{slant} ][{stroke} ][{ink} ]{digit}",
        "a [{slant}, ][{stroke} ][{ink} ]{digit}",
        "a [{stroke} ]{digit}[ in {ink}][ {lean}]",
        "a [{slant} ][{ink} ]{digit}[ with a {stroke} stroke]",
        "a [{stroke} ]{digit}[ in {ink} ink][, {lean}]",
    ),
    one=(
        "{a}[ on {paper}]",
        "{a}[ against {sheet}]",
        "[on {paper}, ]{a}",
        "[{sheet} with ]{a}",
        "a picture of {a}[ on {paper}]",
        "an image of {a}[ on {paper}]",
        "{a}[ written on {paper}]",
        "{digit}[, {ink}][, {stroke}][, {slant}][, on {paper}]",
    ),
    placed=(
        "{a} left of {b}[ on {paper}]",
        "{b} right of {a}[ on {paper}]",
        "{a} to the left of {b}[ on {paper}]",
        "{b} to the right of {a}[, on {paper}]",
        "[on {paper}, ]{a} left of {b}",
        "{a} on the left and {b} on the right[, on {paper}]",
        "on the right {b}, on the left {a}[, on {paper}]",
        "from left to right, {a} and {b}[ on {paper}]",
    ),
    unplaced=(
        "{a} and {b}[ on {paper}]",
        "{a} next to {b}[ on {paper}]",
        "{a} beside {b}[ against {sheet}]",
        "[{sheet} with ]{a} and {b}",
        "two digits: {a} and {b}[ on {paper}]",
        "a picture of {a} and {b}[ on {paper}]",
    ),
    digit=(
        ("zero", "0"), ("one", "1"), ("two", "2"), ("three", "3"), ("four", "4"),
        ("five", "5"), ("six", "6"), ("seven", "7"), ("eight", "8"), ("nine", "9"),
    ),
    ink={name: (name,) for name in COLOURS} | {"purple": ("purple", "violet")},
    stroke={"thin": ("thin", "fine"), "medium": ("medium", "medium-weight"),
            "thick": ("thick", "bold", "heavy")},
    slant={"left": ("left-leaning", "left-slanting"), "upright": ("upright", "straight"),
           "right": ("right-leaning", "right-slanting")},
    lean={"left": ("leaning left", "leaning to the left", "slanted to the left", "tilted left"),
          "upright": ("standing upright", "standing straight"),
          "right": ("leaning right", "leaning to the right", "slanted to the right",
                    "tilted right")},
    number=("{}", "{}", "digit {}", "number {}"),
    noun=("digit", "number"),
    colour=("{}",),
    paper=("{}", "{} paper", "a {} background"),
    sheet=("{} paper", "a {} background"),
    paper_marks=("on {}", "against {}", "{} paper", "{} background"),
    places={"left of": "left", "right of": "right", "on the left": "left", "on the right": "right",
            "from left to right": "left", "left": "left", "right": "right"},
    joints=("and", "next to", "beside", ","),
    counts={"two digits": 2},
)
_LEANING = {"left": ("向左倾斜", "向左歪"), "upright": ("直立", "竖直"),
            "right": ("向右倾斜", "向右歪")}
_SHEETS = ("{}底", "{}纸", "{}色背景", "{}色的纸")
CHINESE = Language(
    glyph=(
        "一个[{slant}的][{stroke}][{ink}]{digit}",
        "[{slant}的][{stroke}][{ink}]{digit}",
        "一个[{ink}][{slant}的][{stroke}]{digit}",
        "[{stroke}][{ink}][{slant}的]{digit}",
        "一个[用{ink}墨水写的][{slant}的][{stroke}]{digit}",
    ),
    one=(
        "[{paper}上]{a}",
        "{a}[，{paper}]",
        "[{paper}上]有{a}",
        "[在{paper}上]写着{a}",
        "这是{a}[，{paper}]",
        "一张图，画着{a}[，{paper}]",
        "{digit}[，{ink}][，{stroke}][，{lean}][，{paper}]",
    ),
    placed=(
        "左边是{a}，右边是{b}[，{paper}]",
        "[{paper}上]右边是{b}，左边是{a}",
        "{a}在{b}的左边[，{paper}]",
        "{b}在{a}的右边[，{paper}]",
        "[{paper}上]{b}的左边是{a}",
        "[{paper}上]从左到右是{a}和{b}",
    ),
    unplaced=(
        "{a}和{b}[，{paper}]",
        "[{paper}上]{a}与{b}",
        "两个数字：{a}和{b}[，{paper}]",
        "[{paper}上]有{a}和{b}",
    ),
    digit=(
        ("零", "0"), ("一", "1"), ("二", "2"), ("三", "3"), ("四", "4"),
        ("五", "5"), ("六", "6"), ("七", "7"), ("八", "8"), ("九", "9"),
    ),
    ink={name: (sign,) for name, sign in zip(COLOURS, "黑白红橙黄绿蓝紫", strict=True)},
    stroke={"thin": ("细", "细的", "笔画细的"), "medium": ("中等粗细的", "粗细适中的"),
            "thick": ("粗", "粗的", "笔画粗的")},
    slant=_LEANING,
    lean=_LEANING,
    number=("{}", "数字{}"),
    noun=("数字",),
    colour=("{}色", "{}色的"),
    paper=_SHEETS,
    sheet=_SHEETS,
    paper_marks=(*_SHEETS, "{}色底", "{}色纸", "{}背景"),
    places={"左边": "left", "右边": "right", "的左边是": "right", "的右边是": "left",
            "从左到右": "left"},
    joints=("和", "与", "在", "，"),
    counts={"一个": 0, "一张": 0, "两个数字": 2},
)
# fmt: on
LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


def texts() -> Iterator[str]:
    """All words and templates of both languages, for ``text.vocabulary_of``."""
    return _texts([astuple(language) for language in LANGUAGES.values()])


def _texts(thing: Any) -> Iterator[str]:
    """The texts in a table of tables, without the names of slots."""
    if isinstance(thing, str):
        yield re.sub(r"\{\w*\}", " ", thing)
    elif isinstance(thing, dict | list | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from _texts(part)
