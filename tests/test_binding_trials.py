"""The trials of binding: pairs that are held out stay out, and whose ink is whose is counted."""

import json
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from test_text_trials import made, quick, world  # noqa: F401

from mnistlib import ablations, binding_trials, recipes, text_trials
from mnistlib.ablations import decode_sheet
from mnistlib.binding_trials import (
    CLASSES,
    HELD_OUT,
    KINDS,
    SHOWN,
    WAYS,
    asked_of,
    binding_run,
    inks_of,
    paired,
)
from mnistlib.captions import parse
from mnistlib.data import Digits, mnist
from mnistlib.grammar import COLOURS, Glyph, Scene
from mnistlib.readers import agreement, read
from mnistlib.scenes import measured

RECORD = ablations.RECORDS / "binding.json"


def inks(scene):
    """Return the inks of the zero and of the one."""
    by_digit = {glyph.digit: glyph.ink for glyph in scene.glyphs}
    assert by_digit.keys() == {0, 1}
    return by_digit[0], by_digit[1]


def some_digits():
    """Return five hundred embedded digits, ready to paint with."""
    digits = mnist(source="small")
    return measured(Digits(digits.images[:500], digits.labels[:500], "small"))


def test_pairs_of_inks_are_seen_or_held_out_and_each_mirror_is_seen():
    assert {*KINDS["seen"], *KINDS["held out"]} == {*permutations(COLOURS, 2)}
    assert len(KINDS["seen"]) == 48
    for end in range(2):  # each ink once at the zero, once at the one
        assert {inks[end] for inks in HELD_OUT} == {*COLOURS}
    assert len(HELD_OUT) == 8
    assert {pair[::-1] for pair in HELD_OUT} <= {*KINDS["seen"]}


def test_each_pair_of_inks_has_its_class():
    scenes = [
        Scene((Glyph(0, zero), Glyph(1, one))[::way], paper)
        for zero, one in permutations(COLOURS, 2)
        for way, paper in ((1, "white"), (-1, "black"))
    ]
    classes = {}
    for scene in scenes:
        classes.setdefault(inks_of(scene), set()).add(inks(scene))
    assert len(classes) == 56
    assert all(len(each) == 1 for each in classes.values())
    assert max(classes) < CLASSES


def test_training_scenes_show_what_is_seen_and_nothing_that_is_held_out():
    images, scenes = paired(some_digits(), 0, 480)
    assert Counter(map(inks, scenes)) == dict.fromkeys(KINDS["seen"], 10)
    assert 180 < sum(scene.glyphs[0].digit == 0 for scene in scenes) < 300
    papers = Counter(scene.paper for scene in scenes)
    assert min(papers[colour] for colour in COLOURS) > 30
    assert all(scene.placed and scene.paper not in inks(scene) for scene in scenes)
    eye = recipes.load(recipes.shipped_path("digit_features")).model
    found = [agreement(a, b) for a, b in zip(scenes, read(images, eye, 2), strict=True)]
    for part in ("digit", "ink", "places", "paper"):
        assert sum(each[part] for each in found) > 0.97 * 480, part


def test_scenes_differ():
    """Other digits each time, and other ones with another seed."""
    images, scenes = paired(some_digits(), 1, 96)
    assert len({image.numpy().tobytes() for image in images}) == 96
    assert not torch.equal(paired(some_digits(), 2, 96).images, images)
    assert scenes != paired(some_digits(), 2, 96).scenes


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_name_everything(kind):
    asked = asked_of(kind, 96, 3)
    assert Counter(inks(named) for _, named in asked) == dict.fromkeys(
        KINDS[kind], 96 // len(KINDS[kind])
    )
    assert all(parse(text) == named for text, named in asked)
    assert all(text.isascii() for text, _ in asked)
    firsts = sum(named.glyphs[0].digit == 0 for _, named in asked)
    assert 30 < firsts < 66


def test_shown_prompts_are_read_as_meant():
    named = [parse(text) for text in SHOWN]
    assert [inks(scene) in HELD_OUT for scene in named] == [False] * 4 + [True] * 2 + [False, True]
    assert inks(named[1]) == inks(named[2]) == inks(named[0])[::-1]
    assert inks(named[4]) == inks(named[5]) == inks(named[3])[::-1]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("way", WAYS)
def test_run_keeps_its_budget_and_measures(monkeypatch, way):
    monkeypatch.setattr(binding_trials, "mnist", lambda source: world()[0])
    monkeypatch.setattr(binding_trials, "BUDGET", 150_000_000)
    settings = quick(way)
    settings = replace(
        settings, model=replace(settings.model, classes=WAYS[way].model.classes), judged=6
    )
    row, again = binding_run(settings, 0), binding_run(settings, 0)
    assert row == again
    assert 0 < row["multiply_adds"] <= 150_000_000
    assert row["vae"] == "rgb_vae"
    for kind in KINDS:
        assert row[kind].keys() - {"bound"} == {"digit", "ink", "paper", "everything", "asked"}
        assert row[kind]["asked"]["of"] == 6
    assert decode_sheet(json.loads(json.dumps(row))).shape == (3, 34, 8 * 33 + 1)


def test_samples_that_are_right_count_and_those_with_exchanged_inks_do_not(monkeypatch):
    """The seen pairs, painted as asked, have every share; their mirrors have the inks alone."""
    eye = recipes.load(recipes.shipped_path("digit_features"))
    monkeypatch.setattr(recipes, "find", {"digit_features": eye}.__getitem__)
    painted = paired(some_digits(), 4, 48)
    trained = recipes.Trained(None, quick("both", judged=48), {})

    def draw(_, captions, seed, label_of):
        assert label_of is inks_of, "a class of pairs of inks, where a class is all that is told"
        return painted.images

    monkeypatch.setattr(text_trials, "draw_told", draw)
    right = text_trials.judged(trained, asked_of("seen", 48, 4), inks_of)
    assert right["bound"]["share"] == right["paper"]["share"] == 1
    assert right["bound"]["of"] >= 45
    assert right["asked"]["share"] > 0.9
    turned = tuple(pair[::-1] for pair in KINDS["seen"])
    monkeypatch.setitem(KINDS, "seen", turned)
    assert text_trials.judged(trained, asked_of("seen", 48, 4), inks_of)["bound"]["share"] == 0


def test_all_ways_are_those_of_telling_but_for_the_classes():
    for name, settings in WAYS.items():
        theirs = text_trials.WAYS[name]
        classes = CLASSES if name == "class label" else 0
        model = replace(theirs.model, classes=classes)
        assert settings == replace(theirs, scenes=6000, model=model)


def test_record_was_made_with_the_shipped_autoencoder():
    rows = json.loads(RECORD.read_text())["rows"]
    shipped = recipes.find("rgb_vae").record["sha256"]
    assert {row["vae"] for row in rows} == {shipped}, "remove binding.json and make it again"
    assert max(row["multiply_adds"] for row in rows) <= binding_trials.BUDGET
