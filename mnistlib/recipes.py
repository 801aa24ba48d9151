"""Every named training run, as a function of a profile.

``train_or_load(name)`` is all that a chapter calls. Profiles: ``smoke`` trains a tiny model in
seconds, ``read`` loads the shipped weights, ``full`` trains completely and can be resumed.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib import checkpoints
from mnistlib.classifier import DigitFeatures, DigitFeaturesConfig
from mnistlib.data import (
    Digits,
    batch_indices,
    generator_for,
    mnist,
    named_root,
    to_images,
    write_atomically,
)
from mnistlib.journal import Journal
from mnistlib.metrics import accuracy, feature_statistics, features_of, frechet_to
from mnistlib.objective import NoisyBatch, Predicts, Weighting, as_eps, diffusion_loss
from mnistlib.samplers import draw_noise, make_sampler
from mnistlib.schedules import NoiseSchedule, make_schedule, make_times, uniform_times
from mnistlib.settings import flat, from_dict, override
from mnistlib.train import TrainConfig, TrainStep, fit, pick_device
from mnistlib.types import Denoiser, InputError
from mnistlib.unet import UNet, UNetConfig

__all__ = [
    "PROFILES",
    "RECIPES",
    "DiffusionSettings",
    "FeatureSettings",
    "Trained",
    "choose_profile",
    "load",
    "sample",
    "sample_in_batches",
    "settings_of",
    "shipped_path",
    "train",
    "train_or_load",
]


PROFILES = ("smoke", "read", "full")
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of ``digit_features``.

    Attributes:
        shift: largest random shift of a training image in pixels, either way.
        judged: how many training digits the reference statistics are measured on.
    """

    model: DigitFeaturesConfig = DigitFeaturesConfig()
    train: TrainConfig = TrainConfig(steps=3800, lr=3e-3, warmup=200, weight_decay=0.05, ema=0.998)
    batch_size: int = 128
    shift: int = 2
    judged: int = 60_000


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of a diffusion model of pixels.

    Attributes:
        schedule, T: the noise schedule (a key of ``SCHEDULES``) and its number of levels.
        predicts, weighting: what the network answers and how its error counts.
        judged: how many samples the finished model is judged with, at ``judge_steps`` ddim steps.
        snapshots: steps after which the averaged model is kept, besides the last.
    """

    model: UNetConfig = UNetConfig(widths=(16, 32, 64, 128), attention=(2, 3))
    train: TrainConfig = TrainConfig(
        steps=12_500, lr=2e-3, warmup=300, ema=0.9995, checkpoint_every=250
    )
    batch_size: int = 128
    schedule: str = "cosine"
    T: int = 1000
    predicts: Predicts = "v"
    weighting: Weighting = "simple"
    judged: int = 10_000
    judge_steps: int = 50
    snapshots: tuple[int, ...] = (1, 50, 100, 200, 400, 800, 1600, 3200, 6400, 7000)

    def __post_init__(self) -> None:
        uniform_times(self.T, self.judge_steps)  # refused now, not after the training
        if self.judged < 2:
            raise InputError(f"judged must be at least 2 samples, got {self.judged}")


Settings = FeatureSettings | DiffusionSettings


class Trained(NamedTuple):
    """A trained model with what it was trained on.

    Attributes:
        model: the network, in eval mode.
        settings: the settings of its recipe.
        record: provenance and measured metrics.
    """

    model: nn.Module
    settings: Settings
    record: dict[str, Any]

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of a diffusion model."""
        return make_schedule(self.settings.schedule, self.settings.T)

    @property
    def denoise(self) -> Denoiser:
        """The network of a diffusion model as a function (x_t, t) -> eps_hat, without gradients."""
        return torch.no_grad()(as_eps(self.model, self.schedule, self.settings.predicts))


class Recipe(NamedTuple):
    """How to make one model.

    Attributes:
        full, smoke: the settings of the two profiles that train.
        network: settings -> untrained network.
        job: (settings, training digits) -> the loss and the batches that ``fit`` needs.
        judge: (trained, training digits, test digits or None) -> metrics.
    """

    full: Settings
    smoke: Settings
    network: Callable[[Any], nn.Module]
    job: Callable[[Any, Digits], tuple[Callable, Callable]]
    judge: Callable[[Trained, Digits, Digits | None], dict[str, Any]]


# ---- digit_features ------------------------------------------------------------------------


class LabelledBatch(NamedTuple):
    """Images (B, 1, 32, 32) and their labels (B,)."""

    images: Tensor
    labels: Tensor


def _shifted(images: Tensor, offsets: Tensor, shift: int) -> Tensor:
    """Move each image (B, C, H, W) by its offset (B, 2) in -shift..shift; black comes in."""
    B, C, H, W = images.shape
    padded = F.pad(images, [shift] * 4, value=-1.0)
    rows = (
        (torch.arange(H) + shift + offsets[:, :1]).view(B, 1, H, 1).expand(B, C, H, W + 2 * shift)
    )
    columns = (torch.arange(W) + shift + offsets[:, 1:]).view(B, 1, 1, W).expand(B, C, H, W)
    return padded.gather(2, rows).gather(3, columns)


def _features_job(settings: FeatureSettings, digits: Digits):
    indices = batch_indices(len(digits.labels), settings.batch_size)

    def batch_at(seed: int, step: int) -> LabelledBatch:
        i = indices(seed, step)
        s = settings.shift
        offsets = torch.randint(-s, s + 1, (len(i), 2), generator=generator_for(seed, step))
        return LabelledBatch(_shifted(to_images(digits.images[i]), offsets, s), digits.labels[i])

    def loss(model: nn.Module, batch: LabelledBatch) -> Tensor:
        return F.cross_entropy(model(batch.images).float(), batch.labels)

    return loss, batch_at


def _judge_features(trained: Trained, digits: Digits, test: Digits | None) -> dict[str, Any]:
    """Measure the reference statistics, then the accuracy and the floor of real test digits."""
    network = trained.model
    known = digits.images[: trained.settings.judged]
    mean, cov = feature_statistics(features_of(network, to_images(known)))
    network.reference_mean.copy_(mean)
    network.reference_cov.copy_(cov)
    metrics: dict[str, Any] = {"reference_digits": len(known)}
    if test is not None:
        images = to_images(test.images)
        metrics["test_accuracy"] = accuracy(network, images, test.labels)
        metrics["floor"] = frechet_to((mean, cov), images, network)
        metrics["floor_digits"] = len(images)
    return metrics


# ---- diffusion of pixels -------------------------------------------------------------------


def _diffusion_job(settings: DiffusionSettings, digits: Digits):
    schedule = make_schedule(settings.schedule, settings.T)
    indices = batch_indices(len(digits.labels), settings.batch_size)

    def batch_at(seed: int, step: int) -> NoisyBatch:
        x_0 = to_images(digits.images[indices(seed, step)])
        generator = generator_for(seed, step)
        t = torch.randint(1, schedule.T + 1, (len(x_0),), generator=generator)
        return NoisyBatch(x_0, t, torch.randn(x_0.shape, generator=generator))

    def loss(model: nn.Module, batch: NoisyBatch) -> Tensor:
        return diffusion_loss(model, batch, schedule, settings.predicts, settings.weighting)

    return loss, batch_at


def _judge_diffusion(trained: Trained, digits: Digits, test: Digits | None) -> dict[str, Any]:
    """Frechet distance of fresh samples to the 60,000, in multiples of the floor as well.

    Fresh noise is drawn in every step (eta 1). What it is worth is measured on a tenth of the
    samples: ``compared`` sets them beside those that the same first noises give without it.
    """
    s, eye = trained.settings, load(shipped_path("digit_features"))
    reference = (eye.model.reference_mean, eye.model.reference_cov)

    def distance(images: Tensor) -> float:
        return frechet_to(reference, images, eye.model)

    few = max(2, s.judged // 10)
    noisy = sample_in_batches(trained, s.judged, s.judge_steps, seed=1, eta=1.0)
    still = sample_in_batches(trained, few, s.judge_steps, seed=1, eta=0.0)
    found = distance(noisy)
    return {
        "frechet": found,
        "times_floor": found / eye.record["metrics"]["floor"],
        "samples": s.judged,
        "sampler": f"ddim, {s.judge_steps} steps, eta 1",
        "compared": {"samples": few, "eta 1": distance(noisy[:few]), "eta 0": distance(still)},
    }


def sample_in_batches(
    trained: Trained, count: int, steps: int, *, batch_size: int = 100, **how: Any
) -> Tensor:
    """Draw ``count`` images: (count, 1, 32, 32), clipped to [-1, 1]; ``how`` is for ``sample``."""
    numbers = torch.arange(count).split(batch_size)
    return torch.cat([sample(trained, part.tolist(), steps, **how) for part in numbers])


def sample(
    trained: Trained,
    numbers: Sequence[int],
    steps: int,
    *,
    seed: int = 0,
    eta: float = 0.0,
    sampler: str = "ddim",
    grid: str = "uniform",
) -> Tensor:
    """Draw the images with the given numbers: (B, 1, 32, 32), clipped to [-1, 1].

    Image i is a function of (seed, i) alone, so any batches give the same pictures up to rounding.
    ``sampler`` is a key of ``SAMPLERS``, ``grid`` of ``GRIDS``; ``eta`` is for ddim.
    """
    generators = [generator_for(seed, i) for i in numbers]
    x_T = draw_noise((len(numbers), 1, 32, 32), generator=generators)
    x_T = x_T.to(next(trained.model.parameters()).device)
    schedule, run = trained.schedule, make_sampler(sampler, eta)
    times = make_times(grid, schedule, steps)
    *_, last = run(trained.denoise, schedule, x_T, times, generator=generators)
    return last.x_t.cpu().clamp(-1, 1)


RECIPES: dict[str, Recipe] = {
    "digit_features": Recipe(
        full=FeatureSettings(),
        smoke=FeatureSettings(
            model=DigitFeaturesConfig(widths=(8, 16)),
            train=TrainConfig(steps=30, warmup=5, ema=0.9, checkpoint_every=10),
            batch_size=64,
            judged=1000,
        ),
        network=lambda s: DigitFeatures(s.model),
        job=_features_job,
        judge=_judge_features,
    ),
    "ddpm": Recipe(
        full=DiffusionSettings(),
        smoke=DiffusionSettings(
            model=UNetConfig(widths=(8, 16), attention=(1,), heads=2, time_dim=16),
            train=TrainConfig(steps=20, lr=2e-3, warmup=5, ema=0.9, checkpoint_every=10),
            batch_size=32,
            judged=64,
            judge_steps=5,
        ),
        network=lambda s: UNet(s.model),
        job=_diffusion_job,
        judge=_judge_diffusion,
    ),
}


# ---- training and loading ------------------------------------------------------------------


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
        return load(shipped_path(name))
    if profile == "smoke":
        return _consume(train(name, settings_of(name, "smoke"), profile="smoke"))
    out = Path("runs") / name
    if (out / f"{name}.safetensors").is_file():
        return load(out / f"{name}.safetensors")
    state = out / "state.safetensors"
    return _consume(
        train(name, settings_of(name, "full"), profile="full", out=out, resume=state.is_file())
    )


def load(path: str | Path) -> Trained:
    """Rebuild a trained model from its file alone."""
    path = Path(path)
    if path.parent == WEIGHTS:
        _check_manifest(path)
    checkpoint = checkpoints.load(path)
    recipe = _recipe(checkpoint.record.get("recipe", "of no name"))
    try:
        settings = from_dict(type(recipe.full), checkpoint.settings)
    except KeyError as e:
        raise InputError(f"{path} lacks the setting {e}: an older version wrote it") from e
    return Trained(checkpoint.model, settings, checkpoint.record)


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
        out: folder for ``state.safetensors``, ``journal.csv``, snapshots ``step_00050.safetensors``
            and the result ``NAME.safetensors``; None keeps everything in memory.
        resume: go on from the state in ``out``.
        init: a checkpoint of the same network, whose weights the training starts from.
    """
    recipe = _recipe(name)
    before = None if init is None else load(init)
    digits, test = _data(profile)
    loss, batch_at = recipe.job(settings, digits)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(settings.train.seed)
        network = recipe.network(settings)
    if before is not None:
        _start_from(network, before, init)
    network = network.to(pick_device(), memory_format=torch.channels_last)
    out = None if out is None else Path(out)
    state = None if out is None else out / "state.safetensors"
    if out is not None and resume:
        _check_settings(out, settings)
    diffusion = isinstance(settings, DiffusionSettings)
    milestones = {*settings.snapshots, settings.train.steps} if diffusion else set()
    made_with = checkpoints.provenance()
    first, journal = None, Journal(None if out is None else out / "journal.csv")
    for step in fit(network, loss, batch_at, settings.train, state=state, resume=resume):
        if first is None:
            first = step.step
            journal.resume(first)
            if out is not None and not resume:
                write_atomically(out / "settings.json", _as_json(settings).encode())
        journal.add(step.step, step.loss)
        if out is not None and step.step in milestones:
            made_at = {"recipe": name, "step": step.step}
            path = out / f"step_{step.step:05d}.safetensors"
            checkpoints.save(path, step.ema, asdict(settings), made_at)
        yield step
    model = checkpoints.round_to_half(step.ema)
    record = made_with | {
        "recipe": name,
        "profile": profile,
        "data": {"source": digits.source, "sha256": digits.sha256(), "digits": len(digits.labels)},
        "seed": settings.train.seed,
        "device": str(next(network.parameters()).device),
        "seconds": round(journal.seconds, 1),
        "resumed_at": first,
        "images_seen": settings.train.steps * settings.batch_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "losses": journal.losses(),
    }
    if before is not None:
        record["started_from"] = {k: before.record[k] for k in ("sha256", "images_seen", "seconds")}
    record["metrics"] = recipe.judge(Trained(model, settings, record), digits, test)
    trained = Trained(model, settings, record)
    if out is not None:
        checkpoints.save(out / f"{name}.safetensors", model, asdict(settings), record)
    yield trained


def _start_from(network: nn.Module, before: Trained, path: str | Path) -> None:
    """Give a fresh network the weights of an earlier training."""
    if type(before.model) is not type(network) or before.model.config != network.config:
        raise InputError(f"{path} holds another network; init needs one of the same settings")
    network.load_state_dict(before.model.state_dict())


def _check_settings(folder: Path, settings: Settings) -> None:
    """Refuse to resume with settings other than those written down beside the state."""
    path = folder / "settings.json"
    if path.is_file():
        found, wanted = json.loads(path.read_text()), json.loads(_as_json(settings))
        changed = [k for k in wanted if k != "checkpoint_every" and found.get(k) != wanted[k]]
        if changed:
            was = ", ".join(f"{k}={found.get(k)}" for k in changed)
            raise InputError(f"{folder} was trained with {was}; use the same to resume")


def _as_json(settings: Settings) -> str:
    return json.dumps(flat(settings), indent=1)


def shipped_path(name: str) -> Path:
    """Where the shipped weights of a recipe are."""
    return WEIGHTS / f"{name}.safetensors"


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RECIPES)}"
        raise InputError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]


def _data(profile: str) -> tuple[Digits, Digits | None]:
    """Training digits, and the test digits where they can be had."""
    if profile == "smoke" and named_root() is None:
        return mnist(source="small"), None
    digits = mnist(source="auto" if profile == "smoke" else "full")
    return digits, mnist(train=False)


def _consume(run: Iterator) -> Trained:
    for last in run:  # noqa: B007
        pass
    return last


def _check_manifest(path: Path) -> None:
    """Refuse a shipped file that is not the one that was shipped."""
    if not path.is_file():
        raise InputError(f"no shipped weights for {path.stem!r}; train them with profile full")
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    wanted = {name: digest for digest, name in (line.split() for line in lines)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted.get(path.name):
        raise InputError(f"{path} is not the file that was shipped; install the package again")
