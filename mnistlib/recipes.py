"""Every named training run, as a function of a profile.

``train_or_load(name)`` is all that a chapter calls. Profiles: ``smoke`` trains a tiny model in
seconds, ``read`` loads the shipped weights, ``full`` trains completely and can be resumed.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from mnistlib import checkpoints
from mnistlib.configs import (
    ClassifierSettings,
    DiffusionSettings,
    FeatureSettings,
    JointSettings,
    LatentSettings,
    PromptSettings,
    SceneVaeSettings,
    Settings,
    VaeSettings,
)
from mnistlib.data import write_atomically
from mnistlib.journal import Journal
from mnistlib.registry import RECIPES, Recipe
from mnistlib.settings import as_json, check_unchanged, from_dict, override
from mnistlib.sources import Data, described, learnt, unseen
from mnistlib.train import TrainStep, fit, pick_device, used_precision
from mnistlib.trained import Trained, balanced_labels, denoising, sample, sample_in_batches
from mnistlib.types import InputError
from mnistlib.unet import UNet
from mnistlib.vae import Vae

__all__ = [
    "PROFILES",
    "RECIPES",
    "ClassifierSettings",
    "DiffusionSettings",
    "FeatureSettings",
    "JointSettings",
    "LatentSettings",
    "PromptSettings",
    "Recipe",
    "SceneVaeSettings",
    "Trained",
    "VaeSettings",
    "autoencoder_of",
    "balanced_labels",
    "begin",
    "choose_profile",
    "denoising",
    "find",
    "is_shipped",
    "load",
    "sample",
    "sample_in_batches",
    "settings_of",
    "shipped_path",
    "train",
    "train_or_load",
    "unseen",
]


PROFILES = ("smoke", "read", "full")
WEIGHTS = Path(__file__).parent / "weights"


def choose_profile(profile: str | None = None) -> str:
    """The argument, else ``$MNISTLIB_PROFILE``, else ``full`` with CUDA and ``read`` without.

    Raises:
        InputError: the profile is unknown.
    """
    default = "full" if torch.cuda.is_available() else "read"
    chosen = profile or os.environ.get("MNISTLIB_PROFILE") or default
    if chosen not in PROFILES:
        raise InputError(f"unknown profile {chosen!r}; choose one of {', '.join(PROFILES)}")
    return chosen


def settings_of(name: str, profile: str, changes: dict[str, str] | None = None) -> Settings:
    """The settings of a recipe in a profile, with ``changes`` given as text applied."""
    recipe = _recipe(name)
    return override(recipe.smoke if profile == "smoke" else recipe.full, changes or {})


def train_or_load(name: str, profile: str | None = None) -> Trained:
    """The model of a recipe: trained now (``smoke``, ``full``) or loaded (``read``).

    A ``full`` training keeps its state and result under ``runs/NAME`` of the working directory,
    resumes where it was cut, and loads the result once it is there.

    Raises:
        InputError: unknown name or profile, or a damaged file.
    """
    _recipe(name)
    profile = choose_profile(profile)
    if profile == "read":
        return find(name)
    if profile == "smoke":
        *_, trained = train(name, settings_of(name, "smoke"), profile="smoke")
        return trained
    out = Path("runs") / name
    if (out / f"{name}.safetensors").is_file():
        return load(out / f"{name}.safetensors")
    resume = (out / "state.safetensors").is_file()
    *_, trained = train(name, settings_of(name, "full"), profile="full", out=out, resume=resume)
    return trained


def find(source: str) -> Trained:
    """A model that was trained before: a recipe's shipped weights, or a .safetensors file."""
    if source.endswith(".safetensors"):
        return load(source)
    _recipe(source)
    return load(shipped_path(source))


def load(path: str | Path) -> Trained:
    """Rebuild a trained model from its file, and its autoencoder from the one it names.

    Raises:
        InputError: a file is missing, damaged, foreign or of an older version, or the autoencoder
            is not the one that the model was trained with.
    """
    path = Path(path)
    if path.parent == WEIGHTS:
        _check_manifest(path)
    checkpoint = checkpoints.load(path)
    recipe = _recipe(checkpoint.record.get("recipe", "of no name"))
    try:
        settings = from_dict(type(recipe.full), checkpoint.settings)
    except KeyError as e:
        raise InputError(f"{path} lacks the setting {e}: an older version wrote it") from e
    except TypeError as e:
        raise InputError(f"{path} does not fit this version of the library ({e})") from e
    before = autoencoder_of(settings)
    if before is not None and before.record["sha256"] != checkpoint.record.get("vae"):
        raise InputError(f"{path} was trained with another {settings.vae}; train it again")
    vae = None if before is None else before.model
    return Trained(checkpoint.model, settings, checkpoint.record, vae)


def train(
    name: str,
    settings: Settings,
    *,
    profile: str = "full",
    out: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
) -> Iterator[TrainStep | Trained]:
    """Run a recipe: yields every ``TrainStep``, and last the ``Trained`` model, judged and saved.

    Args:
        name: a key of ``RECIPES``.
        settings: see ``settings_of``.
        profile: "smoke" takes the data of a named root or the small set; "full" the full MNIST.
            A recipe of your own pictures takes those of the ``folder`` in its settings.
        out: folder for ``state.safetensors``, ``journal.csv``, snapshots ``step_00050.safetensors``
            and the result ``NAME.safetensors``; None keeps everything in memory.
        resume: go on from the state in ``out``.
        init: a checkpoint of the same network, whose weights the training starts from; where it
            knows no classes, ``name`` may be its class-conditional counterpart.
    """
    recipe = _recipe(name)
    before = None if init is None else load(init)
    began = {}
    if before is not None:
        cost = {what: before.spent(what) for what in ("images_seen", "seconds")}
        began["started_from"] = {"sha256": before.record["sha256"]} | cost
    digits, test = learnt(settings, profile)
    autoencoder = autoencoder_of(settings)
    vae = None if autoencoder is None else autoencoder.model.to(pick_device())
    inherited = {} if autoencoder is None else {"vae": autoencoder.record["sha256"]}
    network, loss, batch_at = begin(name, settings, digits, vae)
    if before is not None:
        _start_from(network, before, init)
    network = network.to(pick_device())
    out = None if out is None else Path(out)
    state = None if out is None else out / "state.safetensors"
    if out is not None and resume and (out / "settings.json").is_file():
        check_unchanged(settings, out / "settings.json")
    diffusion = isinstance(settings, DiffusionSettings)
    milestones = {*settings.snapshots, settings.train.steps} if diffusion else set()
    made_with = checkpoints.provenance()
    first, journal = None, Journal(None if out is None else out / "journal.csv")
    for step in fit(network, loss, batch_at, settings.train, state=state, resume=resume):
        if first is None:
            first = step.step
            journal.resume(first)
            if out is not None and not resume:
                write_atomically(out / "settings.json", as_json(settings).encode())
        journal.add(step.step, step.loss)
        if out is not None and step.step in milestones:
            seen = step.step * settings.batch_size
            made_at = {"recipe": name, "step": step.step, "images_seen": seen}
            made_at |= {"seconds": round(journal.seconds, 1)} | inherited | began
            path = out / f"step_{step.step:05d}.safetensors"
            checkpoints.save(path, step.ema, asdict(settings), made_at)
        yield step
    model = checkpoints.round_to_half(step.ema)
    record = made_with | inherited | began
    record |= {
        "recipe": name,
        "profile": profile,
        "data": described(digits),
        "seed": settings.train.seed,
        "device": str(device := next(network.parameters()).device),
        "precision": used_precision(device, settings.train.precision),
        "seconds": round(journal.seconds, 1),
        "resumed_at": first,
        "images_seen": settings.train.steps * settings.batch_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "losses": journal.losses(),
    }
    trained = Trained(model, settings, record, vae)
    record["metrics"] = recipe.judge(trained, digits, test, find)
    if out is not None:
        checkpoints.save(out / f"{name}.safetensors", model, asdict(settings), record)
    yield trained


def begin(
    name: str, settings: Settings, digits: Data, vae: Vae | None = None
) -> tuple[nn.Module, Callable, Callable]:
    """What ``fit`` needs to start a recipe: the fresh network, its loss and its batches.

    The network depends on the seed alone; the caller's random state stays as it was.
    """
    recipe = _recipe(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.train.seed)
        network = recipe.network(settings).to(memory_format=torch.channels_last)
    return network, *recipe.job(settings, digits, vae)


def autoencoder_of(settings: Settings) -> Trained | None:
    """The trained autoencoder that the settings name, if any."""
    source = getattr(settings, "vae", "")
    if not source:
        return None
    before = find(source)
    if not isinstance(before.model, Vae):
        raise InputError(f"{source} is not an autoencoder; name one with vae")
    if "metrics" not in before.record:
        raise InputError(f"the latents of {source} were not measured; name the finished file")
    return before


def _start_from(network: nn.Module, before: Trained, path: str | Path) -> None:
    """Give a fresh network the weights of an earlier training, which may have known no classes.

    Then every label starts with an embedding of zeros, and says nothing yet.
    """
    ours, theirs = network.config, before.model.config
    learns_classes = isinstance(network, UNet) and replace(ours, classes=0) == theirs != ours
    if ours != theirs and not learns_classes:
        raise InputError(f"{path} holds another network; init needs one of the same settings")
    network.load_state_dict(before.model.state_dict(), strict=not learns_classes)
    if learns_classes:
        nn.init.zeros_(network.label.weight)


def shipped_path(name: str) -> Path:
    """Where the shipped weights of a recipe are."""
    return WEIGHTS / f"{name}.safetensors"


def is_shipped(name: str) -> bool:
    """Whether the manifest of the shipped weights lists this recipe."""
    return f"{name}.safetensors" in (WEIGHTS / "SHA256SUMS").read_text().split()


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RECIPES)}"
        raise InputError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]


def _check_manifest(path: Path) -> None:
    """Refuse a shipped file that is not the one that was shipped."""
    if not path.is_file():
        raise InputError(f"no shipped weights for {path.stem!r}; train them with profile full")
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    wanted = {name: digest for digest, name in (line.split() for line in lines)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted.get(path.name):
        raise InputError(f"{path} is not the file that was shipped; install the package again")
