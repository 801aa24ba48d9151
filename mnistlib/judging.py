"""How good are images? Of digits their distance to real ones, of prompts what can be read off.

Legend: N images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnistlib import data, inception, metrics
from mnistlib.captions import parse
from mnistlib.configs import PromptSettings
from mnistlib.drawing import scale_for
from mnistlib.obedience import KINDS, agreements, obedience
from mnistlib.pngs import read_colours, read_pngs, read_table
from mnistlib.prompt_jobs import answers
from mnistlib.recipes import (
    DiffusionSettings,
    FeatureSettings,
    Trained,
    balanced_labels,
    find,
    sample_in_batches,
)
from mnistlib.scenes import measured
from mnistlib.train import pick_device
from mnistlib.types import InputError

__all__ = ["judge_folder", "judge_model", "judged_digits", "judged_prompts", "judged_reader"]


def judge_folder(folder: Path, eye: Trained, metric: Any = None) -> dict[str, Any]:
    """Judge the PNG files of a folder: as digits, or by prompts.csv where that is there.

    Args:
        folder: labels.csv (file,label) may say which digits they are.
        eye: the model ``digit_features``.
        metric: see ``inception.inception_metric``; None measures no distance of papers.

    Raises:
        InputError: the images or the table cannot be used.
    """
    if (folder / "prompts.csv").is_file():
        _check_digits(metric)
        images, prompts = read_colours(folder), read_table(folder, "prompt")
        return judged_prompts(images, prompts, eye) | {"images": len(images)}
    images, labels = as_digits(read_pngs(folder)), None
    if (folder / "labels.csv").is_file():
        labels = torch.tensor(read_table(folder, "label", _digit))
    return judged_digits(images, labels, eye, metric)


def _digit(text: str) -> int:
    if int(text) not in range(10):
        raise ValueError(f"{text} is no digit")
    return int(text)


def judge_model(
    source: str, eye: Trained, count: int, steps: int, metric: Any = None, **how: Any
) -> dict[str, Any]:
    """Judge what a model draws, or how often the classifier names test digits rightly.

    Args:
        source: see ``recipes.find``.
        eye, metric: as in ``judge_folder``.
        count: how many samples; of a model that reads prompts, of each of ``obedience.KINDS``.
        steps, how: what ``denoising`` takes.

    Raises:
        InputError: the model does neither, or cannot be found.
    """
    trained = find(source).to(pick_device())
    if isinstance(trained.settings, FeatureSettings):
        images, labels, _ = data.mnist(source="full", train=False)
        right = metrics.accuracy(trained.model, data.to_images(images), labels)
        return {"accuracy": right, "images": len(images)}
    if not isinstance(trained.settings, PromptSettings if trained.reads else DiffusionSettings):
        raise InputError(f"{source} neither draws digits nor names them; its record judges it")
    if trained.reads:
        _check_digits(metric)
        return judged_reader(trained, eye, count, steps, **how)
    images = sample_in_batches(trained, count, steps, **how)
    labels = balanced_labels(range(count), trained.classes) if trained.classes else None
    return judged_digits(images, labels, eye, metric)


# ---- digits --------------------------------------------------------------------------------


def as_digits(raw: Tensor) -> Tensor:
    """uint8 (N, H, W) of 28 or 32 pixels -> float (N, 1, 32, 32).

    Raises:
        InputError: they measure something else.
    """
    if raw.shape[1:] not in ((28, 28), (32, 32)):
        raise InputError(f"the images measure {tuple(raw.shape[1:])}; give 28x28 or 32x32 digits")
    return data.to_images(raw)


def judged_digits(
    images: Tensor, labels: Tensor | None, eye: Trained, metric: Any = None
) -> dict[str, float]:
    """Distance to the training digits, and precision and recall against the embedded 5,000.

    Accuracy too where there are labels, and the distance of papers where there is its metric.
    """
    result = {} if labels is None else {"accuracy": metrics.accuracy(eye.model, images, labels)}
    features = metrics.features_of(eye.model, images)
    reference = (eye.model.reference_mean, eye.model.reference_cov)
    distance = metrics.frechet_distance(reference, metrics.feature_statistics(features))
    known = data.to_images(data.mnist(source="small").images[: len(images)])
    shares = metrics.precision_recall(metrics.features_of(eye.model, known), features[: len(known)])
    floor = eye.record["metrics"]["floor"]
    result |= {"frechet": distance, "times_floor": distance / floor} | shares._asdict()
    if metric is not None:
        real = data.to_images(data.mnist().images)
        result["inception"] = inception.inception_distance(metric, real, images)
        result["inception_digits"] = len(real)
    return result | {"images": len(images)}


def _check_digits(metric: Any) -> None:
    if metric is not None:
        raise InputError("--inception compares with digits; leave it out where prompts are judged")


# ---- prompts -------------------------------------------------------------------------------


def judged_prompts(images: Tensor, prompts: Sequence[str], eye: Trained) -> dict[str, Any]:
    """``obedience`` of images (N, 3, 32, 32) to their prompts, where these name anything.

    Raises:
        InputError: none does, or one contradicts itself.
    """
    named = [parse(prompt) for prompt in prompts]
    shares = obedience(agreements(images, named, eye.model), named)
    if not shares:
        raise InputError("no prompt names anything that can be read off a picture")
    return shares


def judged_reader(
    trained: Trained, eye: Trained, count: int, steps: int, *, seed: int = 0, **how: Any
) -> dict[str, Any]:
    """The same of a model, for ``count`` random prompts of each of ``obedience.KINDS``.

    It is guided as strongly as it was judged best, see ``drawing.scale_for``.

    Args:
        how: what ``denoising`` takes besides.
    """
    pool, scale = measured(data.mnist(source="small")), scale_for(trained, None)
    result: dict[str, Any] = {"scale": scale}
    for kind in KINDS:
        told = {"scale": scale, "seed": seed} | how
        _, named, found = answers(trained, eye.model, pool, kind, count, steps, **told)
        result[kind] = obedience(found, named)
    return result
