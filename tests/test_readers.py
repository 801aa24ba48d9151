"""Readers: measures of shapes whose answer is known, and real digits, painted and read again."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from mnistlib import latent, recipes
from mnistlib.captions import ATTRIBUTES
from mnistlib.data import mnist, to_images
from mnistlib.grammar import COLOURS, STROKES, Glyph, Scene
from mnistlib.metrics import prompt_accuracy
from mnistlib.readers import (
    PALETTE,
    agreement,
    enlarged,
    halves,
    read,
    remeasured,
    shear,
    slant_class,
    stroke_class,
    stroke_width,
)
from mnistlib.scenes import draw_scenes, measured, paint
from mnistlib.types import InputError

FINE = 8  # samples a side in each pixel of a drawn shape


def drawn(inside, size=32):
    """Return the coverage (1, 1, size, size) of a shape given by a function (x, y) -> bool."""
    at = (torch.arange(size * FINE) + 0.5) / FINE - size / 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    return F.avg_pool2d(inside(x, -y).float()[None, None], FINE)


def ring(width, radius=9.0):
    """Return a ring whose line has a width: its area is w L, its outline 2 L."""
    return drawn(lambda x, y: ((x.square() + y.square()).sqrt() - radius).abs() < width / 2)


def bar(width, lean):
    """Return a bar of 20 pixels, pushed to the right by ``lean`` for each pixel up."""
    return drawn(lambda x, y: ((x - lean * y).abs() < width / 2) & (y.abs() < 10))


def blurred(coverage):
    """Return a coverage seen through a small lens."""
    kernel = torch.tensor([0.1, 0.8, 0.1])
    return F.conv2d(coverage, (kernel[:, None] * kernel)[None, None], padding=1)


def all_sevens(grey):
    """Stand for a classifier."""
    return F.one_hot(torch.full((len(grey),), 7), 10)


@pytest.fixture(scope="module")
def classifier():
    """Return the shipped classifier."""
    return recipes.find("digit_features").model


@pytest.fixture(scope="module")
def pool():
    """Return the small set's digits, measured."""
    return measured(mnist(source="small"))


# ---- measures ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2.0, 2.5, 3.0, 4.0])
def test_stroke_width_of_a_ring_is_its_width(width):
    assert float(stroke_width(ring(width))) == pytest.approx(width, abs=0.15)


@pytest.mark.parametrize("width", [2.0, 3.0])
def test_stroke_width_survives_a_little_smoothing(width):
    before, after = stroke_width(ring(width)), stroke_width(blurred(ring(width)))
    assert float(after) == pytest.approx(float(before), abs=0.15)


def test_stroke_width_does_not_see_faint_noise():
    noise = 0.2 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = stroke_width(torch.where(ring(2.5) == 0, noise, ring(2.5)))
    assert float(seen) == pytest.approx(float(stroke_width(ring(2.5))), abs=1e-3)


@pytest.mark.parametrize("lean", [-0.4, -0.1, 0.0, 0.3])
def test_shear_is_how_far_a_bar_was_pushed(lean):
    assert float(shear(bar(3.0, lean))) == pytest.approx(lean, abs=0.01)


def test_shear_is_the_slope_that_fits_best():
    """Compare with numpy's least squares of column on row, weighted by the ink."""
    coverage = (to_images(mnist(source="small").images[:20]) > 0).float()  # all or nothing
    for mine, c in zip(shear(coverage).tolist(), coverage[:, 0].numpy(), strict=True):
        rows, columns = np.nonzero(c)
        assert mine == pytest.approx(-np.polyfit(rows, columns, 1)[0], abs=1e-4)


def test_classes_meet_at_the_cuts():
    widths = [1.8, 2.1, 2.45, 2.85, 3.4]
    shapes = torch.cat([ring(w) for w in widths])
    assert stroke_class(shapes).tolist() == [0, -1, 1, -1, 2]
    assert stroke_class(shapes, margin=0).tolist() == [0, 0, 1, 2, 2]
    shapes = torch.cat([bar(3.0, s) for s in (-0.2, -0.07, 0.1, 0.27, 0.4)])
    assert slant_class(shapes, torch.tensor([0] * 5)).tolist() == [0, -1, 1, -1, 2]
    assert slant_class(shapes, torch.tensor([0] * 5), margin=0).tolist() == [0, 0, 1, 2, 2]


def test_slant_is_counted_from_the_shape_of_the_class():
    """A 9 that is written like the others leans to the left of such a 1, by its moments."""
    digits = mnist(source="small")
    called = {}
    for digit in (1, 9):
        usual = to_images(digits.images[digits.labels == digit]) / 2 + 0.5
        called[digit] = float(shear(usual).median())
        leaning = torch.cat([bar(3.0, lean) for lean in (-0.1, 0.1)])
        called[digit, "bars"] = slant_class(leaning, torch.tensor([digit] * 2), margin=0).tolist()
    assert called[9] < called[1] - 0.15
    assert called[1, "bars"] == [0, 1]
    assert called[9, "bars"] == [1, 2]


@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0])
def test_small_digits_are_enlarged_and_centred(shift):
    small = drawn(lambda x, y: ((x - shift).abs() < 3) & (y.abs() < 6))[..., 8:24]
    large = enlarged(small)
    wanted = drawn(lambda x, y: (x.abs() < 4) & (y.abs() < 8))
    assert large.shape == (1, 1, 32, 32)
    assert float((large - wanted).abs().mean()) < 0.02
    assert float(large.sum() / wanted.sum()) == pytest.approx(1, abs=0.03)


# ---- reading -------------------------------------------------------------------------------


def test_colours_lie_far_apart():
    distances = torch.cdist(PALETTE, PALETTE) + 9 * torch.eye(8)
    assert float(distances.min()) > 0.8  # of a cube with sides of 2


PAIRS = [(i, p) for i, p in itertools.product(range(8), repeat=2) if i != p]


@pytest.mark.parametrize("spoil", [lambda x: x, lambda x: x * 0.95, lambda x: x + 0.05])
def test_colours_are_read_in_each_combination(spoil):
    inks, papers = (torch.tensor(each) for each in zip(*PAIRS, strict=True))
    shapes = blurred(ring(2.0)).expand(len(PAIRS), -1, -1, -1)
    images = spoil(paint(shapes, PALETTE[inks][:, None], PALETTE[papers]))
    found = [(s.glyphs[0].ink, s.paper) for s in read(images, all_sevens)]
    assert found == [(COLOURS[i], COLOURS[p]) for i, p in PAIRS]


def test_a_picture_of_nothing_is_read_as_something():
    """A failed sample must not stop a measurement."""
    blank = PALETTE[4].view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for digits in (1, 2):
        [scene] = read(blank, all_sevens, digits)
        assert scene.paper == "yellow"
        assert len(scene.glyphs) == digits


def test_each_half_is_read_by_itself():
    left = drawn(lambda x, y: ((x + 8).abs() < 2) & (y.abs() < 7))
    right = drawn(lambda x, y: ((x - 8).abs() < 1) & (y.abs() < 7))
    coverage = torch.cat([left, right], dim=1)
    [scene] = read(paint(coverage, PALETTE[[2, 6]][None], PALETTE[[1]]), all_sevens, digits=2)
    assert [g.ink for g in scene.glyphs] == ["red", "blue"]
    assert [g.stroke for g in scene.glyphs] == ["thick", STROKES[1]]
    assert (scene.paper, scene.placed) == ("white", True)


@pytest.mark.parametrize(
    ("shape", "digits"), [((1, 1, 32, 32), 1), ((1, 3, 28, 28), 1), ((1, 3, 32, 32), 3)]
)
def test_what_cannot_be_read_is_refused(shape, digits):
    with pytest.raises(InputError, match="can read 1 or 2 digits"):
        read(torch.zeros(shape), all_sevens, digits)


def measure_of(pool, classifier, two, count, unseen=False, seed=0):
    """Return the accuracy of reading painted scenes."""
    images, scenes = draw_scenes(pool, seed, range(count), two=two, unseen=unseen)
    found = read(images, classifier, digits=1 + two)
    return prompt_accuracy([agreement(a, b) for a, b in zip(scenes, found, strict=True)])


def check_agreement(accuracy, two):
    """Assert that 99 % of digits are read as they were painted; of two, both must be right."""
    names = [name for name in ATTRIBUTES if two or name != "places"]
    assert [*accuracy] == [*names, "everything"]
    least = 0.99 ** (1 + two)
    assert {k: v for k, v in accuracy.items() if v.right < least * v.of and k in names} == {}
    assert accuracy["everything"].right > 0.98 * accuracy["everything"].of


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_readers_agree_with_the_painter(pool, classifier, two, unseen):
    check_agreement(measure_of(pool, classifier, two, 600, unseen), two)


@pytest.mark.parametrize("two", [False, True])
def test_readers_agree_with_the_painter_on_test_digits(full_mnist, classifier, two):
    check_agreement(measure_of(measured(mnist(train=False)), classifier, two, 3000), two)


def test_measures_survive_an_autoencoder():
    """What is beyond a margin keeps its name when the shipped autoencoder has smoothed it."""
    digits = mnist(source="small")
    images, labels = to_images(digits.images[:1000]), digits.labels[:1000]
    vae = recipes.find("vae").model
    again = latent.decode(vae, latent.encode(vae, images))
    before, after = images / 2 + 0.5, again / 2 + 0.5
    assert float((before - after).abs().mean()) > 0.005  # it does change them
    for called, seen in [
        (stroke_class(before), stroke_class(after, margin=0)),
        (slant_class(before, labels), slant_class(after, labels, margin=0)),
    ]:
        named = called >= 0
        assert named.double().mean() > 0.5
        assert (called == seen)[named].double().mean() >= 0.99


# ---- agreement -----------------------------------------------------------------------------

RED_THREE = Glyph(3, "red", "thin", "left")
BLUE_SEVEN = Glyph(7, "blue", "thick", "upright")
PICTURE = Scene((RED_THREE, BLUE_SEVEN), "white", True)
JUDGED = [  # named, read, what is right, what is wrong
    (Scene(), Scene((RED_THREE,), "white"), "", ""),
    (Scene((Glyph(3),)), Scene((RED_THREE,), "white"), "digit", ""),
    (Scene((Glyph(3, "blue"),), "white"), Scene((RED_THREE,), "white"), "digit paper", "ink"),
    (Scene((Glyph(slant="left"),)), Scene((RED_THREE,), "white"), "slant", ""),
    (Scene((RED_THREE, BLUE_SEVEN)), PICTURE, "digit ink stroke slant", ""),
    (Scene((BLUE_SEVEN, RED_THREE)), PICTURE, "digit ink stroke slant", ""),
    (Scene((Glyph(3), Glyph(7)), None, True), PICTURE, "digit places", ""),
    (Scene((Glyph(7), Glyph(3)), None, True), PICTURE, "digit", "places"),
    (Scene((Glyph(3), Glyph(8)), None, True), PICTURE, "places", "digit"),
    # Colours and strokes changed places, the digits did not.
    (
        Scene((Glyph(3, "blue", "thick"), Glyph(7, "red", "thin")), None, True),
        PICTURE,
        "digit places",
        "ink stroke",
    ),
    (Scene((Glyph(3, "blue"), Glyph(7, "red"))), PICTURE, "digit", "ink"),
    # No digit is right; by the colours they changed places.
    (Scene((Glyph(1, "blue"), Glyph(1, "red")), None, True), PICTURE, "ink", "digit places"),
    (Scene((Glyph(ink="blue"), Glyph())), PICTURE, "ink", ""),
    (Scene((Glyph(), Glyph()), "black", True), PICTURE, "places", "paper"),
]


@pytest.mark.parametrize(("named", "found", "right", "wrong"), JUDGED)
def test_agreement(named, found, right, wrong):
    judged = agreement(named, found)
    assert [*judged] == [*ATTRIBUTES]
    assert {k for k, v in judged.items() if v is True} == set(right.split())
    assert {k for k, v in judged.items() if v is False} == set(wrong.split())


def test_another_number_of_digits_is_refused():
    with pytest.raises(InputError, match="1 digits are named and 2 were read"):
        agreement(Scene(), PICTURE)


def test_halves():
    x = torch.arange(32.0).expand(2, 3, 32, 32)
    left, right = halves(x)
    assert torch.equal(left, x[..., :16])
    assert torch.equal(right, x[..., 16:])


# ---- what a picture of a known scene shows -------------------------------------------------


@pytest.mark.parametrize("two", [0.0, 0.5, 1.0])
def test_a_painted_scene_is_measured_as_before(pool, two):
    painted = draw_scenes(pool, 5, range(200), two=two)
    assert remeasured(painted.images, painted.scenes) == painted.scenes


def test_a_picture_is_measured_and_not_its_painting():
    """Bars of known width and lean, in scenes that said something else of them."""
    bars = {
        (1.5, 0.1): ("thin", "upright"),
        (2.7, 0.1): ("medium", "upright"),
        (2.35, 0.1): (None, "upright"),
        (4.5, 0.5): ("thick", "right"),
        (4.5, 0.25): ("thick", None),
    }
    coverage = torch.cat([bar(*each) for each in bars])
    ink, paper = (PALETTE[[i]].expand(5, 3) for i in (2, 6))
    glyph = Glyph(0, COLOURS[2], "thin", "left")
    scenes = [Scene((glyph,), COLOURS[6])] * 5
    found = remeasured(paint(coverage, ink[:, None], paper), scenes)
    wanted = [replace(glyph, stroke=stroke, slant=slant) for stroke, slant in bars.values()]
    assert found == [replace(scenes[0], glyphs=(each,)) for each in wanted]


def test_each_of_two_is_measured_in_its_half():
    """What both halves show changes places with them, and what was said before does not matter."""
    painted = draw_scenes(tiny.painting()[0], 6, range(100), two=1.0)
    swapped = [replace(s, glyphs=s.glyphs[::-1]) for s in painted.scenes]
    images = torch.cat(halves(painted.images)[::-1], dim=3)
    blank = [replace(s, glyphs=tuple(replace(g, stroke=None) for g in s.glyphs)) for s in swapped]
    assert remeasured(images, blank) == swapped
