"""A UNet and the text encoder that tells it what to draw, trained together."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mnistlib.text import TextConfig, TextEncoder
from mnistlib.types import Cond, InputError
from mnistlib.unet import UNet, UNetConfig

__all__ = ["TextToImage", "TextToImageConfig"]


@dataclass(frozen=True)
class TextToImageConfig:
    """The shapes of both halves, and what passes between them.

    Attributes:
        unet: it looks at the words where its ``context_dim`` is the text's width, at none with 0.
        text: the text encoder.
        pooled: one vector for the whole prompt is added to the time embedding as well.
    """

    unet: UNetConfig
    text: TextConfig
    pooled: bool = True

    def __post_init__(self) -> None:
        if self.unet.context_dim not in (0, self.text.width):
            raise InputError(
                f"context_dim {self.unet.context_dim} must be the text's width, "
                f"{self.text.width}, or 0 for no cross-attention"
            )
        if not (self.pooled or self.unet.context_dim):
            raise InputError("a network that is told no words needs pooled=True")
        if self.unet.classes or (self.pooled and not self.unet.time_input):
            raise InputError("a prompt needs classes=0, and its vector time_input=True")


class TextToImage(nn.Module):
    """(x_t, t, cond) -> the answer of the UNet, where ``of_prompts`` says what cond may be.

    Guidance and negative prompts are those of any network that takes a condition:
    ``cfg(bind(model, model.of_prompts(["a red seven"])), bind(model, model.of_prompts([""])), s)``.
    """

    def __init__(self, config: TextToImageConfig):
        super().__init__()
        self.config = c = config
        self.unet, self.text = UNet(c.unet), TextEncoder(c.text)
        self.pooled = nn.Linear(c.text.width, c.unet.time_dim) if c.pooled else None

    def of_prompts(self, prompts: Sequence[str]) -> Cond:
        """The condition that says these prompts: one for each image, or one for all of them.

        Raises:
            InputError: a prompt is too long, or not one of its words is known.
        """
        return self._heard(self.text.encode(prompts))

    def of_tokens(self, ids: Tensor, mask: Tensor) -> Cond:
        """The same for prompts that are numbers already, as ``text.tokenize`` gives them."""
        return self._heard(self.text(ids, mask))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """As in ``UNet``; without a condition it is told the empty prompt."""
        return self.unet(x, t, self.of_prompts([""]) if cond is None else cond)

    def _heard(self, said: Cond) -> Cond:
        """What reaches the UNet of what the text encoder said."""
        vector = None if self.pooled is None else self.pooled(said.vector)
        return said._replace(vector=vector) if self.config.unet.context_dim else Cond(vector)
