"""How a training goes while it goes: validation, pictures, logs, and the best weights so far.

``watch`` stands around a training as any ``for`` loop does. It measures the averaged model on
fixed batches of digits that the training never sees, draws no random number that the training
could notice and touches no weight: a training ends with the same bits whether it is watched or not.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mnistlib import checkpoints, latent, plots, recipes
from mnistlib.configs import (
    ClassifierSettings,
    DiffusionSettings,
    FeatureSettings,
    FolderSettings,
    JointSettings,
    PromptSettings,
    Settings,
    VaeSettings,
)
from mnistlib.data import write_atomically
from mnistlib.folder_jobs import first_captions
from mnistlib.folders import Captioned
from mnistlib.jobs import fixed_batches
from mnistlib.journal import Table, read_rows, stretches
from mnistlib.objective import add_noise
from mnistlib.prompt_jobs import SHOWN
from mnistlib.schedules import make_schedule
from mnistlib.sources import count, first
from mnistlib.train import TrainStep, moved, pick_device
from mnistlib.trained import Trained, sample

__all__ = ["watch"]

COUNT = 1000  # digits that a measurement takes; every 400 steps it costs 1 to 2 % of a training
FEW = 64  # pictures of a folder that it takes: one may be as large as 256 digits


def watch(
    run: Iterator[TrainStep | Trained],
    name: str,
    settings: Settings,
    *,
    profile: str,
    out: str | Path,
    every: int,
) -> Iterator[TrainStep | Trained]:
    """Pass a training on, step by step, and write down in its folder how it goes.

    Every ``every`` steps, and after the last, the loss of the averaged model is measured on 1,000
    digits of ``recipes.unseen``, with its accuracy where it names classes. In ``out``:

    - ``validation.csv``: step, loss and accuracy; ``test.csv`` where no digits are held out, and
      ``seen.csv`` where no pictures of a folder are.
    - ``best.safetensors``: the averaged model of the lowest validation loss. There is none
      where no digits are held out: test digits choose nothing.
    - ``reconstructions_00400.png`` of an autoencoder, ``samples_00400.png`` of a diffusion model:
      the same digits or the same first noises each time.
    - ``loss.png``: the curve, of training and of validation.
    - ``tensorboard/``: all of these numbers and pictures, and the loss, the learning rate and the
      length of the gradient of each step. ``tensorboard --logdir OUT`` shows them.

    A resumed run goes on in the same files, and each step stands in them once.

    Args:
        run: what ``recipes.train`` yields with these arguments.
        every: steps between two measurements.

    Raises:
        InputError: there are no digits to measure on.
    """
    watcher = _Watcher(name, settings, profile, Path(out))
    try:
        for step in run:
            if isinstance(step, TrainStep):
                watcher.log(step)
                if step.step % every == 0 or step.step == settings.train.steps:
                    watcher.measure(step)
            yield step
    finally:
        watcher.close()


class _Watcher:
    """The digits to measure on, and the files to write in."""

    def __init__(self, name: str, settings: Settings, profile: str, out: Path):
        self.writer: SummaryWriter | None = None
        self.name, self.settings, self.out = name, settings, out
        self.of, digits = recipes.unseen(settings, profile)
        self.digits = first(digits, FEW if isinstance(digits, Captioned) else COUNT)
        self.before = recipes.autoencoder_of(settings)
        self.vae = None if self.before is None else self.before.model.to(pick_device())
        if isinstance(settings, PromptSettings):
            settings = replace(settings, scenes=COUNT, in_order=0)  # not by the easy captions alone
        of_folder = isinstance(settings, FolderSettings)
        self.shown = first_captions(settings, 10) if of_folder else SHOWN
        self.loss, batch_at = recipes.RECIPES[name].job(settings, self.digits, self.vae)
        batches = fixed_batches(batch_at, count(self.digits), settings.batch_size)
        self.batches = [moved(batch, pick_device()) for batch in batches]
        names_classes = isinstance(settings, FeatureSettings | ClassifierSettings | JointSettings)
        columns = ("loss", "accuracy") if names_classes else ("loss",)
        self.table = Table(out / f"{self.of}.csv", columns)

    def log(self, step: TrainStep) -> None:
        """Write down a step of the training."""
        if self.writer is None:
            self.table.resume(step.step)
            self.writer = SummaryWriter(self.out / "tensorboard", purge_step=step.step)
        self.writer.add_scalar("loss/training", step.loss, step.step)
        self.writer.add_scalar("lr", step.lr, step.step)
        self.writer.add_scalar("grad_norm", step.grad_norm, step.step)
        self.writer.flush()  # a killed run must not lose what its saved state is ahead of

    def measure(self, step: TrainStep) -> None:
        """Measure the averaged model, keep it where it is the best, and draw."""
        lowest = min((row[1] for row in self.table.rows), default=float("inf"))
        found = self.examine(step.ema)
        for measure, value in found.items():
            self.writer.add_scalar(f"{measure}/{self.of}", value, step.step)
        self.picture(step)
        if self.of == "validation" and found["loss"] < lowest:
            self.keep(step, found)
        self.table.add(step.step, *found.values())
        _draw_curve(self.out, self.table.rows, self.of)
        self.writer.flush()

    @torch.no_grad()
    def examine(self, model: nn.Module) -> dict[str, float]:
        """Mean loss over the batches, and the share of digits that are named rightly."""
        found: dict[str, list[Tensor]] = {measure: [] for measure in self.table.columns[1:]}
        for batch in self.batches:
            found["loss"].append(self.loss(model, batch))
            if "accuracy" in found:
                named = _scores(model, batch, self.settings).argmax(1)
                found["accuracy"].append((named == batch.labels).double().mean())
        return {measure: float(torch.stack(values).mean()) for measure, values in found.items()}

    def picture(self, step: TrainStep) -> None:
        """Reconstructions or samples, if the model makes any, into a file and into the log."""
        trained = Trained(step.ema, self.settings, {}, self.vae)
        columns = 10
        if isinstance(self.settings, VaeSettings):
            given = torch.cat([batch.images for batch in self.batches])[:10]
            what, images = "reconstructions", _reconstructions(trained, given)
            columns = len(given)
        elif isinstance(self.settings, DiffusionSettings):
            steps = min(10, self.settings.judge_steps)
            told = {"prompts": self.shown, "scale": 2.0} if trained.reads else {}
            what, images = "samples", sample(trained, range(10), steps, **told)
        else:
            return
        paper = plots.sheet(images, columns)
        write_atomically(self.out / f"{what}_{step.step:05d}.png", plots.png(paper))
        self.writer.add_image(what, paper, step.step)

    def keep(self, step: TrainStep, found: dict[str, float]) -> None:
        """Save the averaged model as the best so far."""
        record: dict[str, Any] = {"recipe": self.name, "step": step.step, self.of: found}
        record["images_seen"] = step.step * self.settings.batch_size
        record["seconds"] = read_rows(self.out / "journal.csv")[-1][2]
        if self.before is not None:
            record["vae"] = self.before.record["sha256"]
        checkpoints.save(self.out / "best.safetensors", step.ema, asdict(self.settings), record)

    def close(self) -> None:
        """Close the log, if there is one."""
        if self.writer is not None:
            self.writer.close()


def _scores(model: nn.Module, batch: Any, settings: Settings) -> Tensor:
    """What the classifier of a batch, noisy or not, says of it: (B, 10)."""
    if isinstance(settings, FeatureSettings):
        return model(batch.images)
    noisy = isinstance(settings, JointSettings) or settings.noisy
    t = batch.t if noisy else torch.zeros_like(batch.t)
    x_t = add_noise(batch.x_0, batch.eps, t, make_schedule(settings.schedule, settings.T))
    return (model.classifier if isinstance(settings, JointSettings) else model)(x_t, t)


def _reconstructions(trained: Trained, images: Tensor) -> Tensor:
    """Images (B, C, H, W), and then what comes back of them: (2 B, C, H, W)."""
    images = images.cpu()
    return torch.cat([images, latent.decode(trained.model, latent.encode(trained.model, images))])


def _draw_curve(out: Path, rows: list[tuple[float, ...]], of: str) -> None:
    """loss.png: means of the training loss over short stretches, and what was measured."""
    steps, losses, _ = zip(*read_rows(out / "journal.csv"), strict=True)
    measured_at, measured, *_ = zip(*rows, strict=True)
    fig, ax = plots.figure(height=3.0)
    ax.plot(stretches(steps, 200), stretches(losses, 200), label="training, weights of the moment")
    ax.plot(measured_at, measured, ".-", label=f"{of}, averaged weights")
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.legend()
    plots.save_figure(out / "loss.png", fig)
