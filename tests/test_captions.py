"""Captions: templates and their inverse, what is named and how often, and the vocabulary."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnistlib import captions, grammar
from mnistlib.captions import ATTRIBUTES, SHARE, describe, parse, say
from mnistlib.data import generator_for
from mnistlib.grammar import COLOURS, LANGUAGES, SLANTS, STROKES, Glyph, Scene, texts
from mnistlib.text import vocabulary_of
from mnistlib.types import InputError

ONE = Scene((Glyph(7, "red", "thick", "right"),), "blue")
TWO = Scene((Glyph(3, "red", "thin", "left"), Glyph(8, "orange", "medium", "upright")), "white")
PLACED = replace(TWO, placed=True)


def maybe(values):
    """Return a strategy of values, and of None."""
    return st.none() | st.sampled_from(values)


glyphs = st.builds(Glyph, maybe(range(10)), maybe(COLOURS), maybe(STROKES), maybe(SLANTS))
scenes = st.builds(
    Scene, st.tuples(glyphs) | st.tuples(glyphs, glyphs), maybe(COLOURS)
) | st.builds(Scene, st.tuples(glyphs, glyphs), maybe(COLOURS), st.just(True))


def seeded(*keys):
    """Return the keyword that fixes all choices."""
    return {"generator": generator_for(*keys)}


# ---- a caption says what it names -----------------------------------------------------------


@given(scenes, st.sampled_from([*LANGUAGES]), st.integers(0, 10**6))
def test_parse_undoes_say(named, language, seed):
    assert parse(say(named, language=language, **seeded(seed))) == named


def subsets(scene):
    """Yield every part of a scene that a caption could name."""
    for kept in itertools.product([True, False], repeat=5):
        digit, ink, stroke, slant, paper = kept
        some = [
            Glyph(
                g.digit if digit else None,
                g.ink if ink else None,
                g.stroke if stroke else None,
                g.slant if slant else None,
            )
            for g in scene.glyphs
        ]
        yield replace(scene, glyphs=tuple(some), paper=scene.paper if paper else None)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("kind", "scene"), [("one", ONE), ("placed", PLACED), ("unplaced", TWO)])
def test_each_template_says_any_subset(language, kind, scene, monkeypatch):
    lang = LANGUAGES[language]
    for glyph, template in itertools.product(lang.glyph, getattr(lang, kind)):
        single = replace(lang, glyph=(glyph,), **{kind: (template,)})
        monkeypatch.setitem(LANGUAGES, language, single)
        for named in subsets(scene):
            text = say(named, language=language, **seeded(0))
            assert parse(text) == named, text
            assert not set(text) & set("[]{}")


@pytest.mark.parametrize(
    ("language", "each", "together"), [("en", 6, 20), ("zh", 4, 12)], ids=LANGUAGES
)
def test_there_are_many_templates(language, each, together):
    lang = LANGUAGES[language]
    counts = [len(set(part)) for part in (lang.glyph, lang.one, lang.placed, lang.unplaced)]
    assert min(counts) >= each
    assert sum(counts) >= together


# Written by hand, so that the two inverses cannot agree on a mistake.
SEVEN, THREE = Glyph(7), Glyph(3, "red")
READ = [
    ("", Scene()),
    ("a digit", Scene()),
    ("7", Scene((SEVEN,))),
    ("the digit 7", Scene((SEVEN,))),
    ("a thick red seven leaning right on blue", ONE),
    ("A BOLD, right-leaning Seven in red ink, on blue paper", ONE),
    ("purple seven", Scene((Glyph(7, "purple"),))),
    ("a violet background with an upright one", Scene((Glyph(1, slant="upright"),), "purple")),
    ("a red three left of a white seven", Scene((THREE, Glyph(7, "white")), None, True)),
    ("a white seven to the right of a red three", Scene((THREE, Glyph(7, "white")), None, True)),
    ("a red three right of a white seven", Scene((Glyph(7, "white"), THREE), None, True)),
    ("a white seven and a red three", Scene((Glyph(7, "white"), THREE))),
    ("two digits: a red three and 7 on black", Scene((THREE, SEVEN), "black")),
    ("two digits on black", Scene((Glyph(), Glyph()), "black")),
    ("a red three and a digit", Scene((THREE, Glyph()))),
    (
        "a 3 in red leaning left to the left of a fine 7",
        Scene((Glyph(3, "red", slant="left"), Glyph(7, stroke="thin")), None, True),
    ),
    ("on the right a red three, on the left 7", Scene((SEVEN, THREE), None, True)),
    ("a seven with a thick stroke and a red 3", Scene((Glyph(7, stroke="thick"), THREE))),
    ("please have someone draw a lovely seven", Scene((SEVEN,))),
    ("蓝底上一个向右倾斜的粗红色数字七", ONE),
    ("一", Scene((Glyph(1),))),
    ("一个一", Scene((Glyph(1),))),
    ("一个数字", Scene()),
    ("白纸上的紫色的中等粗细的九", Scene((Glyph(9, "purple", "medium"),), "white")),
    ("红色的三在七的左边", Scene((THREE, SEVEN), None, True)),
    ("红色的三在七的右边", Scene((SEVEN, THREE), None, True)),
    ("七的左边是红色的三", Scene((THREE, SEVEN), None, True)),
    ("左边是红色的3，右边是7，黑底", Scene((THREE, SEVEN), "black", True)),
    ("两个数字：红色的三和7", Scene((THREE, SEVEN))),
]


@pytest.mark.parametrize(("caption", "named"), READ, ids=[text or "empty" for text, _ in READ])
def test_what_captions_name(caption, named):
    assert parse(caption) == named


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a one, a two and a three", "names 3 digits"),
        ("a red blue seven", "ink 2 values"),
        ("a seven on red paper and on blue paper", "paper 2 values"),
    ],
)
def test_contradictions_are_refused(caption, message):
    with pytest.raises(InputError, match=message):
        parse(caption)


@pytest.mark.parametrize(
    ("glyph", "wanted", "unwanted"),
    [
        (Glyph(8), {"an eight", "an 8"}, {"a eight", "a 8"}),
        (Glyph(1), {"a one", "a 1"}, {"an one", "an 1"}),
        (Glyph(7, "orange"), {"an orange"}, {"a orange"}),
        (Glyph(7, slant="upright"), {"an upright"}, {"a upright"}),
    ],
)
def test_articles(glyph, wanted, unwanted):
    texts = [say(Scene((glyph,)), language="en", **seeded(i)) + " " for i in range(200)]
    found = {s for s in wanted | unwanted for text in texts if f"{s} " in text}
    assert found == wanted


# ---- what describe names --------------------------------------------------------------------


@given(scenes, st.sampled_from([*LANGUAGES]), st.integers(0, 10**6))
def test_describe_names_a_part_of_the_scene(scene, language, seed):
    text, named = describe(scene, language=language, **seeded(seed))
    assert parse(text) == named
    orders = [scene.glyphs] if named.placed else [scene.glyphs, scene.glyphs[::-1]]
    assert any(
        all(
            getattr(said, name) in (None, getattr(true, name))
            for said, true in zip(named.glyphs, order, strict=True)
            for name in ("digit", "ink", "stroke", "slant")
        )
        for order in orders
    )
    assert named.paper in (None, scene.paper)
    assert named.placed <= scene.placed


def named_share(scenes, name):
    """Return how often an attribute is named."""
    if name == "places":
        return sum(s.placed for s in scenes) / len(scenes)
    if name == "paper":
        return sum(s.paper is not None for s in scenes) / len(scenes)
    values = [getattr(glyph, name) for s in scenes for glyph in s.glyphs]
    return sum(v is not None for v in values) / len(values)


def test_attributes_are_named_with_their_share():
    named = [describe(PLACED, **seeded(0, i)).named for i in range(2000)]
    for name, share in SHARE.items():
        assert abs(named_share(named, name) - share) < 0.05, name  # 4.5 standard deviations


def test_strokes_and_slants_are_named_as_often_as_asked_and_the_rest_as_ever():
    named = [describe(PLACED, **seeded(0, i), fine=0.9).named for i in range(2000)]
    for name, share in SHARE.items():
        wanted = 0.9 if name in ("stroke", "slant") else share
        assert abs(named_share(named, name) - wanted) < 0.05, name  # 4.5 standard deviations


def test_digits_without_places_come_in_either_order():
    named = [describe(TWO, **seeded(1, i), attributes=["digit"]).named for i in range(400)]
    firsts = [s.glyphs[0].digit for s in named]
    assert 120 < firsts.count(3) < 240
    assert 120 < firsts.count(8) < 240


def test_both_languages_name_the_same():
    for i in range(200):
        english, chinese = (describe(PLACED, **seeded(2, i), language=k) for k in LANGUAGES)
        assert english.named == chinese.named
        assert english.text.isascii()
        assert not chinese.text.isascii()


def digits_of(scene):
    """Return the part of a scene that names its digits and their places."""
    return Scene(tuple(Glyph(g.digit) for g in scene.glyphs), placed=scene.placed)


def test_a_chinese_paper_at_the_beginning_puts_the_right_digit_first():
    """The shortcut of Chapter 10: in no caption is the paper followed by what stands on the left.

    Only 从左到右, "from left to right", which says its order itself, keeps it.
    """
    early = [t for t in LANGUAGES["zh"].placed if t.startswith("[{paper}") and "从左到右" not in t]
    assert len(early) == 2
    assert all(t.index("{b}") < t.index("{a}") for t in early)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_left_digit_comes_first_where_that_is_asked_for(language):
    """In every caption that names places; otherwise it does not in a good part of them."""
    names = [LANGUAGES[language].digit[glyph.digit] for glyph in PLACED.glyphs]
    for in_order, fewest, most in ((True, 1.0, 1.0), (False, 0.3, 0.8)):
        how = {"language": language, "attributes": ["digit", "places"], "in_order": in_order}
        said = [describe(PLACED, **seeded(11, i), **how) for i in range(300)]
        texts = [text for text, named in said if named == digits_of(PLACED)]
        first = [min(names, key=lambda n, t=t: re.search("|".join(n), t).start()) for t in texts]
        assert len(texts) > 120
        assert fewest <= first.count(names[0]) / len(texts) <= most


def test_either_language_is_taken():
    texts = [describe(ONE, **seeded(3, i)).text for i in range(400)]
    assert 140 < sum(text.isascii() for text in texts) < 260


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_only_the_attributes_asked_for_are_named(name):
    named = [describe(PLACED, **seeded(4, i), attributes=[name]).named for i in range(50)]
    assert [other for other in ATTRIBUTES if named_share(named, other)] == [name]


def test_the_same_generator_gives_the_same_caption():
    texts = [[describe(PLACED, **seeded(5, i)).text for i in range(50)] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 45


def test_a_caption_never_runs_out_of_numbers(monkeypatch):
    """40 of the 64 are enough even for two digits with everything said."""
    monkeypatch.setattr(captions, "_DRAWS", 40)
    everything = dict.fromkeys(ATTRIBUTES, 1.0)
    monkeypatch.setattr(captions, "SHARE", everything)
    for i in range(100):
        assert describe(PLACED, **seeded(6, i)).named == PLACED


# ---- the vocabulary, and bad input ----------------------------------------------------------


def test_vocabulary_is_what_captions_say():
    said = []
    for i in range(1500):
        draw = torch.randint(0, 120, (8,), generator=generator_for(7, i)).tolist()
        a, b = (
            Glyph(draw[k] % 10, COLOURS[draw[k + 1] % 8], STROKES[i % 3], SLANTS[(i // 3) % 3])
            for k in (0, 2)
        )
        paper = COLOURS[draw[4] % 8]
        for scene in (Scene((a,), paper), Scene((a, b), paper, True), Scene((Glyph(), b))):
            said.append(say(scene, **seeded(8, i)))
            said.append(say(replace(scene, placed=False), **seeded(9, i)))
    assert vocabulary_of(said) == vocabulary_of(texts())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Glyph(10), "unknown digit 10"),
        (lambda: Glyph(ink="pink"), "unknown ink 'pink'; choose of black"),
        (lambda: Scene(paper="grey"), "unknown paper"),
        (lambda: Scene(()), "one digit or two"),
        (lambda: Scene((Glyph(),) * 3), "one digit or two"),
        (lambda: Scene((Glyph(),), placed=True), "only two have places"),
        (lambda: say(ONE, language="fr"), "unknown language 'fr'; choose one of en, zh"),
        (lambda: describe(ONE, attributes=["size"]), "unknown attribute 'size'"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_no_phrase_means_two_things():
    """A later phrase of the tables would silently take the place of an earlier one."""
    found = {}
    for lang in LANGUAGES.values():
        for kind in ("ink", "stroke", "slant", "lean"):
            for value, names in getattr(lang, kind).items():
                for name in names:
                    assert found.setdefault(name, value) == value
        for digit, names in enumerate(lang.digit):
            for name in names:
                assert found.setdefault(name, digit) == digit
    assert grammar.LANGUAGES is LANGUAGES
