"""Recipes: the smoke profile of each, its settings, its files, its resumption, its samples."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import torch

from mnistlib import jobs, recipes
from mnistlib.data import mnist, to_images
from mnistlib.train import TrainStep
from mnistlib.types import InputError

NAMES = sorted(recipes.RECIPES)
QUICK = {"batch_size": "4", "judged": "8", "judge_steps": "2"}  # of the smoke profile, in a second


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Train each recipe in its smoke profile on made digits; return the folder of the results.

    They play the part of the shipped weights, manifest included.
    """
    folder, digits = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(digits)))
        patch.setattr(recipes, "WEIGHTS", folder)
        for name in recipes.RECIPES:
            *_, last = recipes.train(
                name, recipes.settings_of(name, "smoke"), profile="smoke", out=folder / name
            )
            (folder / name / f"{name}.safetensors").rename(folder / f"{name}.safetensors")
            assert isinstance(last, recipes.Trained)
            tiny.write_manifest(folder)
    return folder


@pytest.fixture
def world(weights, tmp_path, monkeypatch):
    """Stand in an empty folder, with made digits and their weights; return the folder."""
    monkeypatch.setattr(recipes, "WEIGHTS", weights)
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- the smoke profile ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_smoke_profile_trains_judges_and_saves(world, weights, name):
    """What comes back from memory, from the result's file and from an earlier run is the same."""
    settings = recipes.settings_of(name, "smoke")
    *steps, trained = recipes.train(name, settings, profile="smoke", out=world / "out")
    assert all(isinstance(step, TrainStep) for step in steps)
    assert [step.step for step in steps] == list(range(1, settings.train.steps + 1))
    loaded = recipes.load(world / "out" / f"{name}.safetensors")
    earlier = recipes.train_or_load(name, "read")
    for other in (loaded, earlier):
        assert other.settings == trained.settings == settings
        assert tiny.same(other.model.state_dict(), trained.model.state_dict())
        assert other.record["metrics"] == trained.record["metrics"]
    assert not trained.model.training
    assert not (world / "runs").exists()


@pytest.mark.parametrize("name", NAMES)
def test_record_says_what_was_done(world, name):
    trained = recipes.train_or_load(name, "smoke")
    record, settings = trained.record, trained.settings
    assert record["recipe"] == name
    assert record["profile"] == "smoke"
    assert record["data"] == {"source": "full", "sha256": mnist().sha256(), "digits": 100}
    assert record["images_seen"] == settings.train.steps * settings.batch_size
    assert record["resumed_at"] == 1
    assert len(record["losses"]) == settings.train.steps
    assert all(math.isfinite(loss) for loss in record["losses"])
    assert {"torch", "revision", "device", "seconds", "threads"} <= record.keys()


def test_smoke_uses_the_small_set_where_no_folder_is_named(world, monkeypatch):
    monkeypatch.delenv("MNISTLIB_DATA")
    run = recipes.train("ddpm", recipes.settings_of("ddpm", "smoke"), profile="smoke")
    assert next(run).step == 1
    digits, test = recipes._data("smoke")
    assert (digits.source, len(digits.labels), test) == ("small", 5000, None)


def test_full_profile_needs_the_full_set(world, monkeypatch):
    monkeypatch.delenv("MNISTLIB_DATA")
    monkeypatch.setattr("mnistlib.data._cache_dir", lambda: world / "cache")
    monkeypatch.setattr("mnistlib.data._download", lambda cache: False)
    with pytest.raises(InputError, match="set MNISTLIB_DATA"):
        recipes.train_or_load("ddpm", "full")
    assert not (world / "runs").exists()


def test_judged_features(world, weights):
    """Reference statistics, accuracy and floor, against NumPy and the definition."""
    trained = recipes.load(weights / "digit_features.safetensors")
    metrics, model = trained.record["metrics"], trained.model
    with torch.no_grad():
        known = model.features(to_images(mnist().images)).double().numpy()
        scores = model(to_images(mnist(train=False).images))
    np.testing.assert_allclose(model.reference_mean, known.mean(0), atol=1e-6)
    np.testing.assert_allclose(model.reference_cov, np.cov(known.T), atol=1e-6)
    right = scores.argmax(1) == mnist(train=False).labels
    assert metrics["test_accuracy"] == pytest.approx(right.double().mean().item())
    assert (metrics["reference_digits"], metrics["floor_digits"]) == (100, 20)
    assert metrics["floor"] > 0


def test_judged_ddpm(world, weights):
    metrics = recipes.load(weights / "ddpm.safetensors").record["metrics"]
    floor = recipes.load(weights / "digit_features.safetensors").record["metrics"]["floor"]
    assert metrics["samples"] == 64
    assert metrics["sampler"] == "ddim, 5 steps, eta 1"
    assert metrics["deterministic"]["sampler"] == "ddim, 5 steps, eta 0"
    assert metrics["deterministic"]["frechet"] != metrics["frechet"]
    for found in (metrics, metrics["deterministic"]):
        assert found["times_floor"] == pytest.approx(found["frechet"] / floor)


def test_a_training_can_start_from_the_weights_of_another(world, weights):
    """With a learning rate of nearly nothing the weights stay where they started."""
    changes = QUICK | {"steps": "2", "lr": "1e-12", "seed": "5"}
    settings = recipes.settings_of("ddpm", "smoke", changes)
    first = recipes.load(weights / "ddpm.safetensors")
    *_, last = recipes.train(
        "ddpm", settings, profile="smoke", init=weights / "ddpm.safetensors", out=world / "second"
    )
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(last.model.state_dict()[name], value, rtol=0, atol=1e-3)
    loaded = recipes.load(world / "second" / "ddpm.safetensors").record
    for record in (last.record, loaded):
        assert record["started_from"]["sha256"] == first.record["sha256"]
        assert record["started_from"]["images_seen"] == first.record["images_seen"]
        assert record["images_seen"] == 2 * 4
    assert "started_from" not in first.record


def test_weights_of_another_network_start_nothing(world, weights):
    settings = recipes.settings_of("ddpm", "smoke", {"widths": "8,24"})
    with pytest.raises(InputError, match="holds another network"):
        next(
            recipes.train(
                "ddpm",
                settings,
                profile="smoke",
                init=weights / "ddpm.safetensors",
                out=world / "second",
            )
        )
    assert not (world / "second").exists()


def test_snapshots_are_kept(world):
    settings = recipes.settings_of("ddpm", "smoke", QUICK | {"snapshots": "1,7"})
    ema = {}
    for step in recipes.train("ddpm", settings, profile="smoke", out="out"):
        if isinstance(step, TrainStep):
            ema[step.step] = {k: v.half() for k, v in step.ema.state_dict().items()}
    found = sorted(path.name for path in (world / "out").glob("step_*"))
    assert found == ["step_00001.safetensors", "step_00007.safetensors", "step_00020.safetensors"]
    for n in (1, 7, 20):
        snapshot = recipes.load(world / "out" / f"step_{n:05d}.safetensors")
        assert snapshot.record["step"] == n
        weights = {k: v.half() for k, v in snapshot.model.state_dict().items()}
        assert tiny.same(weights, ema[n])


# ---- the jobs ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_functions_of_seed_and_step(world, name):
    job, settings = recipes.RECIPES[name].job, recipes.settings_of(name, "smoke")
    (_, first), (_, second) = job(settings, mnist()), job(settings, mnist())
    for _ in range(3):
        first(1, 0)  # what was asked for before does not matter
    for a, b in zip(first(0, 5), second(0, 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first(0, 5)[0], first(0, 6)[0])
    assert not torch.equal(first(0, 5)[0], first(1, 5)[0])


def test_diffusion_batches(world):
    settings = recipes.settings_of("ddpm", "smoke", {"T": "5", "batch_size": "100"})
    _, batch_at = recipes.RECIPES["ddpm"].job(settings, mnist())
    batch = batch_at(0, 0)
    assert batch.t.unique().tolist() == [1, 2, 3, 4, 5]
    x_0, expected = batch.x_0.flatten(1), to_images(mnist().images).flatten(1)
    assert sorted(map(bytes, x_0.numpy())) == sorted(map(bytes, expected.numpy()))
    assert batch.eps.std() == pytest.approx(1, abs=0.02)
    assert batch.eps.mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_shifted_images(shift):
    """Against slices of the padded image, one image at a time, for every offset there is."""
    offsets = [(y, x) for y in range(-shift, shift + 1) for x in range(-shift, shift + 1)]
    images = torch.rand(len(offsets), 1, 6, 6)
    found = jobs.shifted(images, torch.tensor(offsets), shift)
    for image, (y, x), moved in zip(images.numpy(), offsets, found.numpy(), strict=True):
        padded = np.pad(image[0], shift, constant_values=-1)
        np.testing.assert_array_equal(moved[0], padded[shift + y :, shift + x :][:6, :6])


# ---- full: kept, resumed, loaded -----------------------------------------------------------


@pytest.mark.parametrize("cut_at", [12, 20])
def test_full_profile_resumes_and_then_loads(world, monkeypatch, cut_at):
    """Cut in the middle, or after the last step while the judge was at work."""
    small = recipes.RECIPES["ddpm"]._replace(full=recipes.settings_of("ddpm", "smoke", QUICK))
    monkeypatch.setitem(recipes.RECIPES, "ddpm", small)
    for step in recipes.train("ddpm", small.full, out="runs/ddpm"):
        if step.step == cut_at:
            break
    resumed = recipes.train_or_load("ddpm", "full")
    assert resumed.record["resumed_at"] == {12: 11, 20: 20}[cut_at]
    *_, whole = recipes.train("ddpm", small.full)
    assert tiny.same(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.record["losses"] == whole.record["losses"], "a resumed run knows its past"
    assert resumed.record["metrics"] == whole.record["metrics"]
    monkeypatch.setattr(recipes, "fit", None)  # from here on nothing is trained
    loaded = recipes.train_or_load("ddpm", "full")
    assert tiny.same(loaded.model.state_dict(), whole.model.state_dict())


def test_a_damaged_result_is_not_trained_over(world):
    (world / "runs" / "ddpm").mkdir(parents=True)
    path = world / "runs" / "ddpm" / "ddpm.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="replace it"):
        recipes.train_or_load("ddpm", "full")
    assert path.read_bytes() == b"damaged"


# ---- names, profiles, settings -------------------------------------------------------------


def test_unknown_recipe_names_near_matches():
    for ask in (recipes.train_or_load, lambda name: recipes.settings_of(name, "smoke")):
        with pytest.raises(InputError, match="'ddmp'; did you mean ddpm"):
            ask("ddmp")
        with pytest.raises(InputError, match="choose one of digit_features, ddpm"):
            ask("xyz")


def test_profile_is_chosen_by_argument_then_environment_then_device(monkeypatch):
    for cuda, by_device in [(False, "read"), (True, "full")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.delenv("MNISTLIB_PROFILE", raising=False)
        assert recipes.choose_profile() == by_device
        monkeypatch.setenv("MNISTLIB_PROFILE", "smoke")
        assert recipes.choose_profile() == "smoke"
        assert recipes.choose_profile("read") == "read"
    monkeypatch.setenv("MNISTLIB_PROFILE", "smok")
    with pytest.raises(InputError, match="'smok'; choose one of smoke, read, full"):
        recipes.train_or_load("ddpm")


def test_settings_of_a_profile():
    assert recipes.settings_of("ddpm", "smoke") == recipes.RECIPES["ddpm"].smoke
    assert recipes.settings_of("ddpm", "full") == recipes.RECIPES["ddpm"].full


def test_settings_are_changed_from_text():
    changes = {
        "lr": "1e-4",
        "steps": "7",
        "widths": "4,8",
        "attention": "",
        "predicts": "eps",
        "decay": "constant",
        "time_input": "False",
        "schedule": "linear",
        "T": "50",
    }
    old = recipes.settings_of("ddpm", "smoke")
    model = replace(old.model, widths=(4, 8), attention=(), time_input=False)
    wanted = replace(
        old,
        model=model,
        train=replace(old.train, lr=1e-4, steps=7, decay="constant"),
        predicts="eps",
        schedule="linear",
        T=50,
    )
    found = recipes.settings_of("ddpm", "smoke", changes)
    assert found == wanted
    assert repr(found) == repr(wanted)  # 1 == 1.0 == True, but they are not written alike


def test_settings_that_depend_on_each_other_change_together():
    """No level 3 before the widths are four, whatever the order they are given in."""
    changes = {"attention": "3", "widths": "4,4,4,4"}
    for order in (changes, dict(reversed(changes.items()))):
        assert recipes.settings_of("ddpm", "smoke", order).model.attention == (3,)


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("stepz", "3", "did you mean steps"),
        ("learning", "3", "unknown setting 'learning'"),
        ("model", "3", "unknown setting 'model'"),
        ("steps", "many", "give a int"),
        ("steps", "1.5", "give a int"),
        ("lr", "high", "give a float"),
        ("widths", "8;16", "give a list such as 16,32"),
        ("time_input", "1", "give a bool"),
        ("predicts", "noise", "choose one of eps, x0, v"),
        ("decay", "linear", "choose one of constant, cosine"),
        ("attention", "9", "must lie in 0..1"),
        ("judge_steps", "1001", "steps must be between 1 and 1000"),
        ("judged", "1", "judged must be at least 2"),
    ],
)
def test_unusable_setting(key, text, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        recipes.settings_of("ddpm", "smoke", {key: text})
    assert "\n" not in str(refusal.value)


def test_settings_survive_their_checkpoint(world):
    settings = recipes.settings_of("ddpm", "smoke", {"attention": "", "snapshots": ""})
    assert recipes.from_dict(type(settings), asdict(settings)) == settings


# ---- samples -------------------------------------------------------------------------------


@pytest.fixture
def ddpm(weights, world):
    """Return a trained diffusion model whose output is not close to zero."""
    return recipes.load(weights / "ddpm.safetensors")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_seed_and_number_alone(ddpm, eta):
    """Drawn alone, in batches of another size, or in another order: equal up to rounding."""
    images = recipes.sample_in_batches(ddpm, 12, 10, seed=4, eta=eta)
    assert images.shape == (12, 1, 32, 32)
    for batch_size in (1, 5):
        again = recipes.sample_in_batches(ddpm, 12, 10, seed=4, eta=eta, batch_size=batch_size)
        torch.testing.assert_close(again, images, atol=1e-5, rtol=0)
    backwards = recipes.sample(ddpm, [11, 3, 0], 10, seed=4, eta=eta)
    torch.testing.assert_close(backwards, images[[11, 3, 0]], atol=1e-5, rtol=0)


def test_other_seeds_and_numbers_give_other_images(ddpm):
    images = torch.cat([recipes.sample(ddpm, [0, 1, 2], 3, seed=seed) for seed in (0, 1)])
    assert torch.pdist(images.flatten(1)).min() > 1
    assert images.abs().max() <= 1


def test_denoiser_keeps_no_gradients(ddpm):
    eps = ddpm.denoise(torch.randn(2, 1, 32, 32), torch.tensor([1, 1000]))
    assert eps.shape == (2, 1, 32, 32)
    assert not eps.requires_grad
    assert ddpm.schedule.T == 1000


def test_a_resumed_run_must_have_the_same_settings(world):
    """Not only those of the loop: the state itself does not know the loss or the batch size."""
    settings = recipes.settings_of("ddpm", "smoke", QUICK)
    for step in recipes.train("ddpm", settings, out="runs/cut"):
        if step.step == 12:
            break
    other = recipes.settings_of("ddpm", "smoke", QUICK | {"batch_size": "5", "predicts": "x0"})
    with pytest.raises(InputError, match=r"was trained with batch_size=.*, predicts=v"):
        next(recipes.train("ddpm", other, out="runs/cut", resume=True))
    with pytest.raises(InputError, match="earlier training"):
        next(recipes.train("ddpm", other, out="runs/cut"))
    assert next(recipes.train("ddpm", settings, out="runs/cut", resume=True)).step == 11
