"""The trials of telling: each network hears what its name says, and budgets are kept."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement

import pytest
import tiny
import torch
from torch.nn import functional as F

from mnistlib import ablations, grammar, latent, recipes, text_trials
from mnistlib.ablations import decode_sheet
from mnistlib.captions import Caption, parse
from mnistlib.data import Digits, mnist
from mnistlib.grammar import COLOURS, Glyph, Scene
from mnistlib.latent_trials import multiply_adds
from mnistlib.obedience import KINDS, bound, named_in
from mnistlib.prompt_jobs import encoded
from mnistlib.readers import halves
from mnistlib.scenes import HELD_OUT_INKS, HELD_OUT_PAIRS, draw_scenes, measured
from mnistlib.text import split, vocabulary_of
from mnistlib.text_trials import (
    CLASSES,
    JUDGED,
    SHOWN,
    WAYS,
    WEIGHTINGS,
    draw_told,
    label_of,
    telling_job,
    telling_run,
)
from mnistlib.train import TrainConfig

RECORDS = [ablations.RECORDS / f"{name}.json" for name in ("ways_of_telling", "prompt_weighting")]
every_way = pytest.mark.parametrize("way", WAYS)


def quick(way, **changes):
    """Return the settings of a way, with small networks and hardly any samples."""
    s = WAYS[way]
    model = replace(
        s.model, widths=(8, 16), heads=2, time_dim=16, context_dim=8 if s.model.context_dim else 0
    )
    few = {"batch_size": 8, "scenes": 40, "judged": 4, "judge_steps": 2}
    train = TrainConfig(steps=3, warmup=1, ema=0.5)
    text = {"text_width": 8, "text_layers": 1, "text_heads": 2}
    return replace(s, model=model, train=train, **(few | text | changes))


@cache
def world():
    """Return made digits, and in place of shipped weights networks of the smoke profile."""
    images, labels = tiny.made_digits(60)
    digits = Digits(torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels), "made")
    found = {}
    for name in ("rgb_vae", "digit_features"):
        torch.manual_seed(0)
        model = tiny.alive(recipes.RECIPES[name].network(recipes.RECIPES[name].smoke))
        found[name] = recipes.Trained(model, recipes.RECIPES[name].smoke, {"sha256": name})
    latent.measure_scale(found["rgb_vae"].model, draw_scenes(measured(digits), 9, range(40)).images)
    return digits, found


@pytest.fixture
def made(monkeypatch):
    """Use that world, and a budget of a few steps."""
    digits, found = world()
    monkeypatch.setattr(text_trials, "mnist", lambda source: digits)
    monkeypatch.setattr(recipes, "find", found.__getitem__)
    monkeypatch.setattr(text_trials, "BUDGET", 250_000_000)
    monkeypatch.setattr(text_trials, "UNSEEN", 16)
    return found


def untrained(way):
    """Return a network of a way whose weights do something."""
    settings = quick(way)
    model = tiny.alive(text_trials._begin(settings))
    return recipes.Trained(model, settings, {}, world()[1]["rgb_vae"].model)


# ---- what is told --------------------------------------------------------------------------


def test_each_scene_has_its_class():
    """One for each digit, and one for each pair, whoever is mentioned first or stands left."""
    one = [label_of(Scene((Glyph(k, "red"),), "blue")) for k in range(10)]
    assert one == list(range(10))
    pairs = set()
    for a, b in combinations_with_replacement(range(10), 2):
        labels = {
            label_of(Scene((Glyph(*x), Glyph(*y)), paper, placed))
            for x, y in (((a, "red"), (b, "blue")), ((b, "green"), (a, "green")))
            for paper, placed in (("white", True), (None, False))
        }
        assert len(labels) == 1
        pairs |= labels
    assert pairs == {*range(10, CLASSES)}
    assert len(pairs) == 55


def test_what_a_class_cannot_say_is_not_said():
    for scene in (
        Scene((Glyph(None, "red"),)),
        Scene((Glyph(3), Glyph(None)), None, True),
        Scene((Glyph(None), Glyph(3))),
    ):
        assert label_of(scene) == CLASSES


def scene_of(z, latents, scenes):
    """Return the scene to which a latent belongs."""
    (i,) = (latents == z).flatten(1).all(1).nonzero().flatten().tolist()
    return scenes[i]


def test_labels_belong_to_their_latents():
    digits, found = world()
    settings, vae = quick("class label", label_dropout=0.25), found["rgb_vae"].model
    latents, scenes = encoded(settings, measured(digits), vae)
    _, batch_at = telling_job(settings, digits, vae)
    told = []
    for step in range(30):
        x_0, t, eps, labels = batch_at(3, step)
        assert x_0.shape == eps.shape == (8, 4, 8, 8)
        assert 1 <= int(t.min()) <= int(t.max()) <= settings.T
        told += labels.tolist()
        for z, label in zip(x_0, labels.tolist(), strict=True):
            assert label in (label_of(scene_of(z, latents, scenes)), CLASSES)
    assert 0.15 < told.count(CLASSES) / len(told) < 0.35
    assert all(torch.equal(a, b) for a, b in zip(batch_at(3, 5), batch_at(3, 5), strict=True))
    assert not torch.equal(batch_at(3, 5)[2], batch_at(3, 6)[2])


def test_words_belong_to_their_latents():
    """English only, of digits, inks and papers; a share of the captions is forgotten."""
    digits, found = world()
    settings, vae = quick("cross-attention", label_dropout=0.25), found["rgb_vae"].model
    latents, scenes = encoded(settings, measured(digits), vae)
    words = vocabulary_of(grammar.texts())
    names = {word: i for i, ways in enumerate(grammar.ENGLISH.digit) for word in ways}
    del names["two"]  # "two digits" are not a two
    colours = {way: colour for colour in COLOURS for way in grammar.ENGLISH.ink[colour]}
    unsaid = {  # of places, "left" and "right"
        word
        for table in (grammar.ENGLISH.stroke, grammar.ENGLISH.slant, grammar.ENGLISH.lean)
        for ways in table.values()
        for phrase in ways
        for word in split(phrase)
    } - {"to", "the"}
    _, batch_at = telling_job(settings, digits, vae)
    lengths, found_colours = [], 0
    for step in range(30):
        x_0, _, _, ids, mask = batch_at(3, step)
        for z, row, valid in zip(x_0, ids, mask, strict=True):
            said = [words[k - 2] for k in row[valid][1:].tolist()]
            lengths.append(len(said))
            scene = scene_of(z, latents, scenes)
            there = {scene.paper, *(glyph.ink for glyph in scene.glyphs)}
            known = {glyph.digit for glyph in scene.glyphs}
            assert {names[w] for w in said if w in names} <= known
            assert {colours[w] for w in said if w in colours} <= there
            found_colours += any(w in colours for w in said)
            assert not unsaid & {*said}
            assert all(word.isascii() for word in said)
    assert 0.15 < lengths.count(0) / len(lengths) < 0.35
    assert found_colours > 100


@every_way
def test_the_loss_is_that_of_v(way):
    """By hand, from what the network answers when it is told."""
    digits, found = world()
    trained = untrained(way)
    loss, batch_at = telling_job(trained.settings, digits, found["rgb_vae"].model)
    x_0, t, eps, *told = batch = batch_at(0, 0)
    a = trained.schedule.alpha_bar[t].view(-1, 1, 1, 1)
    alpha, sigma = a.sqrt().float(), (1 - a).sqrt().float()
    cond = trained.model.of_class(*told) if way == "class label" else trained.model.of_tokens(*told)
    with torch.no_grad():
        v = trained.model(alpha * x_0 + sigma * eps, t, cond)
        expected = F.mse_loss(v, alpha * eps - sigma * x_0)
        assert float(loss(trained.model, batch)) == pytest.approx(float(expected))
    weighted, _ = telling_job(
        replace(trained.settings, weighting="min_snr"), digits, found["rgb_vae"].model
    )
    with torch.no_grad():
        assert float(weighted(trained.model, batch)) < 0.9 * float(expected)


# ---- prompts -------------------------------------------------------------------------------


def test_pairs_without_places_were_seen():
    """All but zero and five: why nothing that was held out is asked of two digits."""
    mirrored = {(right, left) for left, right in HELD_OUT_PAIRS}
    assert mirrored & {*HELD_OUT_PAIRS} == {(0, 5), (5, 0)}
    assert {kind for kinds in JUDGED.values() for kind in kinds} < {*KINDS}
    assert not any("two digits, held out" in kinds for kinds in JUDGED.values())


def test_shown_prompts_are_read_as_meant():
    named = [parse(text) for text in SHOWN]
    assert [len(scene.glyphs) for scene in named] == [1] * 4 + [2] * 4
    assert all(scene.paper and not scene.placed for scene in named)
    held_out = [(g.digit, g.ink) in HELD_OUT_INKS for scene in named for g in scene.glyphs]
    assert held_out == [False] * 3 + [True] + [False] * 8
    assert [bound(named[4], scene) for scene in named[4:]] == [True, False, False, None]
    assert bound(named[5], named[6])


@every_way
def test_pictures_are_what_each_network_is_told(way):
    """Two ways to the same pictures, also across the edge of a batch."""
    trained = untrained(way)
    captions = named_in(measured(world()[0]), "two digits, seen", 103, 5)
    drawn = draw_told(trained, captions, 4)
    if way == "class label":
        told = {"labels": torch.tensor([label_of(named) for _, named in captions])}
    else:
        told = {"prompts": [text for text, _ in captions]}
    theirs = recipes.sample(trained, range(103), 2, seed=4, scale=3.0, **told)
    assert drawn.shape == (103, 3, 32, 32)
    assert (drawn - theirs).abs().max() < 1e-3
    turned = [Caption(*captions[-1]), *captions[1:]]
    assert not torch.allclose(draw_told(trained, turned, 4)[0], drawn[0], atol=1e-3)


def test_a_class_cannot_tell_of_inks():
    trained = untrained("class label")
    red, blue = (
        [Caption(f"a {ink} 7", Scene((Glyph(7, ink),), paper))]
        for ink, paper in (("red", "white"), ("blue", "black"))
    )
    assert torch.equal(draw_told(trained, red, 1), draw_told(trained, blue, 1))
    other = untrained("one vector")
    assert not torch.allclose(draw_told(other, red, 1), draw_told(other, blue, 1), atol=1e-3)


# ---- the run -------------------------------------------------------------------------------


@every_way
def test_run_keeps_its_budget_and_measures(made, way):
    settings = quick(way)
    row = telling_run(settings, 0)
    network = text_trials._begin(settings)
    loss, batch_at = telling_job(settings, world()[0], made["rgb_vae"].model)
    a_step = multiply_adds(lambda: loss(network, batch_at(0, 0)).backward())
    assert row["multiply_adds"] == row["steps"] * a_step
    assert 0 <= text_trials.BUDGET - row["multiply_adds"] < a_step
    assert row["images_seen"] == 8 * row["steps"] > 8
    assert row["vae"] == "rgb_vae"
    assert list(row["everything"]) == [
        "one digit, seen",
        "one digit, held out",
        "two digits, seen",
    ]
    assert list(row["digits"]) == ["one digit, seen", "two digits, seen"]
    for found in row["everything"].values():
        assert found.keys() - {"bound"} == {"digit", "ink", "paper", "everything", "asked"}
        assert found["digit"]["of"] == 4
    for found in row["digits"].values():
        assert found.keys() == {"digit", "everything", "asked"}
    assert decode_sheet(json.loads(json.dumps(row))).shape == (3, 34, 8 * 33 + 1)


def test_the_seed_alone_makes_the_run(made):
    first, again, other = (telling_run(quick("both"), seed) for seed in (0, 0, 1))
    assert first == again
    assert first["loss"] != other["loss"]


def exchanged(*args, **how):
    """Return `named_in` of the same, with each ink at the other digit."""
    captions = []
    for text, named in named_in(*args, **how):
        a, b = named.glyphs
        glyphs = Glyph(a.digit, b.ink), Glyph(b.digit, a.ink)
        captions.append(Caption(text, Scene(glyphs, named.paper)))
    return captions


def test_samples_that_are_right_count(made, monkeypatch):
    """Whoever paints what is asked for has every share, up to the reader's own mistakes."""
    digits = mnist(source="small")
    some = measured(Digits(digits.images[:500], digits.labels[:500], "small"))
    eye = recipes.load(recipes.shipped_path("digit_features"))
    monkeypatch.setattr(recipes, "find", {"digit_features": eye}.__getitem__)
    kind = "two digits, seen"
    painted = draw_scenes(some, 4, range(60), two=1.0)
    trained = untrained("both")._replace(settings=quick("both", judged=60))
    pairs = [scene.glyphs for scene in painted.scenes]
    differ = sum(a.digit != b.digit and a.ink != b.ink for a, b in pairs)
    turned = torch.cat(halves(painted.images)[::-1], dim=3)
    for images in (painted.images, turned):  # wherever they stand
        monkeypatch.setattr(text_trials, "draw_told", lambda *_, images=images: images)
        found = text_trials.judged(trained, named_in(some, kind, 60, 4))
        assert found["asked"]["share"] > 0.9
        assert found["bound"]["share"] == found["paper"]["share"] == 1
        assert 0.9 * differ < found["bound"]["of"] <= differ
    wrong = text_trials.judged(trained, exchanged(some, kind, 60, 4))
    assert wrong["bound"]["share"] == 0
    assert wrong["bound"]["of"] == found["bound"]["of"]
    assert wrong["ink"]["right"] <= 60 - wrong["bound"]["of"]


def test_the_loss_of_unseen_scenes_ignores_the_weighting(made):
    trained = untrained("cross-attention")
    weighted = trained._replace(settings=replace(trained.settings, weighting="min_snr"))
    first, second = (text_trials._unseen_loss(each, world()[0]) for each in (trained, weighted))
    assert first == second > 0


def test_the_seed_alone_makes_the_network():
    torch.manual_seed(1)
    first = text_trials._begin(quick("both"))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "the caller's random state is as it was"
    assert tiny.same(first.state_dict(), text_trials._begin(quick("both")).state_dict())


# ---- variants and records ------------------------------------------------------------------


def test_ways_differ_in_what_their_names_say():
    hears = {
        name: (bool(s.model.classes), bool(s.pooled and not s.model.classes), s.model.context_dim)
        for name, s in WAYS.items()
    }
    assert hears == {
        "class label": (True, False, 0),
        "one vector": (False, True, 0),
        "cross-attention": (False, False, 64),
        "both": (False, True, 64),
    }
    alike = [
        replace(s, pooled=False, model=replace(s.model, classes=0, context_dim=0))
        for s in WAYS.values()
    ]
    assert alike == alike[:1] * 4


def test_weightings_share_a_run_with_the_ways():
    assert WEIGHTINGS["simple"] == WAYS["cross-attention"]
    assert WEIGHTINGS["min_snr"] == replace(WAYS["cross-attention"], weighting="min_snr")
    measures = {ablations.ABLATIONS[path.stem].measure for path in RECORDS}
    assert measures == {telling_run}


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_records_were_made_with_the_shipped_autoencoder(path):
    rows = json.loads(path.read_text())["rows"]
    shipped = recipes.find("rgb_vae").record["sha256"]
    assert {row["vae"] for row in rows} == {shipped}, f"remove {path.name} and make it again"
    assert max(row["multiply_adds"] for row in rows) <= text_trials.BUDGET


def test_lessons_mend_the_places():
    """What the docstring of ``PromptSettings.in_order`` claims, by the record."""
    before, after, _ = json.loads((ablations.RECORDS / "lessons.json").read_text())["rows"]
    assert before["images_seen"] == 16_000 * 128
    for kind in ("two digits, seen", "two digits, held out"):
        found = before["metrics"][kind]["places"]
        assert found["low"] < 0.6  # chance is one half
        assert before["metrics"][kind]["ink"]["share"] > 0.9
        assert after["metrics"][kind]["places"]["low"] > 0.95


def test_what_the_decoder_shows_is_the_better_caption():
    """What the docstring of ``PromptSettings.as_decoded`` claims: the intervals do not meet."""
    *_, before = json.loads((ablations.RECORDS / "lessons.json").read_text())["rows"]
    after = recipes.find("text_to_image").record["metrics"]
    for kind in ("one digit, seen", "one digit, held out"):
        for attribute in ("stroke", "slant"):
            old, new = (metrics[kind][attribute] for metrics in (before["metrics"], after))
            assert new["low"] > old["high"]
