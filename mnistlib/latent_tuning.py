"""How to train ``latent``: width, weighting, averaging and time grid, tried in brief.

They are judged by the last 5,000 training digits, which these trainings do not see.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mnistlib import recipes
from mnistlib.data import Digits, holdout, mnist, to_images
from mnistlib.jobs import held_out_loss
from mnistlib.metrics import accuracy, feature_statistics, features_of, frechet_to
from mnistlib.recipes import LatentSettings, Trained, balanced_labels
from mnistlib.train import Ema, fit

__all__ = ["TRIALS", "Trial", "tuning_run"]


class Trial(NamedTuple):
    """One training, and what is judged of it.

    Attributes:
        settings: of the recipe ``latent``.
        averages: EMA decays; each gives other weights of the same training. 0 keeps the last ones.
            A decay above 0.9955 would be the same here: so far the warm-up of ``Ema`` comes.
        grids: the time grids that the first of the averages draws with.
    """

    settings: LatentSettings
    averages: tuple[float, ...] = (0.995,)
    grids: tuple[str, ...] = ("uniform",)


_FULL = recipes.RECIPES["latent"].full
_BRIEF = replace(
    _FULL, train=replace(_FULL.train, steps=2000, warmup=200), judged=2000, held_out=5000
)
_WIDE = replace(_BRIEF.model, widths=(96, 192))
_FEWER = replace(_BRIEF.train, steps=910)  # as many multiply-adds as the others

TRIALS: dict[str, Trial] = {
    "the recipe": Trial(_BRIEF, (0.995, 0.0, 0.98, 0.99), ("uniform", "log_snr", "quadratic")),
    "weighting min_snr": Trial(replace(_BRIEF, weighting="min_snr")),
    "widths 96 and 192": Trial(replace(_BRIEF, model=_WIDE, train=_FEWER)),
}


def tuning_run(trial: Trial, seed: int) -> dict[str, Any]:
    """Train on 55,000 digits; judge each average and grid against the other 5,000.

    The loss is the unweighted one, whatever the training weighed, so that trials compare.
    """
    settings = replace(trial.settings, train=replace(trial.settings.train, seed=seed))
    digits, unseen = holdout(mnist(source="full"), settings.held_out)
    vae = recipes.find(settings.vae).model
    network, loss, batch_at = recipes.begin("latent", settings, digits, vae)
    means = [Ema(network, decay) for decay in trial.averages]
    for step in fit(network, loss, batch_at, settings.train):
        for mean in means:
            mean.update(network, step.step)
    judged = []
    for mean in means:
        trained = Trained(mean.model, settings, {}, vae)
        grids = trial.grids if mean is means[0] else ("uniform",)
        judged += [{"ema": mean.decay} | row for row in _judged(trained, unseen, grids)]
    return {
        "steps": settings.train.steps,
        "parameters": sum(p.numel() for p in network.parameters()),
        "samples": settings.judged,
        "judged": judged,
    }


def _judged(trained: Trained, unseen: Digits, grids: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Loss on digits that were held out; distance to them and accuracy of samples, per grid."""
    s, eye = trained.settings, recipes.find("digit_features").model
    loss = held_out_loss(trained._replace(settings=replace(s, weighting="simple")), unseen)
    reference = feature_statistics(features_of(eye, to_images(unseen.images)))
    labels = balanced_labels(torch.arange(s.judged).tolist())
    for grid in grids:
        how = {"seed": 99, "eta": 1.0, "grid": grid}
        images = recipes.sample_in_batches(trained, s.judged, s.judge_steps, **how)
        yield {
            "grid": grid,
            "loss": loss,
            "frechet": frechet_to(reference, images, eye),
            "accuracy": accuracy(eye, images, labels),
        }
