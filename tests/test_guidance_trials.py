"""The trials of guidance: samples are steered as named, and what is measured is what is said."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn import functional as F

from mnistlib import ablations, guidance_trials, latent, metrics, recipes
from mnistlib.data import Digits, generator_for, holdout, mnist, to_images
from mnistlib.guidance_trials import Guide, by_classifier, draw, judge
from mnistlib.jobs import accuracy_per_level

WITH_WEIGHTS = {"guidance_scale": "latent", "noisy_classifier": "latent"}


@pytest.fixture
def made(monkeypatch):
    """Use tiny untrained networks and 60 made digits, 20 of them held out; return the networks."""
    found = {}
    for name in ("vae", "latent", "latent_classifier", "digit_features"):
        recipe, generator = recipes.RECIPES[name], torch.Generator().manual_seed(1)
        torch.manual_seed(0)
        model = recipe.network(recipe.smoke).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        vae = found["vae"].model if name.startswith("latent") else None
        found[name] = recipes.Trained(model, recipe.smoke, {"sha256": name}, vae)
    images, labels = tiny.made_digits(60)
    digits = Digits(torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels), "made")
    monkeypatch.setattr(guidance_trials, "small_set", lambda: holdout(digits, 20))
    monkeypatch.setattr(guidance_trials, "STEPS", 2)
    monkeypatch.setattr(draw, "__defaults__", (2,))
    monkeypatch.setattr(recipes, "train_or_load", lambda name, profile: found[name])
    monkeypatch.setattr(recipes, "find", lambda name: found[name])
    return found


def quick(settings, **changes):
    """Return the settings with three steps of training."""
    train = replace(settings.train, steps=3, warmup=0)
    return replace(
        settings, model=SMOKE_MODEL[type(settings)], train=train, batch_size=8, **changes
    )


SMOKE_MODEL = {
    type(recipes.RECIPES[name].smoke): recipes.RECIPES[name].smoke.model
    for name in ("latent", "latent_classifier")
}


def noisy(trained, n=4):
    """Return latents of pure noise, times and wishes."""
    x = torch.randn(n, *trained.shape, generator=generator_for(5))
    return x, torch.full((n,), 700), torch.arange(n)


# ---- steering ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_draw_is_the_sampling_of_the_recipes(made, scale):
    """Two ways to the same pictures, also across the edge of a batch."""
    trained = made["latent"]
    drawn = draw(trained, lambda labels: trained.guided(labels, scale), 103, seed=4)
    theirs = recipes.sample(trained, range(103), 2, seed=4, scale=scale)
    torch.testing.assert_close(drawn, theirs, rtol=0, atol=1e-4)


def test_each_kind_steers_as_named(made):
    trained, reader = made["latent"], made["latent_classifier"]
    x, t, labels = noisy(trained)
    c, u = trained.guided(labels)(x, t), trained.denoise(x, t)
    assert not torch.allclose(c, u, atol=1e-3)

    def steered(kind):
        return guidance_trials._steer(trained, Guide(kind, 3.0), reader)(labels)(x, t)

    plain = u + 3 * (c - u)
    torch.testing.assert_close(steered("cfg"), plain, rtol=0, atol=1e-5)
    early = torch.tensor([200, 300, 800, 801])
    told, free = trained.guided(labels)(x, early), trained.denoise(x, early)
    expected = torch.where((early % 500 == 300).view(-1, 1, 1, 1), free + 3 * (told - free), told)
    between = guidance_trials._steer(trained, Guide("between", 3.0), reader)(labels)(x, early)
    torch.testing.assert_close(between, expected, rtol=0, atol=1e-5)
    a = float(trained.schedule.alpha_bar[700])
    v_c, v_u = ((eps - (1 - a) ** 0.5 * x) / a**0.5 for eps in (c, u))
    v = v_u + 3 * (v_c - v_u)
    v = 0.7 * v * (v_c.std((1, 2, 3)) / v.std((1, 2, 3))).view(-1, 1, 1, 1) + 0.3 * v
    expected = (1 - a) ** 0.5 * x + a**0.5 * v
    torch.testing.assert_close(steered("rescaled"), expected, rtol=0, atol=1e-4)
    x.requires_grad_()
    log_p = reader.model(x, t).log_softmax(1)[torch.arange(4), labels]
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    sigma = (1 - trained.schedule.alpha_bar[700]).sqrt().float()
    expected = u - 3 * sigma * gradient
    torch.testing.assert_close(steered("classifier"), expected, rtol=0, atol=1e-5)


def test_a_classifier_is_not_heard_at_the_noisy_end(made):
    """Where its gradient would be multiplied by thousands."""
    trained, reader = made["latent"], made["latent_classifier"].model
    x, _, labels = noisy(trained)
    for time, heard in ((1000, False), (951, False), (950, True)):
        t = torch.full((4,), time)
        pulled = by_classifier(trained, reader, 5.0)(labels)(x, t)
        assert torch.equal(pulled, trained.denoise(x, t)) != heard


def test_a_classifier_without_scale_leaves_the_samples_alone(made):
    trained, reader = made["latent"], made["latent_classifier"]
    free = draw(trained, lambda labels: trained.denoise, 4, seed=1)
    torch.testing.assert_close(draw(trained, by_classifier(trained, reader.model, 0.0), 4, 1), free)


# ---- judging -------------------------------------------------------------------------------


def test_judge_measures_what_it_says(made):
    eye = made["digit_features"].model
    images, labels = to_images(mnist(source="small").images[60:100]), torch.arange(40) % 10
    found = judge(images, labels)
    guess = eye(images).argmax(1)
    assert found["accuracy"] == pytest.approx(float((guess == labels).double().mean()))
    features = metrics.features_of(eye, images)
    reference = (eye.reference_mean, eye.reference_cov)
    distance = metrics.frechet_distance(reference, metrics.feature_statistics(features))
    assert found["frechet"] == pytest.approx(distance)
    known = metrics.features_of(eye, to_images(mnist(source="small").images[:40]))
    assert found["precision"] == metrics.precision_recall(known, features).precision
    assert found["recall"] == metrics.precision_recall(known, features).recall


def test_known_digits_have_every_share():
    found = judge(to_images(mnist(source="small").images[:50]), mnist(source="small").labels[:50])
    assert (found["precision"], found["recall"]) == (1, 1)
    assert found["accuracy"] > 0.95


def test_rows_name_the_guide_and_the_weights(made):
    guide = Guide("classifier", 2.0, samples=12)
    row = guidance_trials.guide_run(guide, 3)
    assert (row["kind"], row["scale"], row["samples"]) == guide
    assert (row["weights"], row["classifier"]) == ("latent", "latent_classifier")
    trained = made["latent"]
    images = draw(trained, by_classifier(trained, made["latent_classifier"].model, 2.0), 12, 3)
    assert row["frechet"] == pytest.approx(judge(images, torch.arange(12) % 10)["frechet"])
    assert guidance_trials.guide_run(guide, 4)["frechet"] != row["frechet"]


def test_real_digits_are_test_digits(made, tmp_path, monkeypatch):
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path, n_test=20)))
    row = guidance_trials.guide_run(Guide("real", samples=20), 0)
    test = mnist(source="full", train=False)
    assert row["accuracy"] == pytest.approx(judge(to_images(test.images), test.labels)["accuracy"])
    assert "weights" not in row
    images, labels = guidance_trials._balanced_test_digits(10, 0)
    assert sorted(labels.tolist()) == list(range(10))
    match = (images[:, None] == to_images(test.images)).flatten(2).all(2).nonzero()
    assert torch.equal(test.labels[match[:, 1]], labels)


# ---- brief trainings -----------------------------------------------------------------------


def test_dropout_run_judges_four_scales(made):
    settings = quick(guidance_trials.DROPOUT["rate 0.3"])
    row, again = (guidance_trials.dropout_run(settings, 0, count=12) for _ in range(2))
    assert row == again
    assert list(row) == ["scale 0", "scale 1", "scale 2", "scale 4"]
    assert len({row[scale]["frechet"] for scale in row}) == 4
    other = guidance_trials.dropout_run(replace(settings, label_dropout=0.0), 0, count=12)
    assert other != row


def test_dropped_labels_reach_the_network(made):
    """With all labels dropped no class is learnt: the embeddings stay where they began."""
    settings = quick(guidance_trials.DROPOUT["rate 0"], label_dropout=1.0)
    settings = replace(settings, train=replace(settings.train, steps=8, weight_decay=0.0, ema=0.0))
    torch.manual_seed(2)
    before = recipes.RECIPES["latent"].network(settings).label.weight
    after = guidance_trials._briefly("latent", settings, 2).model.label.weight
    moved = (after - before).abs().amax(1) > 1e-6
    assert moved.tolist() == [False] * 10 + [True]


@pytest.mark.parametrize("name", guidance_trials.CLASSIFIERS)
def test_a_classifier_of_clean_data_is_told_time_zero(made, monkeypatch, name):
    asked = []
    monkeypatch.setattr(guidance_trials, "accuracy_per_level", lambda f, *_: asked.append(f) or {})
    guidance_trials.classifier_run(quick(guidance_trials.CLASSIFIERS[name]), 0, count=4)
    x, t, _ = noisy(made["latent"])
    same = torch.equal(asked[0](x, t), asked[0](x, torch.zeros_like(t)))
    assert same == (name == "clean data")


def test_classifier_run_measures_levels_and_samples(made):
    row = guidance_trials.classifier_run(quick(guidance_trials.CLASSIFIERS["noisy data"]), 0, 8)
    assert row["times"] == list(range(0, 1001, 100))
    assert all(0 <= a <= 1 for a in row["accuracy"])
    assert len(row["accuracy"]) == 11
    assert len({row[f"scale {s}"]["frechet"] for s in (1, 4, 8)}) == 3
    assert row["weights"] == "latent"


def test_accuracy_of_one_that_knows_the_latents(made):
    """Asked for the nearest clean latent it is right without noise, and guesses at time T."""
    trained, (_, unseen) = made["latent"], guidance_trials.small_set()
    clean = latent.encode(trained.vae, to_images(unseen.images)).flatten(1)

    def nearest(x_t, t):
        twin = torch.cdist(x_t.flatten(1), clean).argmin(1)
        return F.one_hot(unseen.labels[twin], 10).float()

    found = accuracy_per_level(nearest, trained, unseen)["accuracy"]
    assert found[0] == 1
    assert found[-1] < 0.6


# ---- full trainings, variants, records -----------------------------------------------------


def test_full_run_takes_what_the_file_says(made, monkeypatch):
    kept = ("images_seen", "seconds", "parameters", "metrics", "sha256", "x")
    record = {key: i for i, key in enumerate(kept, 1)}
    for earlier, seen, seconds in (({}, 1, 2), ({"images_seen": 10, "seconds": 20}, 11, 22)):
        started = {"started_from": earlier} if earlier else {}
        asked, trained = [], made["latent"]._replace(record=record | started)
        monkeypatch.setattr(recipes, "find", lambda f, a=asked, t=trained: a.append(f) or t)
        row = guidance_trials.full_run(guidance_trials.MODES["joint"], 0)
        assert asked == ["runs/joint/joint.safetensors"]
        told = {"images_seen": seen, "training_seconds": seconds}
        assert row == told | {"parameters": 3, "metrics": 4, "sha256": 5}


def test_variants_are_what_their_names_say():
    for name, guide in guidance_trials.SWEEP.items():
        assert name == ("real digits" if guide.kind == "real" else f"{guide.kind}, {guide.scale:g}")
    for name, settings in guidance_trials.DROPOUT.items():
        assert name == f"rate {settings.label_dropout:g}"
        assert replace(settings, label_dropout=0.1) == guidance_trials.DROPOUT["rate 0.1"]
    clean, noisy_one = guidance_trials.CLASSIFIERS.values()
    assert (clean.noisy, noisy_one.noisy) == (False, True)
    assert replace(clean, noisy=True) == noisy_one


@pytest.mark.parametrize(("name", "model"), WITH_WEIGHTS.items())
def test_records_were_made_with_the_shipped_weights(name, model):
    path = ablations.RECORDS / f"{name}.json"
    if not path.is_file():
        pytest.skip("not measured yet")
    rows = json.loads(path.read_text())["rows"]
    found = {row["weights"] for row in rows if "weights" in row}
    assert found == {recipes.find(model).record["sha256"]}
