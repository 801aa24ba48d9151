"""The training on captioned scenes: what it learns from, and how its obedience is judged.

Legend: B scenes of a batch, L tokens of a prompt.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnistlib import grammar, latent
from mnistlib.configs import PromptSettings
from mnistlib.data import Digits, batch_indices, generator_for
from mnistlib.grammar import Scene
from mnistlib.guidance import bind
from mnistlib.jobs import Find
from mnistlib.obedience import KINDS, SEEN, agreements, draw_prompts, obedience
from mnistlib.objective import NoisyBatch, diffusion_loss, drop_captions
from mnistlib.scenes import Pool, draw_captions, draw_scenes, measured
from mnistlib.schedules import make_schedule
from mnistlib.text import TextConfig, Tokenizer, vocabulary_of
from mnistlib.text_to_image import TextToImage, TextToImageConfig
from mnistlib.trained import Trained, sample_in_batches
from mnistlib.vae import Vae

__all__ = ["SHOWN", "PromptBatch"]

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)  # the guidance scales of which the judge takes the best

SHOWN = (
    "a red seven",
    "a thick blue 4 leaning right on yellow",
    "a thin white zero on purple",
    "黑色的纸上一个绿色的三",
    "a green five next to an orange one",
    "a white 8 on blue",
    "a red three left of a blue seven",
    "白底上左边是红色的2，右边是蓝色的6",
    "two digits",
    "",
)
"""What a training is asked to draw, to look at."""


class PromptBatch(NamedTuple):
    """A ``NoisyBatch`` with the captions that the network is told, as ``Tokens``: (B, L) each."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    ids: Tensor
    mask: Tensor


# ---- the training ----------------------------------------------------------------------------


def text_to_image(settings: PromptSettings) -> TextToImage:
    """The untrained network; it knows every word of the grammar."""
    s = settings
    vocabulary = vocabulary_of(grammar.texts())
    text = TextConfig(vocabulary, s.max_length, s.text_width, s.text_layers, s.text_heads)
    return TextToImage(TextToImageConfig(s.model, text, s.pooled))


def prompt_job(settings: PromptSettings, digits: Digits, vae: Vae):
    """Predict the noise in latents of scenes, told a caption that names a part of them.

    The scenes are painted and encoded once, here; each time that one comes, it is described anew.
    """
    latents, scenes = encoded(settings, measured(digits), vae)
    schedule, B = make_schedule(settings.schedule, settings.T), settings.batch_size
    tokenize = Tokenizer(vocabulary_of(grammar.texts()), settings.max_length)
    indices = batch_indices(len(scenes), B)

    def batch_at(seed: int, step: int) -> PromptBatch:
        i, generator = indices(seed, step), generator_for(seed, step)
        t = torch.randint(1, settings.T + 1, (B,), generator=generator)
        eps = torch.randn(latents[i].shape, generator=generator)
        shown = [scenes[j] for j in i.tolist()]
        said = draw_captions(shown, seed, range(step * B, (step + 1) * B))
        told = drop_captions([c.text for c in said], settings.label_dropout, generator=generator)
        return PromptBatch(latents[i], t, eps, *tokenize(told))

    def loss(model: TextToImage, batch: PromptBatch) -> Tensor:
        told = bind(model, model.of_tokens(batch.ids, batch.mask))
        return diffusion_loss(
            told, NoisyBatch(*batch[:3]), schedule, settings.predicts, settings.weighting
        )

    return loss, batch_at


def encoded(settings: PromptSettings, pool: Pool, vae: Vae) -> tuple[Tensor, list[Scene]]:
    """The latents (N, Z, h, w) of a training's scenes, and what is in each."""
    latents, scenes = [], []
    for part in torch.arange(settings.scenes).split(1000):
        painted = draw_scenes(pool, settings.train.seed, part.tolist(), two=settings.two)
        latents.append(latent.encode(vae, painted.images))
        scenes += painted.scenes
    return torch.cat(latents), scenes


# ---- the judge -------------------------------------------------------------------------------


def judge_prompts(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """How often samples show what random prompts ask for, by kind, at the best guidance scale.

    The scale is chosen with a fifth of the prompts, other ones, of combinations that were seen.
    """
    s, eye, pool = trained.settings, find("digit_features").model, measured(test or digits)
    few, worst = max(2, s.judged // 5), {}
    for scale in SCALES:
        drawn = [_drawn(trained, eye, pool, kind, few, scale, 3) for kind in SEEN]
        worst[scale] = min(obedience(found, named)["asked"]["share"] for _, named, found in drawn)
    scale = max(worst, key=worst.get)
    metrics: dict[str, Any] = {
        "scale": scale,
        "scales": {f"scale {w:g}": share for w, share in worst.items()},
        "sampler": f"ddim, {s.judge_steps} steps, eta 0",
    }
    whole = []
    for kind in KINDS:
        texts, named, found = _drawn(trained, eye, pool, kind, s.judged, scale, 4)
        metrics[kind] = obedience(found, named)
        whole += zip(texts, found, named, strict=True)
    for language, ascii_ in (("English", True), ("Chinese", False)):
        spoken = [each[1:] for each in whole if each[0].isascii() == ascii_]
        metrics[language] = obedience(*zip(*spoken, strict=True))
    return metrics


def _drawn(
    trained: Trained, eye: Any, pool: Pool, kind: str, count: int, scale: float, seed: int
) -> tuple[list[str], list[Scene], list[dict[str, bool | None]]]:
    """Random prompts of a kind, what they name, and whether what is drawn for them shows it."""
    texts, named = zip(*draw_prompts(pool, kind, count, seed), strict=True)
    how = {"prompts": texts, "scale": scale, "seed": seed}
    images = sample_in_batches(trained, count, trained.settings.judge_steps, **how)
    return [*texts], [*named], agreements(images, named, eye)
