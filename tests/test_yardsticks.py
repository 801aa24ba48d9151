"""The yardsticks: corruptions do what they say, and known sets measure what they must."""

import json

import numpy as np
import pytest
import tiny
import torch
from scipy.ndimage import convolve

from mnistlib import ablations, recipes, yardsticks
from mnistlib.data import generator_for, mnist, to_images
from mnistlib.metrics import PrecisionRecall

SHIPPED_WITH = [("sample_size", "ddpm"), ("copies", "ddpm")]


def damaged(name, n=12):
    """Return some images, their labels, and the images after a corruption."""
    x = torch.rand(n, 1, 32, 32, generator=generator_for(1)) * 2 - 1
    y = torch.arange(n) % 10
    return x, y, yardsticks.CORRUPTIONS[name](x, y, generator_for(2))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Use 100 made training digits and 20 test digits, and 30 samples of two steps."""
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path)))
    draw = recipes.sample_in_batches
    monkeypatch.setattr(
        recipes, "sample_in_batches", lambda trained, *_, seed, eta: draw(trained, 30, 2, seed=seed)
    )
    caches = (yardsticks._images, yardsticks._pool, yardsticks._reference)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("name", yardsticks.CORRUPTIONS)
def test_a_corruption_keeps_number_and_range(name):
    x, _, out = damaged(name)
    assert out.shape == x.shape
    assert out.min() >= -1
    assert out.max() <= 1
    assert torch.equal(out, x) == (name == "none" or name.startswith("250"))


def test_blur_matches_scipy():
    x, _, out = damaged("blur", n=2)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = convolve(x[1, 0].numpy(), kernel, mode="constant", cval=-1.0)
    np.testing.assert_allclose(out[1, 0], expected, atol=1e-6)


def test_digits_are_moved_spliced_and_repeated():
    x, _, out = damaged("2 pixels to the right")
    assert torch.equal(out[..., 2:], x[..., :-2])
    _, _, out = damaged("halves of two digits")
    assert torch.equal(out[3, 0, :16], x[3, 0, :16])
    assert torch.equal(out[3, 0, 16:], x[2, 0, 16:])
    x, _, out = damaged("250 digits, repeated", n=600)
    assert torch.equal(out, torch.cat([x[:250], x[:250], x[:100]]))


def test_no_ones_are_left():
    x, y, out = damaged("no ones", n=40)
    kept = x[y != 1]
    assert all((kept == image).flatten(1).all(1).any() for image in out)
    assert torch.equal(out[: len(kept)], kept)


@pytest.mark.parametrize(("name", "d"), [*zip(yardsticks.EYES, (128, 32, 128, 1024), strict=True)])
def test_eyes_see_each_image_alone(name, d):
    x, _, _ = damaged("none", n=4)
    with torch.no_grad():
        together, alone = yardsticks.EYES[name](x), yardsticks.EYES[name](x[2:3])
    assert together.shape == (4, d)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eye", ["untrained network", "pixels"])
def test_features_run_of_all_digits_finds_no_distance(made, eye):
    row = yardsticks.features_run(eye, seed=0, n=100)
    assert row["digits"] == 100
    assert set(row["frechet"]) == set(yardsticks.CORRUPTIONS)
    clean = row["frechet"].pop("none")
    assert abs(clean) < 1e-3 * min(row["frechet"]["blur"], row["frechet"]["noise of 0.1"])


def test_size_run_measures_subsets(made, monkeypatch):
    monkeypatch.setattr(yardsticks, "SIZES", (10, 60, 100, 1000))
    row = yardsticks.size_run("training digits", seed=0)
    assert row["sizes"] == [10, 60, 100]
    assert len(row["frechet"]) == 3
    other = yardsticks.size_run("training digits", seed=1)
    assert row["frechet"][:2] != other["frechet"][:2], "the seed draws the subset"
    assert row["frechet"][2] == pytest.approx(other["frechet"][2]), "all 100 are one set"


def test_size_run_continues_the_line_for_samples(made, monkeypatch):
    monkeypatch.setattr(yardsticks, "SIZES", (10, 30))
    monkeypatch.setattr(yardsticks, "frechet_infinity", lambda *_, generator: Line(3.0, 4.0))
    row = yardsticks.size_run("ddpm", seed=0)
    assert (row["infinity"], row["slope"]) == (3, 4)
    assert row["weights"] == recipes.train_or_load("ddpm", "read").record["sha256"]


class Line:
    """Stand in for an extrapolation."""

    def __init__(self, value, slope):
        self.value, self.slope = value, slope


def test_shares_compare_as_many_of_each(made, monkeypatch):
    seen = []
    pool = torch.rand(2500, 128, generator=generator_for(0))
    monkeypatch.setattr(yardsticks, "_pool", lambda source: pool)
    monkeypatch.setattr(yardsticks, "precision_recall", precision_recall_of(seen))
    row = yardsticks.size_run("test digits", seed=0)
    assert row["sizes"] == [250, 500, 1000, 2000]
    assert row["shares_of"] == [1000, 2000]
    assert seen == [(1000, 1000), (2000, 2000)]
    assert row["precision"] == [0.1, 0.1]
    assert row["recall"] == [0.2, 0.2]


def precision_recall_of(seen):
    """Return a stand-in that remembers the sizes it is given."""

    def shares(real, generated):
        seen.append((len(real), len(generated)))
        return PrecisionRecall(0.1, 0.2)

    return shares


def test_training_digits_are_copies(made):
    row = yardsticks.copies_run("training digits", seed=0, n=50)
    assert row == {"distances": [0.0] * 50}
    row = yardsticks.copies_run("test digits", seed=0, n=5)
    known, test = (to_images(mnist(train=t).images).flatten(1) for t in (True, False))
    nearest = [float((known - x).square().sum(1).sqrt().min()) for x in test]
    assert row["distances"] == sorted(row["distances"])
    assert all(min(abs(d - n) for n in nearest) < 0.006 for d in row["distances"])


@pytest.mark.parametrize(("name", "recipe"), SHIPPED_WITH)
def test_records_were_made_with_the_shipped_weights(name, recipe):
    path = ablations.RECORDS / f"{name}.json"
    made_with = {r["weights"] for r in json.loads(path.read_text())["rows"] if "weights" in r}
    shipped = recipes.train_or_load(recipe, "read").record["sha256"]
    assert made_with == {shipped}, f"delete {path.name} and run python -m mnistlib.ablations {name}"
