"""Scenes: what is held out stays out, each number has its scene, and paint is arithmetic."""

from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnistlib.captions import parse
from mnistlib.data import Digits
from mnistlib.grammar import COLOURS, SLANTS, STROKES, Glyph
from mnistlib.readers import PALETTE
from mnistlib.scenes import (
    HELD_OUT_INKS,
    HELD_OUT_PAIRS,
    draw_captions,
    draw_scenes,
    measured,
    paint,
    shrunk,
    side_by_side,
)
from mnistlib.types import InputError


@pytest.fixture(scope="module")
def digits():
    """Return 1,000 real digits."""
    return tiny.painting()[1]


@pytest.fixture(scope="module")
def pool():
    """Return them measured."""
    return tiny.painting()[0]


def scenes_of(pool, count, **how):
    """Return many scenes."""
    parts = (draw_scenes(pool, 0, range(i, i + 1000), **how) for i in range(0, count, 1000))
    return [scene for part in parts for scene in part.scenes]


def inks_of(scenes):
    """Return the digit and the ink of each glyph."""
    return Counter((g.digit, g.ink) for s in scenes for g in s.glyphs)


def pairs_of(scenes):
    """Return the digits of each scene of two."""
    return Counter(tuple(g.digit for g in s.glyphs) for s in scenes if len(s.glyphs) == 2)


# ---- what is held out ----------------------------------------------------------------------


def test_held_out_lists_are_small_and_leave_each_value_seen():
    assert len(set(HELD_OUT_INKS)) == len(HELD_OUT_INKS) == 10
    assert len(set(HELD_OUT_PAIRS)) == len(HELD_OUT_PAIRS) == 10
    assert Counter(digit for digit, _ in HELD_OUT_INKS) == Counter(range(10))
    assert set(Counter(ink for _, ink in HELD_OUT_INKS)) == set(COLOURS)
    for side in (0, 1):
        assert Counter(pair[side] for pair in HELD_OUT_PAIRS) == Counter(range(10))
    assert all(a != b for a, b in HELD_OUT_PAIRS)


def test_held_out_lists_are_fixed():
    """A list that changes makes every trained model's report wrong."""
    assert HELD_OUT_INKS[:4] == ((0, "white"), (1, "yellow"), (2, "purple"), (3, "red"))
    assert HELD_OUT_PAIRS[:4] == ((0, 5), (1, 8), (2, 1), (3, 4))


def test_training_scenes_never_show_what_is_held_out(pool):
    scenes = scenes_of(pool, 20_000)
    inks, pairs = inks_of(scenes), pairs_of(scenes)
    assert not set(inks) & set(HELD_OUT_INKS)
    assert not set(pairs) & set(HELD_OUT_PAIRS)
    assert len(inks) == 70
    assert len(pairs) == 90
    assert all(g.ink != s.paper for s in scenes for g in s.glyphs)


def test_held_out_scenes_show_nothing_else(pool):
    single, double = (scenes_of(pool, 2000, two=two, unseen=True) for two in (0.0, 1.0))
    assert set(inks_of(single)) == set(HELD_OUT_INKS)
    assert set(pairs_of(double)) == set(HELD_OUT_PAIRS)
    assert not set(inks_of(double)) & set(HELD_OUT_INKS)
    assert all(g.ink != s.paper for s in single + double for g in s.glyphs)


# ---- drawing -------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), numbers=st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_a_scene_is_a_function_of_its_number(pool, seed, numbers):
    together = draw_scenes(pool, seed, numbers)
    captions = draw_captions(together.scenes, seed, numbers)
    for i, number in enumerate(numbers):
        alone = draw_scenes(pool, seed, [number])
        assert alone.scenes == [together.scenes[i]]
        assert torch.equal(alone.images[0], together.images[i])
        assert draw_captions(alone.scenes, seed, [number]) == [captions[i]]


def test_other_numbers_and_seeds_give_other_scenes(pool):
    images = [draw_scenes(pool, seed, range(20)).images for seed in (0, 1)]
    assert len(torch.cat(images).unique(dim=0)) == 40


def test_values_are_equally_frequent(pool):
    """Each count within 4.5 standard deviations of what the lists of what is seen give."""
    scenes = scenes_of(pool, 10_000, two=0.5)
    single = [s for s in scenes if len(s.glyphs) == 1]
    counts = [
        (Counter(len(s.glyphs) for s in scenes), 1 / 2),
        (Counter(s.glyphs[0].digit for s in single), 1 / 10),
        (Counter(s.paper for s in scenes), 1 / 8),
        (pairs_of(scenes), 1 / 90),
        (inks_of(single), 1 / 70),
    ]
    for count, share in counts:
        n = count.total()
        assert len(count) == round(1 / share)
        assert max(abs(c - n * share) for c in count.values()) < 4.5 * (n * share) ** 0.5


@pytest.mark.parametrize("two", [0.0, 0.25, 1.0])
def test_two_digits_come_with_their_share(pool, two):
    sizes = [len(s.glyphs) for s in draw_scenes(pool, 3, range(2000), two=two).scenes]
    assert abs(sizes.count(2) / 2000 - two) < 0.05
    assert all(s.placed == (len(s.glyphs) == 2) for s in draw_scenes(pool, 3, range(50)).scenes)


def test_scenes_say_what_the_pool_measured(pool, digits):
    """Find each large digit again by its pixels, and compare its label and its calls."""
    images, scenes = draw_scenes(pool, 5, range(60), two=0.0)
    raw = torch.nn.functional.pad(pool.large, [2] * 4).flatten(1).float() / 255
    labels = digits.labels.sort(stable=True).values
    for image, scene in zip(images, scenes, strict=True):
        ink, paper = (PALETTE[COLOURS.index(c)] for c in (scene.glyphs[0].ink, scene.paper))
        channel = int((ink - paper).abs().argmax())
        coverage = (image[channel] - paper[channel]) / (ink - paper)[channel]
        difference = (raw - coverage.flatten()).abs().mean(1)
        i = int(difference.argmin())
        assert float(difference[i]) < 1e-5
        calls = [
            None if k < 0 else names[k]
            for k, names in ((pool.strokes[i, 0], STROKES), (pool.slants[i, 0], SLANTS))
        ]
        assert scene.glyphs == (Glyph(int(labels[i]), scene.glyphs[0].ink, *calls),)


def test_captions_name_what_is_in_the_scene(pool):
    scenes = draw_scenes(pool, 6, range(200)).scenes
    for scene, caption in zip(scenes, draw_captions(scenes, 6, range(200)), strict=True):
        assert parse(caption.text) == caption.named
        assert caption.named.paper in (None, scene.paper)
        assert {g.digit for g in caption.named.glyphs} <= {None, *(g.digit for g in scene.glyphs)}
    english = draw_captions(scenes, 6, range(200), language="en", attributes=["digit"])
    assert all(c.text.isascii() for c in english)
    assert all(c.named.paper is None for c in english)


def test_bad_requests_are_refused(pool, digits):
    with pytest.raises(InputError, match="need scene numbers"):
        draw_scenes(pool, 0, [])
    with pytest.raises(InputError, match="a share from 0 to 1"):
        draw_scenes(pool, 0, [1], two=1.5)
    few = digits.labels != 4
    with pytest.raises(InputError, match="no digit is a 4"):
        measured(Digits(digits.images[few], digits.labels[few], "some"))


# ---- painting ------------------------------------------------------------------------------


def test_paint_is_paper_plus_coverage_times_the_way_to_the_ink():
    rng = np.random.default_rng(0)
    coverage = rng.random((4, 2, 5, 6))
    coverage[:, 0, :, 3:] = coverage[:, 1, :, :3] = 0
    inks, paper = rng.random((4, 2, 3)), rng.random((4, 3))
    wanted = np.empty((4, 3, 5, 6))
    for b, k, c in np.ndindex(4, 2, 3):
        half = np.s_[:, :3] if k == 0 else np.s_[:, 3:]
        a = coverage[b, k][half]
        wanted[b, c][half] = (1 - a) * paper[b, c] + a * inks[b, k, c]
    painted = paint(*(torch.from_numpy(x) for x in (coverage, inks, paper)))
    np.testing.assert_allclose(painted, wanted, atol=1e-12)


def test_images_stay_between_the_colours(pool):
    images, scenes = draw_scenes(pool, 7, range(300))
    assert images.shape == (300, 3, 32, 32)
    assert images.dtype == torch.float32
    for image, scene in zip(images, scenes, strict=True):
        colours = PALETTE[[COLOURS.index(c) for c in (scene.paper, *(g.ink for g in scene.glyphs))]]
        low, high = colours.amin(0) - 1e-6, colours.amax(0) + 1e-6
        assert ((image >= low.view(3, 1, 1)) & (image <= high.view(3, 1, 1))).all()
        assert torch.allclose(image[:, 0, 0], colours[0])
        for ink in colours[1:]:  # each ink is there in full
            assert float((image - ink.view(3, 1, 1)).abs().amax(0).min()) < 0.05


def test_shrunk_digits_match_pillow(digits):
    """The frame around the ink, resized with antialiasing by another library."""
    small = shrunk(digits.images[:100])
    assert small.shape == (100, 15, 15)
    assert (small.amax((1, 2)) == 255).all()
    for raw, mine in zip(digits.images[:100].numpy(), small.numpy(), strict=True):
        inked = np.argwhere(raw > 25)
        top, left = (inked.min(0) + inked.max(0) + 1) // 2 - 10
        frame = np.pad(raw, 20)[top + 20 : top + 40, left + 20 : left + 40].astype(np.float32)
        again = np.asarray(Image.fromarray(frame).resize((15, 15), Image.Resampling.BICUBIC))
        wanted = again.clip(0) / again.max() * 255
        assert np.abs(wanted - mine).max() < 1.5


def test_two_digits_stand_side_by_side():
    left, right = torch.full((1, 15, 15), 255, dtype=torch.uint8), torch.zeros(1, 15, 15)
    coverage = side_by_side(left, right.to(torch.uint8) + 51)
    rows, columns = torch.nonzero(coverage[0, 0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 22, 1, 15)
    rows, columns = torch.nonzero(coverage[0, 1], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 22, 16, 30)
    assert coverage[0].amax((1, 2)).tolist() == pytest.approx([1.0, 0.2])
