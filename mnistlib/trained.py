"""What comes out of a training: a model that draws.

Legend: B images of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnistlib import latent
from mnistlib.configs import Settings
from mnistlib.data import generator_for
from mnistlib.guidance import bind, cfg
from mnistlib.objective import as_eps
from mnistlib.samplers import draw_noise, make_sampler
from mnistlib.schedules import NoiseSchedule, make_schedule, make_times
from mnistlib.text_to_image import TextToImage
from mnistlib.types import Cond, Denoiser, InputError, Step
from mnistlib.vae import Vae

__all__ = [
    "Trained",
    "balanced_labels",
    "denoising",
    "sample",
    "sample_in_batches",
    "steered",
]


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

    def to(self, device: torch.device) -> "Trained":
        """The same on a device, the autoencoder too."""
        vae = None if self.vae is None else self.vae.to(device)
        return self._replace(model=self.model.to(device), vae=vae)

    def spent(self, what: str) -> float:
        """The ``images_seen`` or ``seconds`` of the training and of all that it started from."""
        return self.record[what] + self.record.get("started_from", {what: 0})[what]

    @property
    def reads(self) -> bool:
        """Whether the model reads prompts."""
        return isinstance(self.model, TextToImage)

    def guided(self, labels: Tensor, scale: float = 1.0) -> Denoiser:
        """The same, told the classes (B,) and guided by ``cfg``; one evaluation at scale 1."""
        nobody = torch.full_like(labels, self.model.null)
        return self._told(self.model.of_class(labels), self.model.of_class(nobody), scale)

    @torch.no_grad()
    def prompted(self, prompts: Sequence[str], scale: float = 1.0, negative: str = "") -> Denoiser:
        """The same, told prompts, one for each image or one for all, and guided by ``cfg``.

        A negative prompt takes the place of the empty one: guidance leads away from it.
        """
        model = self.model
        return self._told(model.of_prompts(prompts), model.of_prompts([negative]), scale)

    def _told(self, wanted: Cond, otherwise: Cond, scale: float) -> Denoiser:
        cond, uncond = (
            as_eps(bind(self.model, cond), self.schedule, self.settings.predicts)
            for cond in (wanted, otherwise)
        )
        return torch.no_grad()(cond if scale == 1 else cfg(cond, uncond, scale))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a diffusion model denoises."""
        channels = self.settings.model.in_channels
        if self.vae is None:
            return channels, 32, 32
        return latent.latent_shape(self.vae, getattr(self.settings, "size", 32))

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
    **told: Any,
) -> Iterator[Step]:
    """The steps that draw the images with the given numbers, as the model sees them.

    Image i is a function of (seed, i), of what it is told and of the scale alone, so any batches
    give the same pictures up to rounding. ``trained.pictures`` makes images of what a step holds.

    Args:
        trained: a diffusion model of images or latents.
        numbers: which images.
        steps: of the sampler.
        eta: fresh noise of each step, for ddim.
        sampler, grid: keys of ``SAMPLERS`` and of ``GRIDS``.
        told: what ``steered`` takes besides.

    Raises:
        InputError: as ``steered``, or an unusable number.
    """
    device = next(trained.model.parameters()).device
    denoise = steered(trained, numbers, **told)
    generators = [generator_for(seed, i) for i in numbers]
    x_T = draw_noise((len(numbers), *trained.shape), generator=generators).to(device)
    schedule, run = trained.schedule, make_sampler(sampler, eta)
    return run(denoise, schedule, x_T, make_times(grid, schedule, steps), generator=generators)


def steered(
    trained: Trained,
    numbers: Sequence[int],
    *,
    labels: Tensor | None = None,
    prompts: Sequence[str] | None = None,
    negative: str = "",
    scale: float = 1.0,
) -> Denoiser:
    """The denoiser that draws what is asked for.

    Args:
        numbers: which images.
        labels: (B,) the class of each image, for a model that knows classes; by default
            ``balanced_labels``.
        prompts: for a model that reads, one for each image or one for all; by default the empty
            one.
        negative: the prompt that guidance leads away from.
        scale: of classifier-free guidance; 1 is the conditional model itself.

    Raises:
        InputError: the model cannot be told this, or no word of a prompt is known.
    """
    device = next(trained.model.parameters()).device
    if not trained.reads and (prompts is not None or negative):
        raise InputError("this model reads no prompts; name one that does, such as text_to_image")
    if not trained.classes and labels is not None:
        raise InputError("this model knows no classes; leave labels out")
    if trained.reads:
        return trained.prompted([""] if prompts is None else prompts, scale, negative)
    if trained.classes:
        labels = balanced_labels(numbers, trained.classes) if labels is None else labels
        return trained.guided(labels.to(device), scale)
    if scale != 1:
        raise InputError("this model is told nothing that guidance could stress; leave scale out")
    return trained.denoise


def sample(trained: Trained, numbers: Sequence[int], steps: int, **how: Any) -> Tensor:
    """What ``denoising``, whose arguments it takes, ends with: (B, C, 32, 32) in [-1, 1]."""
    *_, last = denoising(trained, numbers, steps, **how)
    return trained.pictures(last.x_t)


def sample_in_batches(
    trained: Trained,
    count: int,
    steps: int,
    *,
    batch_size: int = 100,
    prompts: Sequence[str] | None = None,
    **how: Any,
) -> Tensor:
    """``sample`` for the first ``count`` numbers: (count, C, 32, 32), classes balanced.

    With ``prompts``, there must be one for each.

    Raises:
        InputError: there is another number of prompts, or as ``denoising``.
    """
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != count):
        raise InputError(f"give a list of {count} prompts, one for each image")
    images = []
    for part in torch.arange(count).split(batch_size):
        numbers = part.tolist()
        if prompts is not None:
            how["prompts"] = [prompts[i] for i in numbers]
        images.append(sample(trained, numbers, steps, **how))
    return torch.cat(images)
