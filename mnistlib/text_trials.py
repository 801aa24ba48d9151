"""Ways of telling a network what to draw: small trainings alike in all but that.

Scenes are painted with the 5,000 embedded digits. Captions are English and name digits, inks and
paper, and of two digits no places: the question is which ink belongs to which digit. All trainings
spend as many multiply-adds, the text encoder's included; the encoding of the scenes, which is the
same for all, is left out.
Legend: B scenes of a batch, N prompts.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mnistlib import recipes
from mnistlib.captions import Caption, parse
from mnistlib.configs import PromptSettings
from mnistlib.data import Digits, batch_indices, generator_for, mnist
from mnistlib.grammar import Scene, texts
from mnistlib.guidance import bind
from mnistlib.latent_trials import multiply_adds
from mnistlib.losses import reading
from mnistlib.obedience import KINDS, SEEN, bound, named_in, obedience
from mnistlib.objective import NoisyBatch, diffusion_loss, drop_labels
from mnistlib.plots import png, sheet
from mnistlib.prompt_jobs import captions_of, encoded, text_to_image
from mnistlib.readers import agreement, read
from mnistlib.scenes import measured
from mnistlib.schedules import make_schedule
from mnistlib.text import Tokenizer, vocabulary_of
from mnistlib.train import TrainConfig, fit
from mnistlib.trained import Trained, sample
from mnistlib.unet import UNet, UNetConfig
from mnistlib.vae import Vae

__all__ = [
    "BUDGET",
    "CLASSES",
    "JUDGED",
    "LESSONS",
    "SHOWN",
    "WAYS",
    "WEIGHTINGS",
    "draw_told",
    "judged",
    "label_of",
    "telling_run",
    "told",
    "trained_within",
]

BUDGET = 31_000_000_000_000  # multiply-adds of a training: some 4,000 steps with words to look at
UNSEEN = 1024  # scenes that the loss is measured on
SCALE = 3.0  # of classifier-free guidance, whoever is told what
NAMED = ("digit", "ink", "paper")
CLASSES = 65  # ten digits, and 55 pairs of them, whoever stands on the left

JUDGED = {
    "everything": tuple(kind for kind in KINDS if kind != "two digits, held out"),
    "digits": SEEN,
}
"""The kinds of scenes asked for by prompts that name digits, inks and paper, and digits alone.

What is held out of two digits is their order. Where no place is named, "two digits, held out" asks
for nothing new: the same two were seen with their places exchanged, all but zero and five. Of one
digit it is the ink, which has to be named.
"""

_LOOKS = PromptSettings(
    model=UNetConfig(
        in_channels=4,
        out_channels=4,
        widths=(48, 96),
        attention=(0, 1),
        depth=1,
        context_dim=64,
    ),
    train=TrainConfig(steps=1000, lr=2e-3, warmup=60, ema=0.99),
    batch_size=64,
    scenes=15_000,
    text_width=64,
    pooled=False,
    judged=200,
    judge_steps=12,
)
_DEAF = replace(_LOOKS.model, context_dim=0)

WAYS: dict[str, PromptSettings] = {
    "class label": replace(_LOOKS, model=replace(_DEAF, classes=CLASSES)),
    "one vector": replace(_LOOKS, model=_DEAF, pooled=True),
    "cross-attention": _LOOKS,
    "both": replace(_LOOKS, pooled=True),
}
"""How the UNet hears of the scene; the number of steps follows from ``BUDGET``.

The class says which digits a scene holds. A class for each scene that can be painted, inks, paper
and sides included, would be 40,000 rows of a table, most of them hardly ever seen.
"""

WEIGHTINGS = {name: replace(_LOOKS, weighting=name) for name in ("simple", "min_snr")}

LESSONS = {
    "all at once": "runs/all_at_once/text_to_image.safetensors",
    "in order": "runs/t2i_second/text_to_image.safetensors",
    "as painted": "runs/t2i_third/text_to_image.safetensors",
}
"""Each went on from the one before (``--init``, ``lr=1e-3 warmup=100``). After ``in_order=0``
6,000 steps of ``in_order=2000 two=0.6 seed=1``; 6,500 of ``in_order=0 two=0.6 fine=0.8 seed=2``;
what ships, 5,500 of ``in_order=0 two=0.3 fine=0.95 scenes=100000 as_decoded=true seed=5``."""

SHOWN = (
    "a red seven on white",
    "a green zero on black",
    "a white five on purple",
    "a blue seven on white",
    "a red four and a blue two on white",
    "a blue four and a red two on white",
    "a red two and a blue four on white",
    "a green one and a red eight on black",
)
"""What each network draws for its record.

No training scene shows the fourth, a seven in blue. The fifth and the sixth differ in which ink
belongs to which digit; the seventh says the sixth in another order.
"""


# ---- what is told --------------------------------------------------------------------------


def label_of(scene: Scene) -> int:
    """The class of a scene: 0..9 one digit, then pairs in either order.

    ``CLASSES``, which says nothing, where a digit is not named.
    """
    digits = [glyph.digit for glyph in scene.glyphs]
    if None in digits:
        return CLASSES
    low, high = min(digits), max(digits)
    return low if len(digits) == 1 else 10 + high * (high + 1) // 2 + low


def telling_job(
    settings: PromptSettings, digits: Digits, vae: Vae
) -> tuple[Callable[[nn.Module, tuple], Tensor], Callable[[int, int], tuple]]:
    """The loss, and batches whose first three parts are a ``NoisyBatch``; then class or tokens."""
    return told(settings, *encoded(settings, measured(digits), vae))


def told(
    settings: PromptSettings,
    latents: Tensor,
    scenes: Sequence[Scene],
    label_of: Callable[[Scene], int] = label_of,
):
    """The same for latents (N, Z, h, w) of any scenes, and any numbering of their classes."""
    if settings.model.classes:
        return _naming(settings, latents, torch.tensor([label_of(scene) for scene in scenes]))
    tokenize = Tokenizer(vocabulary_of(texts()), settings.max_length)
    how = {"language": "en", "attributes": NAMED}
    return reading(settings, latents, tokenize, captions_of(scenes, settings.in_order, **how))


def _naming(settings: PromptSettings, latents: Tensor, labels: Tensor):
    """The same as ``losses.reading`` with a class in the place of the caption."""
    schedule, B = make_schedule(settings.schedule, settings.T), settings.batch_size
    indices, none = batch_indices(len(latents), B), settings.model.classes

    def batch_at(seed: int, step: int) -> tuple[Tensor, ...]:
        i, generator = indices(seed, step), generator_for(seed, step)
        t = torch.randint(1, settings.T + 1, (B,), generator=generator)
        eps = torch.randn(latents[i].shape, generator=generator)
        classes = drop_labels(labels[i], settings.label_dropout, none, generator=generator)
        return latents[i], t, eps, classes

    def loss(model: UNet, batch: tuple[Tensor, ...]) -> Tensor:
        predict = bind(model, model.of_class(batch[3]))
        return diffusion_loss(
            predict, NoisyBatch(*batch[:3]), schedule, settings.predicts, settings.weighting
        )

    return loss, batch_at


# ---- training ------------------------------------------------------------------------------


def _begin(settings: PromptSettings) -> nn.Module:
    """The untrained network, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.train.seed)
        return UNet(settings.model) if settings.model.classes else text_to_image(settings)


def trained_within(
    budget: int, settings: PromptSettings, job: tuple[Callable, Callable], vae: Vae
) -> tuple[Trained, dict[str, Any]]:
    """Train for so many multiply-adds; the averaged weights, and what was spent.

    Args:
        job: the loss and the batches, see ``told``.
        vae: what the latents are decoded with.
    """
    network, (loss, batch_at) = _begin(settings), job
    a_step = multiply_adds(lambda: loss(network, batch_at(0, 0)).backward())
    steps = budget // a_step
    *_, last = fit(network, loss, batch_at, replace(settings.train, steps=steps))
    return Trained(last.ema, settings, {}, vae), {
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": steps,
        "images_seen": steps * settings.batch_size,
        "multiply_adds": steps * a_step,
    }


@torch.no_grad()
def _unseen_loss(trained: Trained, digits: Digits) -> float:
    """The mean loss over ``UNSEEN`` other scenes, each time counting as much."""
    s = trained.settings
    s = replace(s, weighting="simple", scenes=UNSEEN, train=replace(s.train, seed=77))
    loss, batch_at = telling_job(s, digits, trained.vae)
    losses = [loss(trained.model, batch_at(77, step)) for step in range(UNSEEN // s.batch_size)]
    return float(torch.stack(losses).mean())


# ---- judging -------------------------------------------------------------------------------


def draw_told(
    trained: Trained,
    captions: Sequence[Caption],
    seed: int,
    label_of: Callable[[Scene], int] = label_of,
) -> Tensor:
    """A picture (N, 3, 32, 32) for each caption, guided; a class is all that some networks hear."""
    images = []
    for part in torch.arange(len(captions)).split(100):
        numbers = part.tolist()
        said = [captions[i] for i in numbers]
        told: dict[str, Any] = {"prompts": [caption.text for caption in said]}
        if trained.classes:
            told = {"labels": torch.tensor([label_of(caption.named) for caption in said])}
        steps = trained.settings.judge_steps
        images.append(sample(trained, numbers, steps, seed=seed, scale=SCALE, **told))
    return torch.cat(images)


def judged(
    trained: Trained, captions: Sequence[Caption], label_of: Callable[[Scene], int] = label_of
) -> dict[str, dict[str, float]]:
    """``obedience`` of fresh samples, ``bound`` added, where it says something."""
    named = [caption.named for caption in captions]
    eye = recipes.find("digit_features").model
    seen = read(draw_told(trained, captions, 4, label_of), eye, len(named[0].glyphs))
    pairs = [*zip(named, seen, strict=True)]
    return obedience([agreement(a, b) | {"bound": bound(a, b)} for a, b in pairs], named)


def telling_run(settings: PromptSettings, seed: int) -> dict[str, Any]:
    """Train one network; measure how far it does what it is told, and draw ``SHOWN``.

    The shares of what is right are those of ``obedience``, and of ``bound``, for the prompts and
    kinds of ``JUDGED``.
    """
    settings = replace(settings, train=replace(settings.train, seed=seed))
    shipped, digits = recipes.find("rgb_vae"), mnist(source="small")
    job = telling_job(settings, digits, shipped.model)
    trained, row = trained_within(BUDGET, settings, job, shipped.model)
    pool, shown = measured(digits), [Caption(text, parse(text)) for text in SHOWN]
    for prompts, kinds in JUDGED.items():
        how = {"count": settings.judged, "seed": 4, "inks": prompts == "everything"}
        row[prompts] = {k: judged(trained, named_in(pool, k, **how)) for k in kinds}
    return row | {
        "vae": shipped.record["sha256"],
        "loss": _unseen_loss(trained, digits),
        "sheet": base64.b64encode(png(sheet(draw_told(trained, shown, 99)))).decode(),
    }
