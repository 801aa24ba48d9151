"""What each training run learns from, and how its result is judged.

A job turns settings and digits into the loss and the batches that ``fit`` needs; a judge measures
the finished model. Batches are functions of (seed, step). Legend: B images of a batch.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib import latent
from mnistlib.configs import ClassifierSettings, DiffusionSettings, FeatureSettings, JointSettings
from mnistlib.data import Digits, batch_indices, generator_for, to_images
from mnistlib.guidance import bind
from mnistlib.metrics import accuracy, feature_statistics, features_of, frechet_to
from mnistlib.objective import NoisyBatch, add_noise, diffusion_loss, drop_labels
from mnistlib.schedules import make_schedule
from mnistlib.train import moved
from mnistlib.trained import Trained, balanced_labels, sample_in_batches
from mnistlib.types import InputError
from mnistlib.vae import Vae

__all__ = [
    "LabelledBatch",
    "NoisyLabelledBatch",
    "accuracy_per_level",
    "distance",
    "fixed_batches",
    "held_out_loss",
]

Find = Callable[[str], Trained]
"""The earlier model of a name, see ``recipes.find``."""

GUIDED = (1.5, 2.0, 3.0)  # the scales at which class-conditional models are judged besides 1


class LabelledBatch(NamedTuple):
    """Images (B, 1, 32, 32) and their labels (B,)."""

    images: Tensor
    labels: Tensor


class NoisyLabelledBatch(NamedTuple):
    """A ``NoisyBatch`` with the labels (B,), and with what the network is told of them (B,)."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    labels: Tensor
    told: Tensor


# ---- digit_features ------------------------------------------------------------------------


def shifted(images: Tensor, offsets: Tensor, shift: int) -> Tensor:
    """Move each image (B, C, H, W) by its offset (B, 2) in -shift..shift; black comes in."""
    B, C, H, W = images.shape
    padded = F.pad(images, [shift] * 4, value=-1.0)
    rows = (
        (torch.arange(H) + shift + offsets[:, :1]).view(B, 1, H, 1).expand(B, C, H, W + 2 * shift)
    )
    columns = (torch.arange(W) + shift + offsets[:, 1:]).view(B, 1, 1, W).expand(B, C, H, W)
    return padded.gather(2, rows).gather(3, columns)


def features_job(settings: FeatureSettings, digits: Digits, vae: Vae | None = None):
    """Name the class of digits that are shifted a little."""
    indices, s = batch_indices(len(digits.labels), settings.batch_size), settings.shift
    if s < 0:
        raise InputError(f"shift must not be negative, got {s}")

    def batch_at(seed: int, step: int) -> LabelledBatch:
        i = indices(seed, step)
        offsets = torch.randint(-s, s + 1, (len(i), 2), generator=generator_for(seed, step))
        return LabelledBatch(shifted(to_images(digits.images[i]), offsets, s), digits.labels[i])

    def loss(model: nn.Module, batch: LabelledBatch) -> Tensor:
        return F.cross_entropy(model(batch.images).float(), batch.labels)

    return loss, batch_at


def judge_features(trained: Trained, digits: Digits, test: Digits | None, find: Find):
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


# ---- diffusion of pixels or latents --------------------------------------------------------


def diffusion_job(settings: DiffusionSettings, digits: Digits, vae: Vae | None = None):
    """Predict noise (or what ``predicts`` says) in images, or in latents where there is a vae."""
    schedule, classes = make_schedule(settings.schedule, settings.T), settings.model.classes
    batch_at = noisy_batches(settings, digits, vae, settings.label_dropout if classes else None)

    def loss(model: nn.Module, batch: NoisyBatch | NoisyLabelledBatch) -> Tensor:
        told = bind(model, model.of_class(batch.told)) if classes else model
        return diffusion_loss(
            told, NoisyBatch(*batch[:3]), schedule, settings.predicts, settings.weighting
        )

    return loss, batch_at


def noisy_batches(settings, digits: Digits, vae: Vae | None, dropout: float | None):
    """(seed, step) -> clean data, times and noise; with labels unless ``dropout`` is None.

    Latents are encoded once, here, and kept in memory.
    """
    latents = None if vae is None else latent.encode(vae, to_images(digits.images))
    indices = batch_indices(len(digits.labels), settings.batch_size)

    def batch_at(seed: int, step: int) -> NoisyBatch | NoisyLabelledBatch:
        i = indices(seed, step)
        x_0 = to_images(digits.images[i]) if latents is None else latents[i]
        generator = generator_for(seed, step)
        t = torch.randint(1, settings.T + 1, (len(x_0),), generator=generator)
        batch = NoisyBatch(x_0, t, torch.randn(x_0.shape, generator=generator))
        if dropout is None:
            return batch
        labels = digits.labels[i]
        told = drop_labels(labels, dropout, settings.model.classes, generator=generator)
        return NoisyLabelledBatch(*batch, labels, told)

    return batch_at


def judge_diffusion(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """Frechet distance of fresh samples to the 60,000, in multiples of the floor as well.

    Fresh noise is drawn in every step (``judge_eta``). What it is worth is measured on a tenth of
    the samples: ``compared`` sets them beside those that the same first noises give without it.
    A model that knows classes draws as many of each, unguided, and is judged by their accuracy
    too; ``guided`` sets a fifth of them beside as many at the scales ``GUIDED``.
    """
    s, eye = trained.settings, find("digit_features")
    few, some = max(2, s.judged // 10), max(2, s.judged // 5)

    def draw(count: int, **how: Any) -> Tensor:
        how |= {"seed": 1, "grid": s.judge_grid}
        return sample_in_batches(trained, count, s.judge_steps, **how)

    noisy = draw(s.judged, eta=s.judge_eta)
    metrics = _quality(noisy, trained.classes, eye)
    metrics["sampler"] = s.judged_by
    both = {f"eta {s.judge_eta:g}": noisy[:few], "eta 0": draw(few, eta=0.0)}
    distances = {name: distance(images, eye)["frechet"] for name, images in both.items()}
    metrics["compared"] = {"samples": few} | distances
    if trained.classes:
        drawn = {1.0: noisy[:some]} | {w: draw(some, eta=s.judge_eta, scale=w) for w in GUIDED}
        metrics["guided"] = {
            f"scale {w:g}": _quality(images, trained.classes, eye) for w, images in drawn.items()
        }
    if test is not None:
        metrics["test_loss"] = held_out_loss(trained, test)
    return metrics


def _quality(images: Tensor, classes: int, eye: Trained) -> dict[str, Any]:
    """Distance of samples and, where their classes go round, the share that the eye confirms."""
    metrics: dict[str, Any] = distance(images, eye) | {"samples": len(images)}
    if classes:
        labels = balanced_labels(range(len(images)), classes)
        metrics["accuracy"] = accuracy(eye.model, images, labels)
    return metrics


def distance(images: Tensor, eye: Trained) -> dict[str, float]:
    """Frechet distance of images (N, 1, 32, 32) to the 60,000, in multiples of the floor too."""
    reference = (eye.model.reference_mean, eye.model.reference_cov)
    distance = frechet_to(reference, images, eye.model)
    return {"frechet": distance, "times_floor": distance / eye.record["metrics"]["floor"]}


@torch.no_grad()
def held_out_loss(trained: Trained, unseen: Digits) -> float:
    """The mean diffusion loss over digits that a training did not see, the noise fixed."""
    loss, batch_at = diffusion_job(trained.settings, unseen, trained.vae)
    batches = fixed_batches(batch_at, len(unseen.labels), trained.settings.batch_size)
    device = next(trained.model.parameters()).device
    values = [loss(trained.model, moved(batch, device)) for batch in batches]
    return float(torch.stack(values).mean())


def fixed_batches(batch_at: Callable, count: int, batch_size: int) -> Iterator[tuple]:
    """The first batches of seed 0, until each of ``count`` digits has come, some a second time."""
    return (batch_at(0, step) for step in range(-(-count // batch_size)))


# ---- classifiers of noisy data -------------------------------------------------------------


def classifier_job(settings: ClassifierSettings, digits: Digits, vae: Vae | None = None):
    """Name the class at every noise level, or of clean data alone."""
    schedule = make_schedule(settings.schedule, settings.T)
    batch_at = noisy_batches(settings, digits, vae, dropout=0.0)

    def loss(model: nn.Module, batch: NoisyLabelledBatch) -> Tensor:
        t = batch.t if settings.noisy else torch.zeros_like(batch.t)
        return _cross_entropy(model, batch, t, schedule)

    return loss, batch_at


def _cross_entropy(model: nn.Module, batch: NoisyLabelledBatch, t: Tensor, schedule) -> Tensor:
    x_t = add_noise(batch.x_0, batch.eps, t, schedule)
    return F.cross_entropy(model(x_t, t).float(), batch.labels)


def judge_classifier(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """Accuracy on test digits at eleven noise levels, 0 being clean."""
    return accuracy_per_level(trained.model, trained, test or digits)


@torch.no_grad()
def accuracy_per_level(scores: Callable, trained: Trained, digits: Digits) -> dict[str, list]:
    """Times, and the share of digits so noisy that a classifier names rightly.

    Args:
        scores: (x_t, t) -> (B, classes), on the device of ``trained``.
        trained: whose noise schedule and latents.
    """
    x_0 = to_images(digits.images)
    x_0 = x_0 if trained.vae is None else latent.encode(trained.vae, x_0)
    eps = torch.randn(x_0.shape, generator=generator_for(0))
    device = next(trained.model.parameters()).device
    times, shares = [level * trained.schedule.T // 10 for level in range(11)], []
    for time in times:
        t = torch.full((len(x_0),), time)
        pairs = zip(add_noise(x_0, eps, t, trained.schedule).split(500), t.split(500), strict=True)
        named = torch.cat([scores(x.to(device), u.to(device)).argmax(1).cpu() for x, u in pairs])
        shares.append(float((named == digits.labels).double().mean()))
    return {"times": times, "accuracy": shares}


# ---- both at once --------------------------------------------------------------------------


def joint_job(settings: JointSettings, digits: Digits, vae: Vae | None = None):
    """The diffusion loss plus ``classifier_weight`` times the cross-entropy, on one noisy batch.

    Both networks start afresh: the one set of weights that is inherited is the autoencoder's,
    frozen, in whose latents the batch lies.
    """
    schedule = make_schedule(settings.schedule, settings.T)
    diffusion, batch_at = diffusion_job(settings, digits, vae)

    def loss(model: nn.Module, batch: NoisyLabelledBatch) -> Tensor:
        classification = _cross_entropy(model.classifier, batch, batch.t, schedule)
        return diffusion(model, batch) + settings.classifier_weight * classification

    return loss, batch_at


def judge_joint(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """Both judges, so that each half can be set beside the model that was trained alone."""
    per_level = accuracy_per_level(trained.model.classifier, trained, test or digits)
    drawn = judge_diffusion(trained, digits, test, find)
    return drawn | {"classifier": per_level}
