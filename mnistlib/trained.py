"""The settings of every training run, and what comes out of it: a model that draws.

Legend: B images of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnistlib import latent
from mnistlib.classifier import DigitFeaturesConfig, NoisyClassifierConfig
from mnistlib.data import generator_for
from mnistlib.guidance import bind, cfg
from mnistlib.objective import Predicts, Weighting, as_eps
from mnistlib.samplers import draw_noise, make_sampler
from mnistlib.schedules import NoiseSchedule, make_schedule, make_times, uniform_times
from mnistlib.settings import added
from mnistlib.train import TrainConfig
from mnistlib.types import Denoiser, InputError, Step
from mnistlib.unet import UNetConfig
from mnistlib.vae import Vae, VaeConfig

__all__ = [
    "ClassifierSettings",
    "DiffusionSettings",
    "FeatureSettings",
    "JointSettings",
    "LatentSettings",
    "Settings",
    "Trained",
    "VaeSettings",
    "balanced_labels",
    "denoising",
    "sample",
    "sample_in_batches",
]


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of ``digit_features``.

    Attributes:
        shift: largest random shift of a training image in pixels, either way.
        judged: how many training digits the reference statistics are measured on.
        held_out: how many of the last training digits are kept from the training; 0 trains on
            all of them, see ``recipes.unseen``.
    """

    model: DigitFeaturesConfig = DigitFeaturesConfig()
    train: TrainConfig = TrainConfig(steps=3800, lr=3e-3, warmup=200, weight_decay=0.05, ema=0.998)
    batch_size: int = 128
    shift: int = 2
    judged: int = 60_000
    held_out: int = added(0)


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of a diffusion model of pixels.

    Attributes:
        schedule, T: the noise schedule (a key of ``SCHEDULES``) and its number of levels.
        predicts, weighting: what the network answers and how its error counts.
        judged: how many samples the finished model is judged with, at ``judge_steps`` ddim steps.
        snapshots: steps after which the averaged model is kept, besides the last.
        label_dropout: share of the labels that are forgotten, where the model knows classes.
        held_out: as in ``FeatureSettings``.
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
    label_dropout: float = added(0.1)
    held_out: int = added(0)

    def __post_init__(self) -> None:
        uniform_times(self.T, self.judge_steps)  # refused now, not after the training
        if self.judged < 2:
            raise InputError(f"judged must be at least 2 samples, got {self.judged}")
        if not 0 <= self.label_dropout <= 1:
            raise InputError(f"label_dropout must lie between 0 and 1, got {self.label_dropout}")


@dataclass(frozen=True)
class VaeSettings:
    """Settings of an autoencoder.

    Attributes:
        kl_weight: what a nat of the KL divergence costs, in summed squared error of the pixels.
        held_out: as in ``FeatureSettings``.
    """

    model: VaeConfig = VaeConfig()
    train: TrainConfig = TrainConfig(steps=2000, lr=2e-3, warmup=100, ema=0.998)
    batch_size: int = 128
    kl_weight: float = 0.05
    held_out: int = added(0)


@dataclass(frozen=True)
class LatentSettings(DiffusionSettings):
    """Settings of a diffusion model of latents.

    Attributes:
        vae: whose latents: a recipe (its shipped weights) or a .safetensors file.
    """

    vae: str = "vae"


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of a classifier of noisy images or latents.

    Attributes:
        schedule, T: the noise schedule, which must be that of the diffusion it shall guide.
        noisy: False trains on clean data alone (an ablation of the chapter on guidance).
        vae: whose latents, as in ``LatentSettings``; empty for images.
        held_out: as in ``FeatureSettings``.
    """

    model: NoisyClassifierConfig = NoisyClassifierConfig()
    train: TrainConfig = TrainConfig(steps=4000, lr=1e-3, warmup=200, weight_decay=0.05, ema=0.998)
    batch_size: int = 128
    schedule: str = "cosine"
    T: int = 1000
    noisy: bool = True
    vae: str = "vae"
    held_out: int = added(0)


@dataclass(frozen=True)
class JointSettings(LatentSettings):
    """Settings of the joint training of a latent diffusion and its classifier.

    Of the earlier modes it inherits the weights of one, reconstruction: the frozen autoencoder
    that ``vae`` names. The diffusion network and the classifier start from random weights, as they
    do where each is trained alone, so that the two ways can be compared.

    Attributes:
        classifier: the shape of the classifier.
        classifier_weight: its cross-entropy counts so much beside the diffusion loss.
    """

    classifier: NoisyClassifierConfig = NoisyClassifierConfig()
    classifier_weight: float = 0.1


Settings = FeatureSettings | DiffusionSettings | VaeSettings | ClassifierSettings


class Trained(NamedTuple):
    """A trained model with what it was trained on.

    Attributes:
        model: the network, in eval mode.
        settings: the settings of its recipe.
        record: provenance and measured metrics.
        vae: the autoencoder in whose latents the model lives; None for one that reads images.
    """

    model: nn.Module
    settings: Settings
    record: dict[str, Any]
    vae: Vae | None = None

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of a diffusion model."""
        return make_schedule(self.settings.schedule, self.settings.T)

    @property
    def classes(self) -> int:
        """How many classes a diffusion model can be told; 0 where it knows none."""
        return self.settings.model.classes

    @property
    def denoise(self) -> Denoiser:
        """The network of a diffusion model as a function (x_t, t) -> eps_hat, without gradients."""
        return torch.no_grad()(as_eps(self.model, self.schedule, self.settings.predicts))

    def guided(self, labels: Tensor, scale: float = 1.0) -> Denoiser:
        """The same, told the classes (B,) and guided by ``cfg``; one evaluation at scale 1."""
        predicts, nobody = self.settings.predicts, torch.full_like(labels, self.model.null)
        cond, uncond = (
            as_eps(bind(self.model, self.model.of_class(y)), self.schedule, predicts)
            for y in (labels, nobody)
        )
        return torch.no_grad()(cond if scale == 1 else cfg(cond, uncond, scale))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a diffusion model denoises."""
        channels = self.settings.model.in_channels
        return (channels, 32, 32) if self.vae is None else latent.latent_shape(self.vae)

    def pictures(self, x_0: Tensor) -> Tensor:
        """What the model draws (B, C, H, W) -> images on the CPU, clipped to [-1, 1]."""
        return x_0.cpu().clamp(-1, 1) if self.vae is None else latent.decode(self.vae, x_0)


def balanced_labels(numbers: Sequence[int], classes: int = 10) -> Tensor:
    """The class of each numbered image (B,): 0, 1, ..., round and round."""
    return torch.tensor([i % classes for i in numbers])


def denoising(
    trained: Trained,
    numbers: Sequence[int],
    steps: int,
    *,
    seed: int = 0,
    eta: float = 0.0,
    sampler: str = "ddim",
    grid: str = "uniform",
    labels: Tensor | None = None,
    scale: float = 1.0,
) -> Iterator[Step]:
    """The steps that draw the images with the given numbers, as the model sees them.

    Image i is a function of (seed, i), its label and the scale alone, so any batches give the same
    pictures up to rounding. ``trained.pictures`` makes images of what a step holds.

    Args:
        trained: a diffusion model of images or latents.
        numbers: which images.
        steps: of the sampler.
        eta: fresh noise of each step, for ddim.
        sampler, grid: keys of ``SAMPLERS`` and of ``GRIDS``.
        labels: (B,) the class of each image, for a model that knows classes; by default
            ``balanced_labels``.
        scale: of classifier-free guidance; 1 is the conditional model itself.

    Raises:
        InputError: labels or a scale for a model that knows no classes, or an unusable number.
    """
    device = next(trained.model.parameters()).device
    denoise = trained.denoise
    if trained.classes:
        labels = balanced_labels(numbers, trained.classes) if labels is None else labels
        denoise = trained.guided(labels.to(device), scale)
    elif labels is not None or scale != 1:
        raise InputError("this model knows no classes; leave labels and scale out")
    generators = [generator_for(seed, i) for i in numbers]
    x_T = draw_noise((len(numbers), *trained.shape), generator=generators).to(device)
    schedule, run = trained.schedule, make_sampler(sampler, eta)
    return run(denoise, schedule, x_T, make_times(grid, schedule, steps), generator=generators)


def sample(trained: Trained, numbers: Sequence[int], steps: int, **how: Any) -> Tensor:
    """What ``denoising``, whose arguments it takes, ends with: (B, C, 32, 32) in [-1, 1]."""
    *_, last = denoising(trained, numbers, steps, **how)
    return trained.pictures(last.x_t)


def sample_in_batches(
    trained: Trained, count: int, steps: int, *, batch_size: int = 100, **how: Any
) -> Tensor:
    """``sample`` for the first ``count`` numbers: (count, C, 32, 32), classes balanced."""
    numbers = torch.arange(count).split(batch_size)
    return torch.cat([sample(trained, part.tolist(), steps, **how) for part in numbers])
