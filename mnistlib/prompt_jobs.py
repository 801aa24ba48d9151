"""The training on captioned scenes: what it learns from, and how its obedience is judged."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnistlib import grammar, latent
from mnistlib.configs import PromptSettings
from mnistlib.data import Digits
from mnistlib.grammar import Scene
from mnistlib.jobs import Find
from mnistlib.losses import reading
from mnistlib.obedience import KINDS, SEEN, agreements, draw_prompts, obedience
from mnistlib.readers import remeasured
from mnistlib.scenes import Pool, draw_captions, draw_scenes, measured
from mnistlib.text import TextConfig, Tokenizer, vocabulary_of
from mnistlib.text_to_image import TextToImage, TextToImageConfig
from mnistlib.trained import Trained, sample_in_batches
from mnistlib.vae import Vae

__all__ = ["SHOWN", "answers"]

# The guidance scales of which the judge takes the best.
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)

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
    tokenize = Tokenizer(vocabulary_of(grammar.texts()), settings.max_length)
    captions_at = captions_of(scenes, settings.in_order, fine=settings.fine)
    return reading(settings, latents, tokenize, captions_at)


def captions_of(scenes: Sequence[Scene], in_order: int = 0, **how: Any):
    """What ``losses.reading`` asks for: the captions of some scenes, others in each step.

    Args:
        in_order: see ``PromptSettings``.
        how: see ``draw_captions``.
    """

    def captions_at(seed: int, step: int, i: Tensor) -> list[str]:
        shown, numbers = [scenes[j] for j in i.tolist()], range(step * len(i), (step + 1) * len(i))
        easy = round(len(i) * max(0.0, 1 - step / in_order)) if in_order else 0
        said = draw_captions(shown[:easy], seed, numbers[:easy], in_order=True, **how)
        said += draw_captions(shown[easy:], seed, numbers[easy:], **how)
        return [caption.text for caption in said]

    return captions_at


def encoded(settings: PromptSettings, pool: Pool, vae: Vae) -> tuple[Tensor, list[Scene]]:
    """The latents (N, Z, h, w) of a training's scenes, and what is in each."""
    latents, scenes = [], []
    for part in torch.arange(settings.scenes).split(1000):
        painted = draw_scenes(pool, settings.train.seed, part.tolist(), two=settings.two)
        latents.append(latent.encode(vae, painted.images))
        shown = painted.scenes
        if settings.as_decoded:
            shown = remeasured(latent.decode(vae, latents[-1]), shown)
        scenes += shown
    return torch.cat(latents), scenes


# ---- the judge -------------------------------------------------------------------------------


def judge_prompts(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """How often samples show what random prompts ask for, by kind, at the best guidance scale.

    The scale is chosen with a fifth of the prompts, other ones, of combinations that were seen: the
    one at which everything that a prompt names is right most often, in the worse of the two kinds.
    Fresh noise is drawn in every step (``judge_eta``).
    """
    s, eye, pool = trained.settings, find("digit_features").model, measured(test or digits)
    few, how, worst = max(2, s.judged // 5), {"eta": s.judge_eta, "grid": s.judge_grid}, {}

    def draw(kind: str, count: int, **told: Any):
        return answers(trained, eye, pool, kind, count, s.judge_steps, **told, **how)

    for scale in SCALES:
        drawn = [draw(kind, few, scale=scale, seed=3)[:0:-1] for kind in SEEN]
        worst[scale] = min(obedience(*each)["everything"]["share"] for each in drawn)
    scale = max(worst, key=worst.get)
    metrics: dict[str, Any] = {
        "scale": scale,
        "scales": {f"scale {w:g}": share for w, share in worst.items()},
        "sampler": s.judged_by,
    }
    whole = []
    for kind in KINDS:
        texts, named, found = draw(kind, s.judged, scale=scale, seed=4)
        metrics[kind] = obedience(found, named)
        whole += zip(texts, found, named, strict=True)
    for language, ascii_ in (("English", True), ("Chinese", False)):
        spoken = [each[1:] for each in whole if each[0].isascii() == ascii_]
        metrics[language] = obedience(*zip(*spoken, strict=True))
    return metrics


def answers(
    trained: Trained,
    eye: Callable[[Tensor], Tensor],
    pool: Pool,
    kind: str,
    count: int,
    steps: int,
    *,
    seed: int,
    **how: Any,
) -> tuple[list[str], list[Scene], list[dict[str, bool | None]]]:
    """Random prompts of a kind, what they name, and whether what is drawn for them shows it.

    Args:
        eye, pool, kind: see ``obedience.agreements`` and ``obedience.draw_prompts``.
        steps, how: what ``denoising`` takes besides the seed, which is that of the prompts too.
    """
    texts, named = zip(*draw_prompts(pool, kind, count, seed), strict=True)
    images = sample_in_batches(trained, count, steps, prompts=texts, seed=seed, **how)
    return [*texts], [*named], agreements(images, named, eye)
