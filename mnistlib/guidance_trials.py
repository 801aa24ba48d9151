"""Guidance tried out: scales, dropped labels, classifiers of clean and of noisy data.

Training here is brief and takes the 5,000 embedded digits, the last 500 of them held out. Samples
are balanced over the classes, and sample i begins with the noise of (seed, i), whoever steers it.
Legend: B images of a batch, N samples.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnistlib import recipes
from mnistlib.classifier import NoisyClassifierConfig
from mnistlib.data import Digits, generator_for, holdout, mnist, to_images
from mnistlib.guidance import bind, cfg_between, classifier_guided, heard_until, rescaled
from mnistlib.jobs import accuracy_per_level
from mnistlib.metrics import accuracy, features_of, frechet_to, precision_recall
from mnistlib.objective import as_eps
from mnistlib.recipes import ClassifierSettings, LatentSettings, Trained, balanced_labels
from mnistlib.samplers import ddim, draw_noise
from mnistlib.schedules import uniform_times
from mnistlib.train import TrainConfig, fit
from mnistlib.types import Denoiser
from mnistlib.unet import UNetConfig

__all__ = [
    "BETWEEN",
    "BRIEF_LATENT",
    "CLASSIFIERS",
    "DROPOUT",
    "LATEST",
    "MODES",
    "SWEEP",
    "Guide",
    "Steer",
    "by_classifier",
    "classifier_run",
    "draw",
    "dropout_run",
    "full_run",
    "guide_run",
    "judge",
    "rescaled_answers",
    "small_set",
]

Steer = Callable[[Tensor], Denoiser]
"""Wished classes (B,) -> the denoiser that draws them."""

STEPS = 12


def draw(trained: Trained, steer: Steer, count: int, seed: int, steps: int = STEPS) -> Tensor:
    """``count`` images (N, 1, 32, 32) of classes 0, 1, ..., round and round, by ddim with eta 0."""
    images = []
    for numbers in torch.arange(count).split(100):
        noises = [generator_for(seed, i) for i in numbers.tolist()]
        x_T = draw_noise((len(numbers), *trained.shape), generator=noises)
        denoise, times = steer(balanced_labels(numbers.tolist())), uniform_times
        *_, last = ddim(denoise, trained.schedule, x_T, times(trained.schedule.T, steps))
        images.append(trained.pictures(last.x_t))
    return torch.cat(images)


def judge(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Distance to the 60,000, share of wishes that came true, precision and recall.

    Precision and recall compare with as many of the embedded digits.
    """
    eye = recipes.train_or_load("digit_features", "read").model
    known = to_images(mnist(source="small").images[: len(images)])
    shares = precision_recall(features_of(eye, known), features_of(eye, images))
    return {
        "frechet": frechet_to((eye.reference_mean, eye.reference_cov), images, eye),
        "accuracy": accuracy(eye, images, labels),
    } | shares._asdict()


# ---- how hard to steer the shipped model ---------------------------------------------------


BETWEEN = 300, 800
LATEST = 950  # later than that a classifier is not heard


class Guide(NamedTuple):
    """How samples are steered, and how hard.

    Kind "real" stands for test digits, "between" for guidance at the times ``BETWEEN`` only.
    """

    kind: Literal["real", "cfg", "between", "rescaled", "classifier"]
    scale: float = 1.0
    samples: int = 500


def _sweep() -> dict[str, Guide]:
    scales = {
        "cfg": (0, 1, 1.5, 2, 3, 4, 6, 8),
        "between": (2, 4, 8),
        "rescaled": (8,),
        "classifier": (1, 2, 4, 8, 16),
    }
    guides = [Guide(kind, scale) for kind, some in scales.items() for scale in some]
    return {"real digits": Guide("real")} | {f"{g.kind}, {g.scale:g}": g for g in guides}


SWEEP = _sweep()


def guide_run(guide: Guide, seed: int) -> dict[str, Any]:
    """Samples of the shipped ``latent``, steered and judged; both networks are named by digest."""
    if guide.kind == "real":
        images, labels = _balanced_test_digits(guide.samples, seed)
        return guide._asdict() | judge(images, labels)
    trained, reader = (
        recipes.train_or_load(name, "read") for name in ("latent", "latent_classifier")
    )
    images = draw(trained, _steer(trained, guide, reader), guide.samples, seed)
    weights = {"weights": trained.record["sha256"], "classifier": reader.record["sha256"]}
    return guide._asdict() | judge(images, balanced_labels(range(len(images)))) | weights


def _balanced_test_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random test digits, as many of each class, as samples are: images and labels."""
    test = mnist(source="full", train=False)
    mixed = torch.randperm(len(test.labels), generator=generator_for(seed))
    i = torch.cat([mixed[test.labels[mixed] == k][: count // 10] for k in range(10)])
    return to_images(test.images[i]), test.labels[i]


def _steer(trained: Trained, guide: Guide, reader: Trained) -> Steer:
    if guide.kind == "classifier":
        return by_classifier(trained, reader.model, guide.scale)

    def steer(labels: Tensor) -> Denoiser:
        if guide.kind == "between":
            nobody = torch.full_like(labels, trained.model.null)
            pair = trained.guided(labels), trained.guided(nobody)
            return cfg_between(*pair, guide.scale, *BETWEEN)
        if guide.kind == "rescaled":
            return rescaled_answers(trained, labels, guide.scale)
        return trained.guided(labels, guide.scale)

    return steer


def rescaled_answers(trained: Trained, labels: Tensor, scale: float, phi: float = 0.7) -> Denoiser:
    """Rescaled guidance of what the network itself answers, turned into eps afterwards."""
    model = trained.model
    pair = [bind(model, model.of_class(y)) for y in (labels, torch.full_like(labels, model.null))]
    answer = rescaled(*pair, scale, phi)
    return torch.no_grad()(as_eps(answer, trained.schedule, trained.settings.predicts))


def by_classifier(
    trained: Trained, scores: Callable[[Tensor, Tensor], Tensor], scale: float
) -> Steer:
    """Steer a model that is told no label by a classifier (x_t, t) -> scores (B, classes).

    The classifier is heard until time ``LATEST``.
    """

    def steer(labels: Tensor) -> Denoiser:
        def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
            return -F.cross_entropy(scores(x_t, t), labels, reduction="none")

        heard = heard_until(log_prob, LATEST)
        return classifier_guided(trained.denoise, heard, trained.schedule, scale)

    return steer


# ---- brief trainings -----------------------------------------------------------------------

BRIEF_LATENT = LatentSettings(
    model=UNetConfig(
        in_channels=4,
        out_channels=4,
        widths=(32, 64),
        attention=(1,),
        time_dim=64,
        classes=10,
    ),
    train=TrainConfig(steps=400, lr=4e-3, warmup=40, ema=0.98),
    batch_size=64,
)
DROPOUT = {f"rate {r:g}": replace(BRIEF_LATENT, label_dropout=r) for r in (0.0, 0.1, 0.3)}

BRIEF_CLASSIFIER = ClassifierSettings(
    model=NoisyClassifierConfig(widths=(32, 64), time_dim=64),
    train=TrainConfig(steps=400, lr=2e-3, warmup=40, weight_decay=0.05, ema=0.98),
    batch_size=64,
)
CLASSIFIERS = {
    "clean data": replace(BRIEF_CLASSIFIER, noisy=False),
    "noisy data": BRIEF_CLASSIFIER,
}


def small_set() -> tuple[Digits, Digits]:
    """The embedded digits: those to train on, and 500 to look at."""
    return holdout(mnist(source="small"), 500)


def _briefly(name: str, settings: Any, seed: int) -> Trained:
    """Train the network of a recipe on the small set; the averaged weights."""
    settings = replace(settings, train=replace(settings.train, seed=seed))
    vae = recipes.find(settings.vae).model
    *_, last = fit(*recipes.begin(name, settings, small_set()[0], vae), settings.train)
    return Trained(last.ema, settings, {}, vae)


def dropout_run(settings: LatentSettings, seed: int, count: int = 300) -> dict[str, Any]:
    """Train with a share of the labels dropped; judge samples at four scales of ``cfg``.

    Scale 0 asks for no class, so its accuracy is what chance gives.
    """
    trained = _briefly("latent", settings, seed)
    labels, row = balanced_labels(range(count)), {}
    for scale in (0.0, 1.0, 2.0, 4.0):
        images = draw(trained, lambda y, s=scale: trained.guided(y, s), count, seed=99)
        row[f"scale {scale:g}"] = judge(images, labels)
    return row


def classifier_run(settings: ClassifierSettings, seed: int, count: int = 200) -> dict[str, Any]:
    """Train a classifier of latents; measure it at eleven noise levels and as a guide.

    One that was trained on clean data was always told time 0, and so it is here.
    """
    network = _briefly("latent_classifier", settings, seed).model
    trained = recipes.train_or_load("latent", "read")

    def scores(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t if settings.noisy else torch.zeros_like(t))

    row: dict[str, Any] = accuracy_per_level(scores, trained, small_set()[1])
    for scale in (1.0, 4.0, 8.0):
        images = draw(trained, by_classifier(trained, scores, scale), count, seed=99)
        row[f"scale {scale:g}"] = judge(images, balanced_labels(range(count)))
    return row | {"weights": trained.record["sha256"]}


# ---- full trainings ------------------------------------------------------------------------

MODES = {name: name for name in ("latent", "latent_classifier")}
MODES["joint"] = "runs/joint/joint.safetensors"


def full_run(source: str, seed: int) -> dict[str, Any]:
    """What the full training of a recipe came to, as its file says; see ``recipes.find``.

    Trainings that it started from count as its own.
    """
    trained = recipes.find(source)
    row = {key: trained.record[key] for key in ("parameters", "metrics", "sha256")}
    return row | {
        "images_seen": trained.spent("images_seen"),
        "training_seconds": trained.spent("seconds"),
    }
