"""The training of an autoencoder of scenes: what it is shown, and how it is judged."""

import pytest
import tiny
import torch

from mnistlib import recipes
from mnistlib.data import Digits
from mnistlib.obedience import KINDS, agreements, obedience
from mnistlib.readers import read
from mnistlib.scenes import HELD_OUT_INKS, HELD_OUT_PAIRS, draw_scenes, measured
from mnistlib.trained import Trained
from mnistlib.types import InputError
from mnistlib.vae_jobs import judge_scene_vae, scene_vae_job


def settings_of(**changes):
    """Return the settings of a training of a moment."""
    return recipes.settings_of("rgb_vae", "smoke", {k: str(v) for k, v in changes.items()})


# ---- what is shown -------------------------------------------------------------------------


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_batches_never_show_what_is_held_out(two):
    """Read off the pictures; nearly all of another job's would be held out."""
    settings, eye = settings_of(two=two, batch_size=100), recipes.find("digit_features").model
    _, batch_at = scene_vae_job(settings, tiny.painting()[1])
    images = torch.cat([batch_at(0, step).images for step in range(3)])
    held_out = 0
    for scene in read(images, eye, 1 + int(two)):
        one = (scene.glyphs[0].digit, scene.glyphs[0].ink) in HELD_OUT_INKS
        held_out += tuple(g.digit for g in scene.glyphs) in HELD_OUT_PAIRS if two else one
    assert held_out <= 3  # that is 1 %, what the reader gets wrong
    assert len({s.glyphs[0].digit for s in read(images, eye)}) == 10


def test_no_scene_comes_twice():
    _, batch_at = scene_vae_job(settings_of(), tiny.painting()[1])
    batches = [batch_at(0, step) for step in range(6)]
    assert len(torch.cat([batch.images for batch in batches]).unique(dim=0)) == 6 * 16
    eps = torch.cat([batch.eps for batch in batches])
    assert eps.shape == (6 * 16, 4, 8, 8)
    assert len(eps.unique(dim=0)) == 6 * 16
    assert float(eps.std()) == pytest.approx(1, abs=0.02)


# ---- the judge -----------------------------------------------------------------------------


def judged(vae):
    """Return what the judge finds, and the digits that it judges with."""
    digits = tiny.painting()[1]
    known, test = (Digits(*(x[i::2] for x in digits[:2]), digits.source) for i in range(2))
    trained = Trained(vae, settings_of(judged=60), {})
    return judge_scene_vae(trained, known, test, recipes.find), known, test


def test_an_autoencoder_that_loses_nothing_is_judged_as_the_scenes_are():
    vae, eye = tiny.Clear(), recipes.find("digit_features").model
    metrics, known, test = judged(vae)
    for kind, (two, unseen) in KINDS.items():
        assert metrics[kind]["squared_error"] < 1e-10
        assert metrics[kind]["read"] == metrics[kind]["painted"]
        assert metrics[kind]["painted"]["asked"]["share"] >= 0.95
        images, scenes = draw_scenes(measured(test), 2, range(60), two=two, unseen=unseen)
        by_hand = obedience(agreements(images, scenes, eye), scenes)
        assert metrics[kind]["painted"] == by_hand, "the scenes are of test digits"
    seen = draw_scenes(measured(known), 1, range(60)).images
    centred = seen - seen.mean((0, 2, 3), keepdim=True)
    assert metrics["scale"] == pytest.approx(float(centred.square().mean() ** -0.5), rel=1e-3)
    torch.testing.assert_close(vae.shift[:, 0, 0], seen.mean((0, 2, 3)))


def test_an_autoencoder_that_forgets_is_found_out():
    """Its pictures are grey; the scenes themselves are read as well as ever."""
    vae = tiny.Clear()
    vae.decode = torch.zeros_like
    metrics, _, _ = judged(vae)
    for kind in KINDS:
        assert metrics[kind]["read"]["asked"]["share"] < 0.1
        assert metrics[kind]["painted"]["asked"]["share"] >= 0.95
        assert metrics[kind]["squared_error"] > 0.1


# ---- the settings --------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"two": 1.5}, {"two": -0.1}, {"judged": 0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(InputError, match="two must lie between 0 and 1, and judged be 1 or more"):
        settings_of(**changes)
