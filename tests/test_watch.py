"""Watched trainings: what the four modes leave behind, and that watching changes nothing."""

import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.nn import functional as F

from mnistlib import checkpoints, cli, latent, recipes, watch
from mnistlib.data import Digits, generator_for, holdout, mnist, to_images, to_uint8
from mnistlib.journal import read_rows
from mnistlib.prompt_jobs import SHOWN
from mnistlib.scenes import draw_captions, draw_scenes, measured
from mnistlib.schedules import cosine
from mnistlib.train import TrainStep, learning_rate
from mnistlib.trained import sample
from mnistlib.types import InputError

MODES = {  # the picture that each draws, and whether it names classes
    "vae": ("reconstructions", False),
    "latent": ("samples", False),
    "latent_classifier": (None, True),
    "joint": ("samples", True),
}
STEPS, EVERY, MEASURED = 8, 3, [3, 6, 8]
CHANGES = {"steps": str(STEPS), "batch_size": "8", "warmup": "2", "checkpoint_every": "2"}
FEW = {"judged": "4", "judge_steps": "2"}  # of a model that draws


def settings_of(name, **changes):
    """Return the settings of a training of a second."""
    draws = MODES.get(name, ("", False))[0] == "samples"
    return recipes.settings_of(name, "smoke", CHANGES | (FEW if draws else {}) | changes)


def watched(name, settings, out, run=None, **kwargs):
    """Return a watched training, or watch another run."""
    run = run or recipes.train(name, settings, profile="smoke", out=out, **kwargs)
    return watch.watch(run, name, settings, profile="smoke", out=out, every=EVERY)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a folder laid out like the shipped one: an eye and an autoencoder."""
    names = ("digit_features", "vae")
    folder = tmp_path_factory.mktemp("weights")
    return tiny.write_weights(folder, {name: settings_of(name) for name in names})


@pytest.fixture(autouse=True)
def world(weights, tmp_path, monkeypatch):
    """Stand in an empty folder, with made digits and the weights of earlier trainings."""
    monkeypatch.setattr(recipes, "WEIGHTS", weights)
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path):
    """Return a picture as an array (H, W) of grey."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA").convert("L"))


def state(out):
    """Return the tensors of a saved state."""
    return checkpoints.read_tensors(Path(out) / "state.safetensors")[0]


# ---- the four modes, on the command line ---------------------------------------------------


@pytest.fixture(params=MODES)
def trained(request, monkeypatch, capsys):
    """Train a mode with the command; return its name and its folder."""
    changes = CHANGES | (FEW if MODES[request.param][0] == "samples" else {})
    set_ = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    args = ["train", request.param, "--profile", "smoke", *set_, "--validate-every", str(EVERY)]
    monkeypatch.setattr(sys, "argv", ["mnistlib", *args, "--out", "out"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, capsys.readouterr().err) == (0, "")
    return request.param, Path("out")


def test_a_mode_leaves_its_logs_pictures_and_checkpoints(trained):
    name, out = trained
    picture, names_classes = MODES[name]
    # The log and the CSV files hold the same numbers, each step once.
    log = tiny.scalars(out)
    journal, validation = read_rows(out / "journal.csv"), read_rows(out / "validation.csv")
    config = settings_of(name).train
    steps = range(1, STEPS + 1)
    assert log["loss/training"] == pytest.approx({int(s): loss for s, loss, _ in journal})
    assert log["lr"] == pytest.approx({n: learning_rate(n, config) for n in steps})
    assert list(log["grad_norm"]) == list(steps)
    assert log["loss/validation"] == pytest.approx({row[0]: row[1] for row in validation})
    assert list(log["loss/validation"]) == MEASURED
    assert ("accuracy/validation" in log) == names_classes
    if names_classes:
        assert log["accuracy/validation"] == pytest.approx({row[0]: row[2] for row in validation})
    # So do the log and the PNG files hold the same pictures.
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ([picture] if picture else [])
    for event in events.Images(picture) if picture else ():
        shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"))
        np.testing.assert_array_equal(shown, pixels(out / f"{picture}_{event.step:05d}.png"))
    found = sorted(path.name for path in out.glob("*_000*.png"))
    assert found == [f"{picture}_{n:05d}.png" for n in MEASURED if picture]
    # The best weights can be used, the state resumed, and the curve looked at.
    best = recipes.load(out / "best.safetensors")
    assert best.record["step"] in MEASURED
    assert best.spent("images_seen") == best.record["step"] * best.settings.batch_size
    assert best.spent("seconds") >= 0
    assert checkpoints.read_tensors(out / "state.safetensors")[1]["step"] == STEPS
    assert pixels(out / "loss.png").shape[1] > 500


# ---- what is measured ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODES)
def test_measured_are_the_averaged_weights_on_digits_held_out(name, monkeypatch):
    """Against the losses written out, with the noise drawn again."""
    monkeypatch.setattr(watch, "COUNT", 8)
    expected = {}
    for step in watched(name, settings_of(name), "out"):
        if isinstance(step, TrainStep) and step.step in MEASURED:
            expected[step.step] = by_hand(name, step.ema)
    for n, *found in read_rows("out/validation.csv"):
        np.testing.assert_allclose(found, expected.pop(n), rtol=1e-4)
    assert expected == {}


@torch.no_grad()
def by_hand(name, model):
    """Return loss and accuracy on 8 held-out digits in the order of seed 0."""
    order = torch.randperm(8, generator=generator_for(0, 0, 8))
    images, labels = to_images(mnist().images[-20:][order]), mnist().labels[-20:][order]
    if name == "vae":
        return (vae_by_hand(model, images, 0),)
    generator = generator_for(0, 0)
    x_0 = latent.encode(recipes.find("vae").model, images)
    t = torch.randint(1, 1001, (8,), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    a = cosine().alpha_bar[t].view(-1, 1, 1, 1)
    alpha, sigma = a.sqrt().float(), (1 - a).sqrt().float()
    x_t, v = alpha * x_0 + sigma * eps, alpha * eps - sigma * x_0
    told = torch.where(torch.rand(8, generator=generator) < 0.1, 10, labels)
    found = []
    if name != "latent_classifier":
        found.append(F.mse_loss(model(x_t, t, model.of_class(told)), v))
    if name != "latent":
        scores = (model.classifier if name == "joint" else model)(x_t, t)
        found.append(F.cross_entropy(scores, labels))
        right = (scores.argmax(1) == labels).double().mean()
        return ((found[0] + 0.1 * found[1]) if name == "joint" else found[0], right)
    return tuple(found)


@torch.no_grad()
def vae_by_hand(model, images, step):
    """Return the loss of eight images, with the noise of a step."""
    posterior = model.encode(images)
    eps = torch.randn(8, 4, 8, 8, generator=generator_for(0, step))
    error = (model.decode(posterior.mean + (posterior.log_var / 2).exp() * eps) - images) ** 2
    kl = (posterior.mean**2 + posterior.log_var.exp() - 1 - posterior.log_var) / 2
    return float((error.sum() + 0.05 * kl.sum()) / images.numel())


@pytest.mark.parametrize("name", ["vae", "latent"])
def test_pictures_are_of_the_averaged_weights(name):
    """Ten held-out digits over what comes back of them; ten samples of the first noises.

    The digits are the first that are measured; a batch holds eight.
    """
    settings = settings_of(name)
    for step in watched(name, settings, "out"):
        if step.step == EVERY:
            break
    if name == "vae":
        first = torch.randperm(20, generator=generator_for(0, 0, 20))[:10]
        digits = to_images(mnist().images[-20:][first])
        images = torch.cat([digits, latent.decode(step.ema, latent.encode(step.ema, digits))])
    else:
        model = recipes.Trained(step.ema, settings, {}, recipes.find("vae").model)
        images = recipes.sample(model, range(10), 2)
    [path] = Path("out").glob("*_00003.png")
    sheet = torch.from_numpy(pixels(path).copy())
    cells = sheet[1:, 1:].unfold(0, 32, 33).unfold(1, 32, 33).flatten(0, 1)
    assert (cells.int() - to_uint8(images[:, 0]).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["rgb_vae", "text_to_image"])
def test_trainings_on_scenes_are_watched_on_scenes_of_held_out_digits(name, scene_vae, monkeypatch):
    """Losses by hand; ten scenes over what comes back, or the ten prompts of every training."""
    monkeypatch.setattr(watch, "COUNT", 16)
    told = []  # a training of a moment hardly shows at which scale it draws
    monkeypatch.setattr(watch, "sample", lambda *a, **how: told.append(how) or sample(*a, **how))
    changes = {"rgb_vae": {"judged": "2"}, "text_to_image": FEW | {"vae": str(scene_vae)}}[name]
    settings = settings_of(name, held_out="20", **changes)
    for step in watched(name, settings, "out"):
        if step.step == EVERY:
            break
    digits, before = holdout(mnist(), 20)[1], recipes.load(scene_vae).model
    some = Digits(digits.images[:16], digits.labels[:16], digits.source)
    painted = draw_scenes(measured(some), 0, range(16))
    if name == "rgb_vae":
        given = painted.images[:10]
        images = torch.cat([given, latent.decode(step.ema, latent.encode(step.ema, given))])
        losses = [vae_by_hand(step.ema, painted.images[8 * k :][:8], k) for k in (0, 1)]
    else:
        model = recipes.Trained(step.ema, settings, {}, before)
        images = recipes.sample(model, range(10), 2, prompts=SHOWN, scale=2.0)
        assert told == [{"prompts": SHOWN, "scale": 2.0}]
        latents = latent.encode(before, painted.images)
        losses = [prompts_by_hand(step.ema, latents, painted.scenes, k) for k in (0, 1)]
    [(_, loss)] = read_rows("out/validation.csv")
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-4)
    [path] = Path("out").glob("*_00003.png")
    with Image.open(path) as picture:
        sheet = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)
    cells = sheet[:, 1:, 1:].unfold(1, 32, 33).unfold(2, 32, 33).flatten(1, 2).transpose(0, 1)
    assert (cells.int() - to_uint8(images).int()).abs().max() <= 1


def test_all_captions_are_measured_whatever_the_lesson(scene_vae, monkeypatch):
    """A training that begins with the easy ones is not measured by them alone."""
    recipe, asked = recipes.RECIPES["text_to_image"], []
    watching = recipe._replace(job=lambda s, *a: asked.append(s.in_order) or recipe.job(s, *a))
    monkeypatch.setitem(recipes.RECIPES, "text_to_image", watching)
    changes = FEW | {"vae": str(scene_vae), "in_order": "9", "held_out": "20"}
    next(watched("text_to_image", settings_of("text_to_image", **changes), "out"))
    assert sorted(asked) == [0, 9]  # what is measured, and what is learnt


@torch.no_grad()
def prompts_by_hand(model, latents, scenes, step):
    """Return the loss of eight scenes, told their captions, of which about a tenth are hidden."""
    i = torch.randperm(16, generator=generator_for(0, 0, 16))[8 * step :][:8]
    x_0, generator = latents[i], generator_for(0, step)
    t = torch.randint(1, 1001, (8,), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    said = draw_captions([scenes[j] for j in i], 0, range(8 * step, 8 * step + 8))
    hidden = torch.rand(8, generator=generator) < 0.1
    told = ["" if h else caption.text for h, caption in zip(hidden, said, strict=True)]
    a = cosine().alpha_bar[t].view(-1, 1, 1, 1)
    alpha, sigma = a.sqrt().float(), (1 - a).sqrt().float()
    answer = model(alpha * x_0 + sigma * eps, t, model.of_prompts(told))
    return float(F.mse_loss(answer, alpha * eps - sigma * x_0))


def test_the_curve_is_the_journal_and_the_measurements(monkeypatch):
    drawn = []
    monkeypatch.setattr(watch.plots, "save_figure", lambda path, fig: drawn.append((path, fig)))
    for _ in watched("latent_classifier", settings_of("latent_classifier"), "out"):
        pass
    path, fig = drawn[-1]
    training, validation = fig.axes[0].get_lines()
    assert path == Path("out/loss.png")
    for line, file in [(training, "journal.csv"), (validation, "validation.csv")]:
        np.testing.assert_allclose(line.get_xydata(), [row[:2] for row in read_rows(f"out/{file}")])
    for _, figure in drawn:
        watch.plots.plt.close(figure)


# ---- the best ------------------------------------------------------------------------------


def test_best_is_the_lowest_validation_loss(monkeypatch):
    """Of steps 3, 6 and 8 the second; a worse one later, or after a cut, does not replace it."""
    losses = {3: 2.0, 6: 1.0, 8: 1.5}
    settings, ema, now = settings_of("latent_classifier"), {}, []
    monkeypatch.setattr(
        watch._Watcher, "examine", lambda self, model: {"loss": losses[now[-1]], "accuracy": 0.5}
    )

    def noting(run):
        for step in run:
            if isinstance(step, TrainStep):
                now.append(step.step)
                ema[step.step] = {k: v.half() for k, v in step.ema.state_dict().items()}
            yield step

    how = {"profile": "smoke", "out": "out"}
    run = noting(recipes.train("latent_classifier", settings, **how))
    for step in watched("latent_classifier", settings, "out", run):
        if step.step == 6:
            break
    for resume in (False, True):
        best = recipes.load("out/best.safetensors")
        assert (best.record["step"], best.record["validation"]["loss"]) == (6, 1.0)
        found = {k: v.half() for k, v in best.model.state_dict().items()}
        assert tiny.same(found, ema[6])
        if not resume:
            run = noting(recipes.train("latent_classifier", settings, **how, resume=True))
            for _ in watched("latent_classifier", settings, "out", run):
                pass
    assert now == [1, 2, 3, 4, 5, 6, 6, 7, 8]


def test_test_digits_choose_nothing():
    """They are measured under their own name, and no best is kept."""
    for _ in watched("vae", settings_of("vae", held_out="0"), "out"):
        pass
    assert [row[0] for row in read_rows("out/test.csv")] == MEASURED
    assert list(tiny.scalars("out")["loss/test"]) == MEASURED
    assert not Path("out/best.safetensors").exists()
    assert not Path("out/validation.csv").exists()


def test_nothing_to_measure_on_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.delenv("MNISTLIB_DATA")
    with pytest.raises(InputError, match="set held_out to 500"):
        next(watched("vae", settings_of("vae", held_out="0"), "out"))
    assert not Path("out").exists()


# ---- watching changes nothing, and survives a cut ------------------------------------------


@pytest.mark.parametrize("name", MODES)
def test_watched_or_not_the_weights_are_the_same(name):
    """The whole state: weights, averages, optimiser. And the caller's random numbers."""
    settings = settings_of(name)
    for _ in recipes.train(name, settings, profile="smoke", out="alone"):
        pass
    states = []
    for step in watched(name, settings, "watched"):
        if isinstance(step, TrainStep):
            states.append((bytes(torch.get_rng_state()), str(np.random.get_state())))
            assert step.model.training
            assert not step.ema.training
    assert len(states) == STEPS
    assert len(set(states)) == 1
    assert tiny.same(state("alone"), state("watched"))
    files = (f"{name}.safetensors", "journal.csv")
    results = [recipes.load(Path(out) / files[0]) for out in ("alone", "watched")]
    assert tiny.same(*(result.model.state_dict() for result in results))
    journals = [
        [row[:2] for row in read_rows(Path(out) / files[1])] for out in ("alone", "watched")
    ]
    assert journals[0] == journals[1]


class Killed(Exception):
    """Stands for SIGKILL at a chosen moment; test_cli.py sends the real one."""


@pytest.mark.parametrize(
    ("method", "last"), [("log", 5), ("log", 6), ("log", 7), ("measure", 6), ("measure", 8)]
)
def test_each_step_stands_once_after_a_cut(monkeypatch, method, last):
    """Cut where the state is behind the logs, or ahead of them: saved, and not yet measured."""
    name = "latent_classifier"
    settings = settings_of(name)
    *_, _ = watched(name, settings, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(watch._Watcher, method, killed_at(last, getattr(watch._Watcher, method)))
        with pytest.raises(Killed):
            list(watched(name, settings, "cut"))
    *_, _ = watched(name, settings, "cut", resume=True)
    for file in ("journal.csv", "validation.csv"):
        whole, resumed = (
            [row[:2] for row in read_rows(f"{out}/{file}")] for out in ("whole", "cut")
        )
        assert whole == resumed
    assert tiny.scalars("whole") == tiny.scalars("cut")
    assert tiny.same(state("whole"), state("cut"))
    best = [recipes.load(f"{out}/best.safetensors") for out in ("whole", "cut")]
    assert best[0].record["step"] == best[1].record["step"]
    assert tiny.same(*(result.model.state_dict() for result in best))


def test_the_log_is_on_disk_before_the_next_step_begins(monkeypatch):
    """However slow the disk, or a kill would lose steps that the saved state has behind it."""
    write = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", lambda *args: (time.sleep(0.05), write(*args)))
    for step in watched("latent_classifier", settings_of("latent_classifier"), "out"):
        if step.step == 4:  # measured was 3
            assert list(tiny.scalars("out")["loss/training"]) == [1, 2, 3, 4]
            break


def killed_at(last, method):
    """Return a method of the watcher that does not survive a step."""

    def until(self, step):
        if step.step == last:
            raise Killed
        method(self, step)

    return until
