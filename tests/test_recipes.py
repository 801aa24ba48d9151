"""Recipes: the smoke profile of each, its settings, its files, its resumption, its samples."""

import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import torch

from mnistlib import checkpoints, jobs, latent, recipes, sources, train
from mnistlib.data import generator_for, holdout, mnist, to_images
from mnistlib.metrics import frechet_to
from mnistlib.objective import add_noise
from mnistlib.schedules import cosine
from mnistlib.settings import flat
from mnistlib.train import TrainStep
from mnistlib.types import InputError

TRAINED = [name for name in recipes.RECIPES if not hasattr(recipes.RECIPES[name].full, "folder")]
NAMES = sorted(TRAINED)  # those that learn from digits
LATENTS = ("latent", "latent_classifier", "joint")
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
        tiny.hold_out_few(patch)
        for name in TRAINED:
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
    tiny.hold_out_few(monkeypatch)
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
    learnt, _ = holdout(mnist(), 20)
    assert record["data"] == {"source": "full", "sha256": learnt.sha256(), "digits": 80}
    assert record["images_seen"] == settings.train.steps * settings.batch_size
    assert record["resumed_at"] == 1
    assert len(record["losses"]) == settings.train.steps
    assert all(math.isfinite(loss) for loss in record["losses"])
    assert {"torch", "revision", "device", "seconds", "threads"} <= record.keys()
    native = train.used_precision(torch.device("cpu"), "auto")
    assert record["precision"] == native


def test_smoke_uses_the_small_set_where_no_folder_is_named(world, monkeypatch):
    monkeypatch.delenv("MNISTLIB_DATA")
    run = recipes.train("ddpm", recipes.settings_of("ddpm", "smoke"), profile="smoke")
    assert next(run).step == 1
    digits, test = sources.digits_of("smoke")
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
        known = model.features(to_images(mnist().images[:80])).double().numpy()
        scores = model(to_images(mnist(train=False).images))
    np.testing.assert_allclose(model.reference_mean, known.mean(0), atol=1e-6)
    np.testing.assert_allclose(model.reference_cov, np.cov(known.T), atol=1e-6)
    right = scores.argmax(1) == mnist(train=False).labels
    assert metrics["test_accuracy"] == pytest.approx(right.double().mean().item())
    assert (metrics["reference_digits"], metrics["floor_digits"]) == (80, 20)
    assert metrics["floor"] > 0


def test_judged_ddpm(world, weights):
    metrics = recipes.load(weights / "ddpm.safetensors").record["metrics"]
    floor = recipes.load(weights / "digit_features.safetensors").record["metrics"]["floor"]
    assert metrics["samples"] == 64
    assert metrics["sampler"] == "ddim, 5 steps, eta 1"
    assert metrics["times_floor"] == pytest.approx(metrics["frechet"] / floor)


def test_judged_ddpm_compares_the_same_first_noises(world, weights):
    trained = recipes.load(weights / "ddpm.safetensors")
    eye = recipes.load(weights / "digit_features.safetensors").model
    found = trained.record["metrics"]["compared"]
    assert found["samples"] == 6
    for eta in (0.0, 1.0):
        images = recipes.sample(trained, range(6), 5, seed=1, eta=eta)
        distance = frechet_to((eye.reference_mean, eye.reference_cov), images, eye)
        assert found[f"eta {eta:.0f}"] == pytest.approx(distance, rel=1e-3)
    assert found["eta 0"] != found["eta 1"]


def test_the_judge_draws_with_the_grid_of_the_settings(world, weights):
    changes = {"judge_grid": "log_snr", "judge_eta": "0.7", "judge_steps": "5"}
    changes = QUICK | {"steps": "1"} | changes
    settings = recipes.settings_of("ddpm", "smoke", changes)
    *_, trained = recipes.train("ddpm", settings, profile="smoke")
    found, eye = trained.record["metrics"], recipes.load(weights / "digit_features.safetensors")
    reference = (eye.model.reference_mean, eye.model.reference_cov)
    for grid, eta, same in (("log_snr", 0.7, True), ("uniform", 0.7, False), ("log_snr", 1, False)):
        images = recipes.sample(trained, range(8), 5, seed=1, eta=eta, grid=grid)
        distance = frechet_to(reference, images, eye.model)
        assert (found["frechet"] == pytest.approx(distance, rel=1e-4)) == same
    assert found["sampler"] == "ddim, 5 steps of the grid log_snr, eta 0.7"


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


def test_what_earlier_trainings_cost_adds_up(world, weights):
    """From a finished model, and from a snapshot of a training that had started from one."""
    settings = recipes.settings_of("ddpm", "smoke", QUICK | {"steps": "4", "snapshots": "3"})
    before, out = weights / "ddpm.safetensors", world / "second"
    *_, second = recipes.train("ddpm", settings, profile="smoke", init=before, out=out)
    first = recipes.load(before).record
    for path, seen in ((out / "ddpm.safetensors", 16), (out / "step_00003.safetensors", 12)):
        *_, third = recipes.train("ddpm", settings, profile="smoke", init=path)
        found, own = third.record["started_from"], recipes.load(path).record
        assert found["images_seen"] == first["images_seen"] + seen
        assert found["seconds"] == first["seconds"] + own["seconds"]
        assert own["seconds"] > 0
    assert second.record["started_from"]["images_seen"] == first["images_seen"]


@pytest.mark.parametrize(
    ("name", "changes", "before"),
    [
        ("ddpm", {"widths": "8,8,24"}, "ddpm"),
        ("ddpm_class", {"widths": "8,8,24"}, "ddpm"),
        ("ddpm", {}, "ddpm_class"),  # what knows classes does not become one that knows none
        ("vae", {}, "ddpm"),
    ],
)
def test_weights_of_another_network_start_nothing(world, weights, name, changes, before):
    settings = recipes.settings_of(name, "smoke", changes)
    with pytest.raises(InputError, match="holds another network"):
        next(
            recipes.train(
                name,
                settings,
                profile="smoke",
                init=weights / f"{before}.safetensors",
                out=world / "second",
            )
        )
    assert not (world / "second").exists()


def test_a_class_conditional_training_can_start_from_a_model_without_classes(world, weights):
    """Before it learns, every label and none gives what the earlier model gives."""
    changes = QUICK | {"steps": "1", "lr": "1e-12"}
    settings = recipes.settings_of("ddpm_class", "smoke", changes)
    before = weights / "ddpm.safetensors"
    *_, last = recipes.train("ddpm_class", settings, profile="smoke", init=before)
    x, t, first = torch.randn(3, 1, 32, 32), torch.tensor([1, 400, 1000]), recipes.load(before)
    for labels in ([0, 4, 9], [last.model.null] * 3):
        guess = last.guided(torch.tensor(labels))(x, t)
        torch.testing.assert_close(guess, first.denoise(x, t), rtol=0.01, atol=0.01)
    assert last.record["started_from"]["sha256"] == first.record["sha256"]


@pytest.mark.parametrize("name", ["ddpm", "latent"])
def test_snapshots_are_kept(world, name):
    settings = recipes.settings_of(name, "smoke", QUICK | {"snapshots": "1,7"})
    ema = {}
    for step in recipes.train(name, settings, profile="smoke", out="out"):
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
    before = recipes.autoencoder_of(settings)
    vae = before and before.model
    (_, first), (_, second) = job(settings, mnist(), vae), job(settings, mnist(), vae)
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


def test_pictures_have_the_channels_of_the_autoencoder(world):
    settings = recipes.settings_of("vae", "smoke", {"in_channels": "3", "latent_channels": "2"})
    _, batch_at = recipes.RECIPES["vae"].job(settings, mnist())
    images, eps = batch_at(0, 0)
    assert images.shape == (32, 3, 32, 32)
    assert eps.shape == (32, 2, 8, 8)
    known = {bytes(x.numpy()) for x in to_images(mnist().images)}
    for k in range(3):
        assert {bytes(x.numpy()) for x in images[:, k : k + 1].contiguous()} <= known


def test_a_seed_means_one_beginning(world):
    """The network depends on the seed alone, and the caller's random state stays as it was."""
    settings = [
        recipes.settings_of("ddpm", "smoke", QUICK | {"seed": seed}) for seed in ("0", "0", "1")
    ]
    before = torch.random.get_rng_state()
    networks = [recipes.begin("ddpm", s, mnist())[0] for s in settings]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, again, other = (network.conv_in.weight for network in networks)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_latent_batches_are_the_scaled_latents_of_the_digits(world):
    """Each with its own label, of which about a tenth are hidden from the network."""
    vae = recipes.find("vae").model
    settings = recipes.settings_of("latent", "smoke", {"batch_size": "100"})
    _, batch_at = recipes.RECIPES["latent"].job(settings, mnist(), vae)
    expected = latent.encode(vae, to_images(mnist().images))
    hidden = 0
    for step in range(20):
        batch = batch_at(0, step)
        gap = torch.cdist(batch.x_0.flatten(1).double(), expected.flatten(1).double())
        assert gap.min(1).values.max() < 1e-4
        assert torch.equal(mnist().labels[gap.argmin(1)], batch.labels)
        told = batch.told != 10
        assert torch.equal(batch.told[told], batch.labels[told])
        hidden += int((~told).sum())
    assert 140 < hidden < 260  # of 2,000; the standard deviation is 13
    assert expected.std() == pytest.approx(1, abs=0.1)


def test_joint_loss_is_the_weighted_sum_on_one_noisy_batch(world):
    """Against the losses of the two halves, each with the job that trains it alone."""
    vae, job = recipes.find("vae").model, {n: recipes.RECIPES[n].job for n in LATENTS}
    settings = {n: recipes.settings_of(n, "smoke") for n in LATENTS}
    losses = {n: job[n](settings[n], mnist(), vae)[0] for n in LATENTS}
    model = recipes.find("joint").model
    batch = job["joint"](settings["joint"], mnist(), vae)[1](0, 3)
    with torch.no_grad():
        diffusion = losses["latent"](model.unet, batch)
        classification = losses["latent_classifier"](model.classifier, batch)
        found = losses["joint"](model, batch)
        x_t = add_noise(batch.x_0, batch.eps, batch.t, cosine())
        scores = model.classifier(x_t, batch.t).log_softmax(1)
    assert classification.item() == pytest.approx(
        -scores[range(len(scores)), batch.labels].mean().item(), rel=1e-5
    )
    assert found.item() == pytest.approx((diffusion + 0.1 * classification).item(), rel=1e-5)


def test_joint_inherits_the_autoencoder_and_nothing_else(world):
    """It stays as it was; both networks start from what the seed gives, not from earlier ones."""
    settings = recipes.settings_of("joint", "smoke", QUICK | {"steps": "1", "lr": "1e-12"})
    first, trained = recipes.train("joint", settings, profile="smoke")
    assert tiny.same(trained.vae.state_dict(), recipes.find("vae").model.state_dict())
    torch.manual_seed(settings.train.seed)
    fresh = recipes.RECIPES["joint"].network(settings).state_dict()
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(value, fresh[name], rtol=0, atol=1e-6)


def test_a_classifier_of_clean_data_sees_no_noise(world):
    settings = recipes.settings_of("latent_classifier", "smoke", {"noisy": "False", "vae": ""})
    settings = replace(settings, model=replace(settings.model, in_channels=1))
    loss, batch_at = recipes.RECIPES["latent_classifier"].job(settings, mnist())
    batch, seen = batch_at(0, 0), []
    loss(lambda x, t: seen.append((x, t)) or torch.zeros(len(x), 10), batch)
    ((x, t),) = seen
    assert torch.equal(x, batch.x_0)
    assert not t.any()


# ---- judged --------------------------------------------------------------------------------


def test_judged_vae(world):
    """The scale is that of the training digits; the distance that of the reconstructions."""
    vae, eye = recipes.find("vae"), recipes.find("digit_features")
    metrics, images = vae.record["metrics"], to_images(mnist(train=False).images)
    with torch.no_grad():
        means = vae.model.encode(to_images(mnist().images[:80])).mean
        back = vae.model.decode(vae.model.encode(images).mean).clamp(-1, 1)
    scale = float(1 / (means - means.mean((0, 2, 3), keepdim=True)).square().mean().sqrt())
    torch.testing.assert_close(vae.model.scale, torch.full((4, 1, 1), scale), rtol=1e-3, atol=0)
    assert metrics["scale"] == pytest.approx(scale, rel=1e-2)
    assert metrics["squared_error"] == pytest.approx(
        float((back - images).square().mean()), rel=1e-3
    )
    reference = (eye.model.reference_mean, eye.model.reference_cov)
    distance = frechet_to(reference, back, eye.model)
    assert metrics["frechet"] == pytest.approx(distance, rel=1e-2)
    floor = eye.record["metrics"]["floor"]
    assert metrics["times_floor"] == pytest.approx(metrics["frechet"] / floor)
    assert metrics["images"] == 20


@pytest.mark.parametrize("name", ["latent", "ddpm_class", "joint"])
def test_judged_models_of_classes(world, name):
    """Balanced samples, named by the eye; guided ones at three scales beside as many unguided."""
    trained, eye = recipes.find(name), recipes.find("digit_features").model
    metrics = trained.record["metrics"]
    images = recipes.sample_in_batches(trained, 64, 5, seed=1, eta=1.0)
    with torch.no_grad():
        named = eye(images).argmax(1)
    right = (named == torch.arange(64) % 10).double().mean()
    assert metrics["accuracy"] == pytest.approx(float(right), abs=1 / 64)
    assert metrics["guided"].keys() == {"scale 1", "scale 1.5", "scale 2", "scale 3"}
    assert metrics["guided"]["scale 2"]["samples"] == 12
    assert 0 < metrics["test_loss"] < 3


@pytest.mark.parametrize("name", ["latent_classifier", "joint"])
def test_judged_classifiers(world, name):
    """Against the scores of the noisy latents of the test digits, level by level."""
    trained, digits = recipes.find(name), mnist(train=False)
    metrics = trained.record["metrics"]
    found = metrics["classifier"] if name == "joint" else metrics
    network = trained.model.classifier if name == "joint" else trained.model
    assert found["times"] == list(range(0, 1001, 100))
    x_0 = latent.encode(trained.vae, to_images(digits.images))
    eps = torch.randn(x_0.shape, generator=generator_for(0))
    for time, share in zip(found["times"], found["accuracy"], strict=True):
        a, t = float(cosine().alpha_bar[time]), torch.full((len(x_0),), time)
        with torch.no_grad():
            named = network(a**0.5 * x_0 + (1 - a) ** 0.5 * eps, t).argmax(1)
        right = (named == digits.labels).double().mean()
        assert share == pytest.approx(float(right), abs=1 / 20)


# ---- classes and guidance ------------------------------------------------------------------


def test_guided_denoisers_follow_the_convention(world):
    """u + s (c - u), and at both ends exactly one of the two."""
    trained = recipes.find("latent")
    x, t, labels = torch.randn(4, 4, 8, 8), torch.full((4,), 500), torch.tensor([3, 1, 4, 1])
    u, c = trained.denoise(x, t), trained.guided(labels)(x, t)
    assert not torch.allclose(u, c, atol=1e-3)
    assert torch.equal(trained.guided(labels, 0.0)(x, t), u)
    assert torch.equal(trained.guided(labels, 1.0)(x, t), c)
    torch.testing.assert_close(trained.guided(labels, 3.0)(x, t), u + 3 * (c - u))
    assert not c.requires_grad


def test_samples_of_latents_are_pictures(world):
    trained = recipes.find("latent")
    *states, last = recipes.denoising(trained, [0, 1, 2], 4, scale=2.0)
    assert last.x_t.shape == (3, 4, 8, 8)
    assert len(states) == 3
    images = recipes.sample(trained, [0, 1, 2], 4, scale=2.0)
    assert torch.equal(images, latent.decode(trained.vae, last.x_t))
    assert images.shape == (3, 1, 32, 32)
    told = recipes.sample(trained, [0, 1, 2], 4, scale=2.0, labels=torch.tensor([0, 1, 2]))
    assert torch.equal(images, told), "without labels the classes go round"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"labels": torch.tensor([1])}, "knows no classes; leave labels out"),
        ({"scale": 2.0}, "nothing that guidance could stress; leave scale out"),
    ],
)
def test_a_model_without_classes_cannot_be_guided(ddpm, how, reason):
    with pytest.raises(InputError, match=reason):
        recipes.sample(ddpm, [0], 2, **how)


def test_a_latent_model_needs_its_own_autoencoder(world, weights, tmp_path, monkeypatch):
    folder = shutil.copytree(weights, tmp_path / "weights")
    monkeypatch.setattr(recipes, "WEIGHTS", folder)
    settings = recipes.settings_of("vae", "smoke", {"seed": "1", "steps": "2"})
    list(recipes.train("vae", settings, profile="smoke", out="other"))
    shutil.copy("other/vae.safetensors", folder / "vae.safetensors")
    tiny.write_manifest(folder)
    with pytest.raises(InputError, match="was trained with another vae; train it again"):
        recipes.find("latent")
    (folder / "vae.safetensors").unlink()
    with pytest.raises(InputError, match="no shipped weights for 'vae'"):
        recipes.find("latent")
    with pytest.raises(InputError, match="no shipped weights for 'vae'"):
        recipes.train_or_load("latent", "smoke")


def test_the_autoencoder_may_be_a_file_and_must_be_one(world):
    changes = QUICK | {"vae": str(recipes.shipped_path("vae"))}
    settings = recipes.settings_of("latent", "smoke", changes)
    *_, last = recipes.train("latent", settings, profile="smoke", out="out")
    assert last.record["vae"] == recipes.find("vae").record["sha256"]
    assert recipes.load("out/latent.safetensors").settings == settings
    settings = recipes.settings_of("latent", "smoke", QUICK | {"vae": "ddpm"})
    with pytest.raises(InputError, match="ddpm is not an autoencoder"):
        next(recipes.train("latent", settings, profile="smoke"))


def test_latents_that_were_not_measured_are_refused(world):
    """As those of ``best.safetensors``: only the judge of a finished training measures them."""
    vae = recipes.find("vae")
    checkpoints.save("best.safetensors", vae.model, asdict(vae.settings), {"recipe": "vae"})
    settings = recipes.settings_of("latent", "smoke", QUICK | {"vae": "best.safetensors"})
    with pytest.raises(InputError, match=r"the latents of best\.safetensors were not measured"):
        next(recipes.train("latent", settings, profile="smoke"))


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
    assert resumed.record["resumed_at"] == {12: 10, 20: 20}[cut_at]
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
        ("attention", "9", "must lie in 0..2"),
        ("judge_steps", "1001", "steps must be between 1 and 1000"),
        ("judge_grid", "even", "unknown grid 'even'; choose one of uniform"),
        ("judge_eta", "-0.1", "judge_eta must lie between 0 and 1"),
        ("judged", "1", "judged must be at least 2"),
    ],
)
def test_unusable_setting(key, text, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        recipes.settings_of("ddpm", "smoke", {key: text})
    assert "\n" not in str(refusal.value)


def test_words_that_two_groups_share_are_told_apart():
    changes = {"widths": "4,8,8", "classifier.widths": "8,24", "classifier_weight": "0.5"}
    found = recipes.settings_of("joint", "smoke", changes)
    assert found.model.widths == (4, 8, 8)
    assert found.classifier.widths == (8, 24)
    assert found.classifier_weight == 0.5
    assert flat(found)["classifier.widths"] == (8, 24)


def test_settings_older_than_a_field_mean_its_default():
    """Only fields that were added since may be missing, and none may be unknown."""
    settings = recipes.settings_of("ddpm", "smoke")
    old = asdict(settings)
    del old["label_dropout"], old["model"]["classes"]
    assert recipes.from_dict(type(settings), old) == settings
    for foreign in ({k: v for k, v in old.items() if k != "T"}, {}):
        with pytest.raises(KeyError):
            recipes.from_dict(type(settings), foreign)
    with pytest.raises(TypeError, match="no field colours"):
        recipes.from_dict(type(settings), old | {"colours": 3})


@pytest.mark.parametrize("name", NAMES)
def test_both_profiles_have_settings_of_one_kind(name):
    recipe = recipes.RECIPES[name]
    assert type(recipe.full) is type(recipe.smoke)


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
    judge = {"judged": "6", "judge_steps": "3", "judge_grid": "log_snr", "judge_eta": "0.5"}
    later = recipes.settings_of("ddpm", "smoke", QUICK | judge)  # these touch no weight
    for same in (settings, later):
        assert next(recipes.train("ddpm", same, out="runs/cut", resume=True)).step == 10


def test_a_run_older_than_a_setting_had_its_default(world):
    """It goes on with the default, and with nothing else."""
    settings = recipes.settings_of("ddpm", "smoke", QUICK | {"held_out": "0"})
    for step in recipes.train("ddpm", settings, profile="smoke", out="cut"):
        if step.step == 12:
            break
    path = world / "cut" / "settings.json"
    before = json.loads(path.read_text())
    for key in ("held_out", "label_dropout"):
        del before[key]
    path.write_text(json.dumps(before))
    other = replace(settings, held_out=20)
    with pytest.raises(InputError, match="cut was trained with held_out=0; use the same"):
        next(recipes.train("ddpm", other, profile="smoke", out="cut", resume=True))
    assert next(recipes.train("ddpm", settings, profile="smoke", out="cut", resume=True)).step == 10


# ---- digits that are not learnt from -------------------------------------------------------


def test_unseen_digits_are_those_held_out_or_else_the_test_digits(world, monkeypatch):
    settings = recipes.settings_of("ddpm", "smoke", {"held_out": "30"})
    of, digits = recipes.unseen(settings, "smoke")
    assert of == "validation"
    assert torch.equal(digits.images, mnist().images[-30:])
    assert torch.equal(digits.labels, mnist().labels[-30:])
    everything = replace(settings, held_out=0)
    of, digits = recipes.unseen(everything, "smoke")
    assert of == "test"
    assert torch.equal(digits.images, mnist(train=False).images)
    monkeypatch.delenv("MNISTLIB_DATA")
    with pytest.raises(InputError, match="set held_out to 500"):
        recipes.unseen(everything, "smoke")


def test_full_trainings_learn_from_every_digit():
    """What is shipped is trained on all 60,000, with settings chosen before."""
    assert {recipe.full.held_out for recipe in recipes.RECIPES.values()} == {0}
