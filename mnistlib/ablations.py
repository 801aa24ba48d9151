"""Small experiments with fixed budgets that the chapters rest their claims on.

Each ablation is a set of variants, trained with three seeds each. Results are written one by one to
``book/records/NAME.json``, so a cut run goes on where it stopped. ``python -m mnistlib.ablations
NAME`` repeats one of them.
"""

import base64
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from mnistlib import (
    aux_losses,
    binding_trials,
    checkpoints,
    edit_trials,
    guidance_trials,
    latent_trials,
    latent_tuning,
    pace,
    recipes,
    text_trials,
    vae_trials,
    yardsticks,
)
from mnistlib.classifier import DigitFeatures, DigitFeaturesConfig
from mnistlib.data import batch_indices, generator_for, holdout, mnist, to_images, write_atomically
from mnistlib.jobs import LabelledBatch
from mnistlib.metrics import accuracy, frechet_to
from mnistlib.objective import add_noise, to_eps
from mnistlib.plots import png, sheet
from mnistlib.recipes import DiffusionSettings
from mnistlib.schedules import cosine
from mnistlib.train import TrainConfig, fit
from mnistlib.types import InputError
from mnistlib.unet import UNetConfig

__all__ = ["ABLATIONS", "decode_sheet", "read_record", "run"]

_INSTALLED = Path(__file__).parent / "records"  # an installed package carries a copy of them
RECORDS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "book" / "records"

_BASE = DiffusionSettings(
    model=UNetConfig(widths=(16, 32, 64), attention=(2,)),
    train=TrainConfig(steps=300, lr=3e-3, warmup=30, ema=0.98),
    batch_size=48,
    judged=400,
    judge_steps=15,
)


def _unet(**changes: Any) -> DiffusionSettings:
    return replace(_BASE, model=replace(_BASE.model, **changes))


def diffusion_run(settings: DiffusionSettings, seed: int) -> dict[str, float]:
    """Train briefly; measure held-out loss and samples, of the averaged and of the last weights.

    The loss is always the mean squared error of eps, whatever the network predicts, over 1,000
    digits that were held out of the 60,000.
    """
    settings = replace(settings, train=replace(settings.train, seed=seed))
    digits, unseen = holdout(mnist(source="full"))
    *_, step = fit(*recipes.begin("ddpm", settings, digits), settings.train)
    eye = recipes.train_or_load("digit_features", "read").model
    reference = (eye.reference_mean, eye.reference_cov)
    result = {}
    for name, model in [("ema", step.ema), ("last", step.model.eval())]:
        trained = recipes.Trained(model, settings, {})
        samples = recipes.sample_in_batches(trained, settings.judged, settings.judge_steps, seed=99)
        result[f"loss_{name}"] = _eps_error(trained, unseen.images[:1000])
        result[f"frechet_{name}"] = frechet_to(reference, samples, eye)
    return result


@torch.no_grad()
def _eps_error(trained: recipes.Trained, raw: torch.Tensor) -> float:
    """Mean squared error of the guessed noise at times and noise that are the same for all."""
    s, generator, total = trained.settings, generator_for(77), 0.0
    for part in to_images(raw).split(250):
        t = torch.randint(1, s.T + 1, (len(part),), generator=generator)
        eps = torch.randn(part.shape, generator=generator)
        x_t = add_noise(part, eps, t, trained.schedule)
        guess = to_eps(trained.model(x_t, t), x_t, t, trained.schedule, s.predicts)
        total += float((guess - eps).square().mean()) * len(part)
    return total / len(raw)


LOG_SNR = [float(x) for x in range(-9, 10)]


def readable_run(_: None, seed: int) -> dict[str, Any]:
    """How much of the digit is left? Accuracy of a classifier of noisy digits at each log-SNR.

    One small network is trained on digits at all noise levels of the cosine schedule, then tested
    on 2,000 held-out digits at each value of ``LOG_SNR`` (natural logarithm).
    """
    digits, unseen = holdout(mnist(source="full"))
    schedule, indices = cosine(), batch_indices(len(digits.labels), 64)

    def batch_at(seed: int, step: int) -> LabelledBatch:
        i, generator = indices(seed, step), generator_for(seed, step)
        x_0 = to_images(digits.images[i])
        t = torch.randint(0, schedule.T + 1, (len(i),), generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        return LabelledBatch(add_noise(x_0, eps, t, schedule), digits.labels[i])

    def loss(model: torch.nn.Module, batch: LabelledBatch) -> torch.Tensor:
        return F.cross_entropy(model(batch.images).float(), batch.labels)

    torch.manual_seed(seed)
    network = DigitFeatures(DigitFeaturesConfig(widths=(16, 32, 64, 64), dropout=0.0))
    config = TrainConfig(steps=700, lr=3e-3, warmup=40, ema=0.98, seed=seed)
    for step in fit(network.to(memory_format=torch.channels_last), loss, batch_at, config):  # noqa: B007
        pass
    clean, labels = to_images(unseen.images[:2000]), unseen.labels[:2000]
    eps = torch.randn(clean.shape, generator=generator_for(77))
    found = []
    for log_snr in LOG_SNR:
        a = torch.tensor(log_snr, dtype=torch.float64).sigmoid()  # alpha_bar = SNR / (1 + SNR)
        found.append(
            accuracy(step.ema, float(a.sqrt()) * clean + float((1 - a).sqrt()) * eps, labels)
        )
    return {"log_snr": LOG_SNR, "accuracy": found}


def progress_run(step: int, seed: int) -> dict[str, Any]:
    """A look back at the first training of ``ddpm``: loss, distance, 16 samples of the same noise.

    The loss is that of ``diffusion_run``, on 1,000 of the digits it was trained on. It reads the
    snapshots that ``train ddpm --set steps=7000`` leaves in ``runs/ddpm``.
    """
    trained = recipes.load(Path("runs") / "ddpm" / f"step_{step:05d}.safetensors")
    eye = recipes.train_or_load("digit_features", "read").model
    samples = recipes.sample_in_batches(trained, 500, 20, seed=seed)
    return {
        "step": step,
        "images_seen": step * trained.settings.batch_size,
        "loss": _eps_error(trained, holdout(mnist(source="full"))[1].images[:1000]),
        "frechet": frechet_to((eye.reference_mean, eye.reference_cov), samples, eye),
        "sheet": base64.b64encode(png(sheet(samples[:16], columns=8))).decode(),
    }


def decode_sheet(row: dict[str, Any]) -> torch.Tensor:
    """The samples that a row of a record holds, as a sheet of pixels, uint8 (1 or 3, H, W)."""
    picture = Image.open(io.BytesIO(base64.b64decode(row["sheet"])))
    pixels = np.array(picture.convert("RGB" if picture.mode == "RGB" else "L"))
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


class Ablation(NamedTuple):
    """What is varied and measured.

    Attributes:
        measure: (settings of a variant, seed) -> results.
        variants: name -> settings.
        seeds: how often each variant is repeated.
    """

    measure: Callable[[Any, int], dict[str, Any]]
    variants: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)


_DDPM = recipes.RECIPES["ddpm"].full

ABLATIONS: dict[str, Ablation] = {
    "noise_and_readability": Ablation(readable_run, {"classifier of noisy digits": None}),
    "unet_parts": Ablation(
        diffusion_run,
        {
            "complete": _BASE,
            "no time": _unet(time_input=False),
            "no skips": _unet(skips=False),
            "no attention": _unet(attention=()),
        },
    ),
    "objective": Ablation(
        diffusion_run,
        {
            "v": _BASE,
            "eps": replace(_BASE, predicts="eps"),
            "x0": replace(_BASE, predicts="x0"),
            "eps, bound's weight": replace(_BASE, predicts="eps", weighting="elbo"),
        },
    ),
    "ddpm_progress": Ablation(progress_run, {f"step {n}": n for n in _DDPM.snapshots}, seeds=(0,)),
    "floors": Ablation(
        yardsticks.size_run,
        {name: name for name in ("training digits", "test digits")},
        seeds=(0, 1, 2, 3, 4),
    ),
    "sample_size": Ablation(yardsticks.size_run, {"ddpm": "ddpm"}),
    "copies": Ablation(yardsticks.copies_run, {name: name for name in ("test digits", "ddpm")}),
    "features": Ablation(yardsticks.features_run, {name: name for name in yardsticks.EYES}),
    "sampling": Ablation(pace.pace_run, pace.SWEEP, seeds=(0,)),
    "sampling_final": Ablation(
        lambda choice, seed: pace.final_run(choice, seed, read_record("sampling")["rows"]),
        pace.FINAL,
        seeds=(1, 2),
    ),
    "drawing": Ablation(pace.drawing_run, pace.DRAWINGS, seeds=(0,)),
    "kl_weight": Ablation(vae_trials.vae_run, vae_trials.KL_WEIGHTS),
    "latent_channels": Ablation(vae_trials.vae_run, vae_trials.CHANNELS),
    "latent_scale": Ablation(latent_trials.scale_run, latent_trials.SCALES),
    "pixels_or_latents": Ablation(latent_trials.space_run, latent_trials.SPACES),
    "latent_tuning": Ablation(latent_tuning.tuning_run, latent_tuning.TRIALS, seeds=(0,)),
    "guidance_scale": Ablation(guidance_trials.guide_run, guidance_trials.SWEEP),
    "label_dropout": Ablation(guidance_trials.dropout_run, guidance_trials.DROPOUT),
    "noisy_classifier": Ablation(guidance_trials.classifier_run, guidance_trials.CLASSIFIERS),
    "joint_training": Ablation(guidance_trials.full_run, guidance_trials.MODES, seeds=(0,)),
    "lessons": Ablation(guidance_trials.full_run, text_trials.LESSONS, seeds=(0,)),
    "ways_of_telling": Ablation(text_trials.telling_run, text_trials.WAYS, seeds=(0,)),
    "binding": Ablation(binding_trials.binding_run, binding_trials.WAYS, seeds=(0,)),
    "prompt_weighting": Ablation(text_trials.telling_run, text_trials.WEIGHTINGS, seeds=(0,)),
    "auxiliary_losses": Ablation(aux_losses.auxiliary_run, aux_losses.AUXILIARY, seeds=(0,)),
    "edits": Ablation(edit_trials.edit_run, edit_trials.EDITS),
}


def run(name: str, records: Path = RECORDS) -> Iterator[dict[str, Any]]:
    """Run what is missing of an ablation, yielding each result as it is written.

    Raises:
        InputError: the ablation is unknown.
    """
    if name not in ABLATIONS:
        raise InputError(f"unknown ablation {name!r}; choose one of {', '.join(ABLATIONS)}")
    measure, variants, seeds = ABLATIONS[name]
    path = records / f"{name}.json"
    rows = _rows(path)
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in seeds:
        for variant, settings in variants.items():
            if (variant, seed) in done:
                continue
            start = time.monotonic()
            row = _run_before(measure, settings, seed, records)
            if row is None:
                row = measure(settings, seed)
                row["seconds"] = round(time.monotonic() - start, 1)
            rows.append({"variant": variant, "seed": seed} | row)
            write_record(path, name, rows)
            yield rows[-1]


def _run_before(measure: Callable, settings: Any, seed: int, records: Path) -> dict | None:
    """The result of the same run in the record of another ablation, so that none is made twice."""
    for name, other in ABLATIONS.items():
        for row in _rows(records / f"{name}.json") if other.measure is measure else ():
            if row["seed"] == seed and other.variants.get(row["variant"], other) == settings:
                return {k: v for k, v in row.items() if k not in ("variant", "seed")}
    return None


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def write_record(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows with the command that makes them and where they were made."""
    record = {
        "command": f"python -m mnistlib.ablations {name}",
        "provenance": checkpoints.provenance(),
        "rows": rows,
    }
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_record(name: str, records: Path = RECORDS) -> dict[str, Any]:
    """The record of an ablation: ``rows`` (one a variant and seed), ``command``, ``provenance``.

    Raises:
        InputError: there is no such record.
    """
    path = records / f"{name}.json"
    if not path.is_file():
        raise InputError(f"no record {path}; make it with: python -m mnistlib.ablations {name}")
    return json.loads(path.read_text())


def main(names: list[str]) -> None:
    """Run the ablations named, or all."""
    if unknown := set(names) - set(ABLATIONS):  # before hours are spent on the others
        raise InputError(f"unknown ablation {min(unknown)!r}")
    for name in names or ABLATIONS:
        for row in tqdm(run(name), name):
            tqdm.write(f"{row['variant']}, seed {row['seed']}: {row['seconds']} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
