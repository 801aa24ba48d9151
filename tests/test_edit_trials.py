"""The trials of editing: measured on an artist who knows what every prompt means."""

import json

import pytest
import tiny
import torch

from mnistlib import ablations, edit_trials, recipes
from mnistlib.captions import parse
from mnistlib.data import generator_for
from mnistlib.edit_trials import (
    EDITS,
    Edit,
    World,
    between,
    changed,
    edit_run,
    otherwise,
    overlap,
    papers,
    repainted,
    right_half,
)
from mnistlib.grammar import COLOURS, Glyph, Scene
from mnistlib.readers import PALETTE, halves
from mnistlib.samplers import draw_noise
from mnistlib.scenes import HELD_OUT_INKS, Painted, draw_scenes, paint, side_by_side
from mnistlib.schedules import cosine

SCENE = Scene((Glyph(4, "red", "thin", "left"),), "white")


class Artist:
    """Stand for a trained network of pictures: the exact denoiser of twenty scenes a prompt."""

    vae, schedule, shape = tiny.Clear(), cosine(), (3, 32, 32)

    def __init__(self):
        self.record = {"metrics": {"scale": 2.0}, "sha256": "of the artist"}
        self.heard, self.calls = [], 0

    def prompted(self, prompts, scale=1.0):
        """Return the mean noise, given that the picture is one of those that a prompt means."""
        self.heard.append((prompts, scale))
        known = torch.stack([self.meant(parse(prompt) if prompt else None) for prompt in prompts])

        def denoise(x_t, t):
            self.calls += 1
            a, s = self.schedule.rates(t, x_t)
            far = (x_t[:, None] - a[:, None] * known).square().flatten(2).sum(2)
            shares = (-far / (2 * s.view(-1, 1) ** 2)).softmax(1)
            x_0 = (shares[..., None, None, None] * known).sum(1)
            return (x_t - a * x_0) / s

        return denoise

    def meant(self, named, count=20):
        """Return scenes (count, 3, 32, 32) that show what is named, and anything besides."""
        pool, _ = tiny.painting()
        if named is None:
            return draw_scenes(pool, 77, range(count), two=0.0).images
        g = generator_for(78)
        inks = [COLOURS.index(glyph.ink) for glyph in named.glyphs]
        free = [k for k in range(8) if k not in inks]
        paper = [COLOURS.index(named.paper)] * count if named.paper else (free * count)[:count]
        which = [
            pool.starts[k] + torch.randint(int(pool.counts[k]), (count,), generator=g)
            for k in (glyph.digit for glyph in named.glyphs)
        ]
        if len(which) == 2:
            coverage = side_by_side(pool.small[which[0]], pool.small[which[1]])
        else:
            coverage = torch.nn.functional.pad(pool.large[which[0]][:, None] / 255, [2] * 4)
        return paint(coverage, PALETTE[inks].expand(count, -1, -1), PALETTE[paper])

    def pictures(self, x_0):
        """Return pictures, clipped."""
        return x_0.clamp(-1, 1)


@pytest.fixture
def world():
    """Return a world whose network is the artist."""
    return World(Artist(), recipes.find("digit_features").model, tiny.painting()[0], 2.0, 0)


# ---- image to image ------------------------------------------------------------------------


def test_a_picture_that_nobody_touched_keeps_all_and_obeys_nothing(world):
    found = changed(world, 0.0, 8)
    for what in edit_trials.CHANGES:
        assert found[what] == {"obeys": 0, "keeps": 1, "overlap": pytest.approx(1)}
    assert found["nothing"] == dict.fromkeys(("digit", "ink", "stroke", "slant", "paper"), 1)


def test_at_full_strength_every_wish_comes_true_and_nothing_is_kept(world):
    found = changed(world, 1.0, 12)
    for what in edit_trials.CHANGES:
        assert found[what]["obeys"] >= 11 / 12  # the reader errs now and then
        assert found[what]["keeps"] < 0.8
        assert found[what]["overlap"] < 0.65
    assert found["nothing"]["digit"] < 0.5
    assert found["nothing"]["paper"] < 0.5


def test_the_likeness_falls_with_the_strength(world):
    """Told another paper: the strokes stay longest where there is the least noise."""
    likeness = [changed(world, s, 6)["paper"]["overlap"] for s in (0.0, 0.9, 1.0)]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[1] > likeness[2] + 0.05


def test_prompts_name_digit_ink_and_paper_and_are_guided(world):
    changed(world, 1.0, 5)
    *asked, (free, scale) = world.trained.heard
    assert (free, scale) == ([""], 1.0)
    painted = draw_scenes(world.pool, world.seed, range(5), two=0.0).scenes
    for what, (prompts, scale) in zip(edit_trials.CHANGES, asked, strict=True):
        assert scale == 2.0
        named = [parse(prompt) for prompt in prompts]
        assert named == [otherwise(scene, what, 0, i) for i, scene in enumerate(painted)]


@pytest.mark.parametrize("what", edit_trials.CHANGES)
def test_one_thing_is_otherwise(what):
    def parts(scene):
        return {"digit": scene.glyphs[0].digit, "ink": scene.glyphs[0].ink, "paper": scene.paper}

    news = [otherwise(SCENE, what, 0, i) for i in range(200)]
    for new in news:
        differs = {name for name in edit_trials.CHANGES if parts(new)[name] != parts(SCENE)[name]}
        assert differs == {what}
        assert new.glyphs[0].ink != new.paper
        assert (new.glyphs[0].digit, new.glyphs[0].ink) not in HELD_OUT_INKS
        assert (new.glyphs[0].stroke, new.glyphs[0].slant) == (None, None)
    # a red 3 and a green 4 were held out; white is the paper, and red the ink
    assert len(set(news)) == {"digit": 8, "ink": 5, "paper": 6}[what]
    assert otherwise(SCENE, what, 0, 7) == news[7]


def test_overlap_sees_strokes_and_not_colours():
    pool, _ = tiny.painting()
    coverage = torch.nn.functional.pad(pool.large[[5, 300, 600]][:, None] / 255, [2] * 4)

    def coloured(shape, ink, paper):
        return paint(shape, PALETTE[[ink]].expand(3, 1, 3), PALETTE[[paper]].expand(3, 3))

    one = coloured(coverage, 2, 1)
    torch.testing.assert_close(overlap(one, coloured(coverage, 6, 0)), torch.ones(3))
    assert (overlap(one, coloured(coverage.flip(3).roll(9, 2), 2, 1)) < 0.5).all()
    a, b = (c.flatten(1).double() - c.flatten(1).double().mean(1, keepdim=True)
            for c in (coverage, coverage.roll(1, 0)))  # fmt: skip
    expected = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    found = overlap(one, coloured(coverage.roll(1, 0), 7, 4))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_papers_are_read_beside_the_digits():
    pool, _ = tiny.painting()
    painted = draw_scenes(pool, 5, range(20), two=0.5)
    expected = PALETTE[[COLOURS.index(scene.paper) for scene in painted.scenes]]
    for part in (painted.images, *halves(painted.images)):
        torch.testing.assert_close(papers(part), expected)


# ---- repainting ----------------------------------------------------------------------------


def test_pasted_halves_have_papers_of_their_own_and_repainted_ones_that_of_the_picture(world):
    pasted, often = repainted(world, 0, 12), repainted(world, 5, 12)
    for found in (pasted, often):
        assert found["keeps"] >= 11 / 12
        assert found["obeys"] >= 10 / 12
    assert pasted["fits"] < 0.5
    assert pasted["gap"] > 0.5
    assert often["fits"] > 0.9
    assert often["gap"] < 0.1


def test_the_prompt_names_both_digits_and_inks_and_not_the_paper(world):
    repainted(world, 1, 30)
    ((prompts, scale),) = world.trained.heard
    assert scale == 2.0
    before = draw_scenes(world.pool, world.seed, range(30), two=1.0).scenes
    for prompt, scene in zip(prompts, before, strict=True):
        named = parse(prompt)
        assert named.placed
        assert named.paper is None
        left, right = named.glyphs
        assert (left.digit, left.ink) == (scene.glyphs[0].digit, scene.glyphs[0].ink)
        assert right.ink != scene.paper
    assert sum(parse(p).glyphs[1] != s.glyphs[1] for p, s in zip(prompts, before)) > 20  # noqa: B905


@pytest.mark.parametrize(("repeats", "calls"), [(0, 12), (1, 12), (3, 11 * 3 + 1)])
def test_each_step_but_the_last_is_repeated(world, repeats, calls):
    repainted(world, repeats, 2)
    assert world.trained.calls == calls


def test_an_ink_that_would_vanish_is_replaced(world):
    """Scenes on eight papers, each beside the right digits of others."""
    glyphs = Glyph(1, "red"), Glyph(2, "red")
    for paper in COLOURS[:2] + COLOURS[3:]:
        scenes = [Scene(glyphs, paper, True)] * 60
        wanted = edit_trials._with_new_right(Painted(torch.empty(60), scenes), world)
        inks = {scene.glyphs[1].ink for scene in wanted}
        assert paper not in inks
        assert len(inks) > 4


def test_the_right_half_is_painted():
    mask = right_half((4, 8, 8))
    assert mask.shape == (1, 1, 8, 8)
    assert mask[0, 0, 3].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


# ---- between two noises --------------------------------------------------------------------


def test_the_line_shrinks_the_noise(world):
    found = {way: between(world, way, 10) for way in ("end", "lerp", "slerp")}
    norms = {way: row["norm"] for way, row in found.items()}
    expected = {"end": 1, "lerp": 0.5**0.5, "slerp": 1}
    assert norms == pytest.approx(expected, abs=0.02)
    assert all(row["obeys"] >= 0.9 for row in found.values()), "the artist draws only what it knows"
    assert all(0.2 < row["spread"] < 1.5 for row in found.values())


def test_ends_are_noise_and_prompts_name_what_is_painted(world):
    first, last = world.noise(3), world.noise(3, 1)
    assert not torch.allclose(first, last)
    assert torch.equal(first, draw_noise((3, 3, 32, 32), generator=generator_for(0, 0, 2)))
    assert between(world, "end", 3)["norm"] == float(first.square().mean().sqrt())
    ((prompts, _),) = world.trained.heard
    painted = draw_scenes(world.pool, world.seed, range(3), two=0.0).scenes
    for prompt, scene in zip(prompts, painted, strict=True):
        (glyph,) = scene.glyphs
        assert parse(prompt) == Scene((Glyph(glyph.digit, glyph.ink),), scene.paper)


# ---- all of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["strength 0.9", "repeats 1", "between slerp"])
def test_a_trial_measures_what_its_name_says(name, monkeypatch):
    artist, find = Artist(), recipes.find
    found = {"text_to_image": artist, "digit_features": find("digit_features")}
    monkeypatch.setattr(recipes, "find", found.__getitem__)
    monkeypatch.setattr(edit_trials, "mnist", lambda source: tiny.painting()[1])
    edit = EDITS[name]._replace(scenes=3)
    row = edit_run(edit, 1)
    assert row == json.loads(json.dumps(row))
    assert (row["kind"], row["value"], row["scenes"]) == tuple(edit)
    assert row["weights"] == "of the artist"
    pool, eye = tiny.painting()[0], found["digit_features"].model
    alone = {"strength": changed, "repeats": repainted, "between": between}[edit.kind]
    world = World(artist, eye, pool, 2.0, 1)
    assert row.items() >= alone(world, edit.value, 3).items()


def test_the_ablation_holds_each_trial_once():
    assert ablations.ABLATIONS["edits"].variants is EDITS
    assert ablations.ABLATIONS["edits"].measure is edit_run
    assert EDITS["strength 0.6"] == Edit("strength", 0.6, 100)
    assert EDITS["repeats 0"] == Edit("repeats", 0, 100)
    assert len(EDITS) == len({*EDITS.values()}) == 16
