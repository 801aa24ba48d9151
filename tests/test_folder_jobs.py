"""Trainings on a folder of your own: from the files to a model that needs them no more."""

import csv
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from test_folders import OLD, TEXTS, write_folder, write_metadata
from torch.nn import functional as F

from mnistlib import cli, data, folder_jobs, latent, recipes, sources
from mnistlib.data import generator_for
from mnistlib.folders import captioned_folder, read_pictures
from mnistlib.recipes import RECIPES
from mnistlib.schedules import cosine
from mnistlib.types import InputError

NAMES = ("folder_vae", "captioned_folder")
VAE = "runs/folder_vae/folder_vae.safetensors"
WORDS = {"a", "red", "green", "blue", "orange", "circle", "square", "triangle"}


def settings_of(name, **changes):
    """Return the smoke settings for the folder of shapes."""
    return recipes.settings_of(name, "smoke", {"folder": "shapes"} | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Write a folder of shapes and train both recipes on it, in a place without MNIST."""
    place = tmp_path_factory.mktemp("place")
    write_folder(place / "shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        without_mnist(patch)
        for name in NAMES:
            *_, last = recipes.train(name, settings_of(name), profile="smoke", out=f"runs/{name}")
            assert isinstance(last, recipes.Trained)
    return place


def without_mnist(patch):
    """Let every way to digits fail, the small set too."""
    for name in ("_small", "_read_idx", "_download"):
        patch.setattr(data, name, lambda *args: pytest.fail("asked for digits"))


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """Stand in a copy of that place, still without MNIST."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "place"))
    without_mnist(monkeypatch)
    return Path()


def found(name):
    """Return the model that was trained."""
    return recipes.load(f"runs/{name}/{name}.safetensors")


# ---- what is learnt ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_record_says_what_was_done(world, name):
    record, learnt = found(name).record, captioned_folder("shapes").part(slice(10))
    assert record["data"] == {"source": "shapes", "sha256": learnt.sha256(), "pictures": 10}
    assert record["images_seen"] == 20 * 4
    assert len(record["losses"]) == 20
    assert all(math.isfinite(loss) for loss in record["losses"])


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_functions_of_seed_and_step(world, name):
    job, settings = RECIPES[name].job, settings_of(name)
    pictures, vae = captioned_folder("shapes"), found("folder_vae").model
    (_, first), (_, second) = job(settings, pictures, vae), job(settings, pictures, vae)
    for _ in range(3):
        first(1, 0)  # what was asked for before does not matter
    for a, b in zip(first(0, 5), second(0, 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first(0, 5)[0], first(0, 6)[0])
    assert not torch.equal(first(0, 5)[0], first(1, 5)[0])


def test_an_epoch_shows_each_picture_once(world):
    pictures = captioned_folder("shapes")
    _, batch_at = RECIPES["folder_vae"].job(settings_of("folder_vae"), pictures)
    seen = torch.cat([batch_at(0, step).images for step in range(3)])
    known = read_pictures(pictures.paths, 32)
    assert sorted(map(bytes, seen.numpy())) == sorted(map(bytes, known.numpy()))
    assert batch_at(0, 0).eps.shape == (4, 4, 4, 4)


def test_latents_come_with_their_own_captions(world, monkeypatch):
    """Of which some are hidden. The pictures are encoded in parts, which meet without a seam."""
    monkeypatch.setattr(folder_jobs, "AT_ONCE", 5)
    pictures, vae = captioned_folder("shapes"), found("folder_vae").model
    settings = settings_of("captioned_folder", batch_size="12", held_out="0", label_dropout="0.25")
    _, batch_at = RECIPES["captioned_folder"].job(settings, pictures, vae)
    expected = latent.encode(vae, read_pictures(pictures.paths, 32)).flatten(1)
    vocabulary, hidden, T = sorted(WORDS), 0, set()
    for step in range(20):
        batch = batch_at(0, step)
        gap, T = torch.cdist(batch.x_0.flatten(1), expected), T | {*batch.t.tolist()}
        assert gap.min(1).values.max() < 1e-3
        for i, ids, mask in zip(gap.argmin(1), batch.ids, batch.mask, strict=True):
            told = " ".join(vocabulary[n - 2] for n in ids[mask].tolist()[1:])
            assert told in ("", TEXTS[i])
            hidden += not told
    assert 35 < hidden < 85  # of 240; the standard deviation is 7
    assert min(T) >= 1
    assert max(T) <= 1000
    assert len(T) > 100


# ---- the words -----------------------------------------------------------------------------


def test_the_words_are_those_that_the_training_learns_from(world):
    text = found("captioned_folder").model.config.text
    assert text == folder_jobs.text_config(settings_of("captioned_folder"))
    assert set(text.vocabulary) == WORDS
    assert text.max_length == 4, "the start, and three words"
    fewer = folder_jobs.text_config(settings_of("captioned_folder", held_out="9"))
    assert set(fewer.vocabulary) == {"a", "red", "circle", "square", "triangle"}


def test_long_captions_are_cut_and_unknown_words_left_out(world):
    rows = [("00.png", "one, two three FOUR"), ("01.png", "!"), (OLD, "zwei one"), ("03.png", "x")]
    write_metadata(Path("shapes"), rows)
    settings = settings_of("captioned_folder", held_out="2", max_length="3")
    text = folder_jobs.text_config(settings)
    assert text.vocabulary == ("one", "two")
    assert text.max_length == 3
    assert folder_jobs.first_captions(settings, 5) == ["one two", "", "one two", "", "one two"]
    _, kept = sources.pictures_of(settings)
    _, batch_at = folder_jobs.folder_job(settings, kept, found("folder_vae").model)
    ids = set()
    for step in range(9):
        batch = batch_at(0, step)
        ids |= {
            tuple(row[shown].tolist()) for row, shown in zip(batch.ids, batch.mask, strict=True)
        }
    assert ids == {(1,), (1, 2)}, "one, or nothing"


# ---- judged --------------------------------------------------------------------------------


def test_judged_autoencoder(world):
    """The scale is that of the first pictures; the error that of those held out."""
    trained, paths = found("folder_vae"), captioned_folder("shapes").paths
    model, metrics = trained.model, trained.record["metrics"]
    known, kept = read_pictures(paths[:4], 32), read_pictures(paths[-2:], 32)
    with torch.no_grad():
        means, back = model.encode(known).mean, model.decode(model.encode(kept).mean).clamp(-1, 1)
    spread = (means - means.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
    assert metrics["scale"] == pytest.approx(float(1 / spread), rel=1e-2)
    assert metrics["squared_error"] == pytest.approx(float((back - kept).square().mean()), rel=1e-3)
    assert (metrics["pictures"], metrics["held_out"]) == (2, True)
    alone = folder_jobs.judge_folder_vae(trained, captioned_folder("shapes"), None, None)
    assert (alone["pictures"], alone["held_out"]) == (4, False)


def test_judged_diffusion(world):
    """The loss on the two pictures held out, written out; batches of four show each twice."""
    trained, pictures = found("captioned_folder"), captioned_folder("shapes").part(slice(-2, None))
    assert trained.record["metrics"].keys() == {"pictures", "held_out", "loss", "loss_untold"}
    trained = trained._replace(model=tiny.alive(trained.model))  # it hears the words at last
    metrics = folder_jobs.judge_folder(trained, captioned_folder("shapes"), pictures, None)
    assert (metrics["pictures"], metrics["held_out"]) == (2, True)
    x_0, order = latent.encode(trained.vae, read_pictures(pictures.paths, 32)), []
    for epoch in (0, 1):
        order += torch.randperm(2, generator=generator_for(0, epoch, 2)).tolist()
    x_0, generator = x_0[order], generator_for(0, 0)
    t = torch.randint(1, 1001, (4,), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    a = cosine().alpha_bar[t].float().view(-1, 1, 1, 1)
    x_t, v = a.sqrt() * x_0 + (1 - a).sqrt() * eps, a.sqrt() * eps - (1 - a).sqrt() * x_0
    for key, said in [("loss", [pictures.texts[i] for i in order]), ("loss_untold", [""])]:
        with torch.no_grad():
            expected = F.mse_loss(trained.model(x_t, t, trained.model.of_prompts(said)), v)
        assert metrics[key] == pytest.approx(float(expected), rel=1e-4)
    assert metrics["loss"] != pytest.approx(metrics["loss_untold"], rel=1e-3)
    seen = folder_jobs.judge_folder(trained, captioned_folder("shapes"), None, None)
    assert (seen["pictures"], seen["held_out"]) == (4, False)


# ---- kept, resumed, loaded, asked ----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_run_goes_on(world, name):
    """As if it had never been cut."""
    for step in recipes.train(name, settings_of(name), profile="smoke", out="cut"):
        if step.step == 12:
            break
    *steps, last = recipes.train(name, settings_of(name), profile="smoke", out="cut", resume=True)
    assert [step.step for step in steps] == list(range(10, 21))
    assert tiny.same(last.model.state_dict(), found(name).model.state_dict())
    for key in ("losses", "metrics", "data"):
        assert last.record[key] == found(name).record[key]


def test_what_was_trained_needs_the_folder_no_more(world):
    before = recipes.sample(found("captioned_folder"), [0, 1], 3, prompts=TEXTS[:2], scale=2.0)
    shutil.rmtree("shapes")
    trained = found("captioned_folder")
    assert trained.shape == (4, 4, 4)
    images = recipes.sample(trained, [0, 1], 3, prompts=TEXTS[:2], scale=2.0)
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(images, before)
    other = recipes.sample(trained, [0, 1], 3, prompts=["a green square", ""], scale=2.0)
    assert not torch.equal(images, other)
    with pytest.raises(InputError, match="holds no word that this model knows"):
        recipes.sample(trained, [0], 3, prompts=["house"])


def test_samples_are_as_large_as_the_pictures_that_were_learnt(world):
    settings = settings_of("captioned_folder", size="64", steps="2", held_out="0")
    *_, trained = recipes.train("captioned_folder", settings, profile="smoke")
    assert trained.shape == (4, 8, 8)
    assert recipes.sample(trained, [0], 2, prompts=["a red circle"]).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_trains_watches_and_loads(world, monkeypatch, capsys, name):
    """Where nothing is held out, what was seen is measured, and no best is kept."""
    few = {"steps": "4", "checkpoint_every": "2"}
    for held_out, of in ((2, "validation"), (0, "seen")):
        sets = {"folder": "shapes", "held_out": held_out} | few
        args = ["train", name, "--profile", "smoke", "--validate-every", "3", "--out", of]
        args += [word for pair in sets.items() for word in ("--set", "{}={}".format(*pair))]
        monkeypatch.setattr(sys, "argv", ["mnistlib", *args, "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert (end.value.code, err) == (0, "")
        assert json.loads(out)["pictures"] == (2 if held_out else 4)
        with open(f"{of}/{of}.csv", newline="") as f:
            rows = [*csv.DictReader(f)]
        assert [int(row["step"]) for row in rows] == [3, 4]
        assert [*tiny.scalars(of)[f"loss/{of}"]] == [3, 4]
        assert Path(of, "best.safetensors").exists() == bool(held_out)
        picture, rows = ("reconstructions", 2) if name == "folder_vae" else ("samples", 1)
        columns = 4 if (rows, held_out) == (2, 2) else 10  # one batch is all there is
        with Image.open(f"{of}/{picture}_00004.png") as sheet:
            assert sheet.size == (columns * 33 + 1, rows * 33 + 1)


def test_a_training_shows_what_it_makes_of_the_first_captions(world, monkeypatch):
    from mnistlib import watch

    told = []
    monkeypatch.setattr(watch, "sample", lambda *a, **k: told.append(k) or torch.zeros(10, 3, 8, 8))
    settings = settings_of("captioned_folder", steps="1")
    run = recipes.train("captioned_folder", settings, profile="smoke", out="out")
    for _ in watch.watch(run, "captioned_folder", settings, profile="smoke", out="out", every=1):
        pass
    assert told == [{"prompts": TEXTS[:10], "scale": 2.0}]


# ---- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("folder_vae", {"folder": ""}, r"name the folder of your pictures: --set folder=PATH"),
        ("captioned_folder", {"folder": ""}, r"name the folder of your pictures"),
        ("folder_vae", {"folder": "none"}, "none is not a folder"),
        ("folder_vae", {"size": "36"}, "size must be a multiple of 8, .* got 36"),
        ("folder_vae", {"judged": "0"}, "judged be 1 or more"),
        ("captioned_folder", {"size": "48"}, "size=48 cannot be halved .* a multiple of 32"),
        ("captioned_folder", {"size": "0"}, "size must be positive"),
        ("captioned_folder", {"max_length": "1"}, "max_length 2 or more"),
        ("captioned_folder", {"vae": ""}, "vae name an autoencoder"),
        ("captioned_folder", {"vae": "x.safetensors"}, "x.safetensors does not exist"),
        ("folder_vae", {"held_out": "12"}, "cannot hold out 12 of 12 pictures"),
        ("folder_vae", {"held_out": "-1"}, "cannot hold out -1 of 12 pictures"),
        ("captioned_folder", {"held_out": "12"}, "cannot hold out 12 of 12 pictures"),
    ],
)
def test_refused_before_anything_is_written(world, name, changes, reason):
    with pytest.raises(InputError, match=reason):
        next(recipes.train(name, settings_of(name, **changes), profile="smoke", out="out"))
    assert not Path("out").exists()


def test_another_autoencoder_is_refused(world):
    settings = settings_of("folder_vae", seed="1", steps="2")
    *_, _ = recipes.train("folder_vae", settings, profile="smoke", out="other")
    shutil.copy("other/folder_vae.safetensors", VAE)
    with pytest.raises(InputError, match="was trained with another runs/folder_vae"):
        found("captioned_folder")


# ---- the full size -------------------------------------------------------------------------


@torch.no_grad()
def test_full_settings_make_latents_of_64_from_pictures_of_512(tmp_path):
    """And both untrained networks accept one of them."""
    write_folder(tmp_path / "shapes")
    full = {name: RECIPES[name].full for name in NAMES}
    assert {settings.size for settings in full.values()} == {512}
    assert full["captioned_folder"].vae == VAE
    vae = RECIPES["folder_vae"].network(full["folder_vae"]).eval()
    pictures = captioned_folder(tmp_path / "shapes").part(slice(1))
    z = folder_jobs.encoded(full["captioned_folder"], pictures, vae)
    assert z.shape == (1, 4, 64, 64) == (1, *latent.latent_shape(vae, 512))
    assert latent.decode(vae, z).shape == (1, 3, 512, 512)
    settings = replace(full["captioned_folder"], folder=str(tmp_path / "shapes"))
    network = RECIPES["captioned_folder"].network(settings).eval()
    trained = recipes.Trained(network, settings, {}, vae)
    assert trained.shape == (4, 64, 64)
    assert trained.prompted(["a red circle"])(z, torch.tensor([500])).shape == z.shape


def test_large_pictures_go_through_an_autoencoder_few_at_a_time(monkeypatch):
    vae, sizes = RECIPES["folder_vae"].network(RECIPES["folder_vae"].smoke), []
    forward = type(vae.encoder).forward
    monkeypatch.setattr(
        type(vae.encoder), "forward", lambda s, x: sizes.append(len(x)) or forward(s, x)
    )
    monkeypatch.setattr(latent, "PIXELS", 2 * 64 * 64 + 1)
    whole = latent.encode(vae, torch.randn(5, 3, 64, 64, generator=generator_for(1)))
    assert sizes == [2, 2, 1]
    latent.encode(vae, torch.zeros(1, 3, 128, 128))
    assert sizes[3:] == [1]
    assert latent.decode(vae, whole).shape == (5, 3, 64, 64)
