"""A text encoder that others have trained: CLIP's, as Stable Diffusion 1 uses it.

It needs the package ``transformers``, which nothing else here does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mnistlib.types import Cond, InputError

__all__ = ["FrozenClip", "frozen_clip"]


class FrozenClip(nn.Module):
    """Prompts -> ``Cond``, like ``TextEncoder``, with weights that stay as they are.

    Radford et al. 2021. The tokens go to a UNet whose ``context_dim`` is CLIP's width. The vector
    has that width too: it can be added to a time embedding that is as wide, or left out
    (``cond._replace(vector=None)``), as in Stable Diffusion 1.

    Args:
        model: a ``CLIPTextModel``.
        tokenizer: its ``CLIPTokenizer``.
    """

    def __init__(self, model: nn.Module, tokenizer: Any):
        super().__init__()
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer

    def train(self, mode: bool = True) -> "FrozenClip":
        """It stays in eval mode, whatever the network around it does."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Prompts -> vector (B, D), tokens (B, L, D), mask (B, L).

        Raises:
            InputError: a prompt is too long.
        """
        limit = self.model.config.max_position_embeddings
        for prompt in prompts:
            if (count := len(self.tokenizer(prompt)["input_ids"])) > limit:
                raise InputError(
                    f"a prompt may hold {limit} tokens, start and end included, "
                    f"this one holds {count}: {prompt!r}"
                )
        given = self.tokenizer(
            list(prompts), padding="max_length", max_length=limit, return_tensors="pt"
        ).to(self.model.device)
        out = self.model(**given)
        return Cond(out.pooler_output, out.last_hidden_state, given["attention_mask"].bool())


def frozen_clip(name: str) -> FrozenClip:
    """CLIP's text encoder from a folder, or downloaded once from the Hugging Face hub.

    Args:
        name: a folder, or a name such as that of Stable Diffusion 1's encoder,
            "openai/clip-vit-large-patch14".

    Raises:
        InputError: ``transformers`` is not installed, or there are no such weights.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as e:
        raise InputError("CLIP needs one more package: pip install transformers") from e
    try:
        model = CLIPTextModel.from_pretrained(name, use_safetensors=True)
        return FrozenClip(model, CLIPTokenizer.from_pretrained(name))
    except OSError as e:
        raise InputError(f"no CLIP text encoder at {name!r} ({str(e).splitlines()[0]})") from e
