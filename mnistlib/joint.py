"""A diffusion network and a classifier that are trained together, on the same noisy batches."""

from dataclasses import dataclass

from torch import Tensor, nn

from mnistlib.classifier import NoisyClassifier, NoisyClassifierConfig
from mnistlib.types import Cond
from mnistlib.unet import UNet, UNetConfig

__all__ = ["Joint", "JointConfig"]


@dataclass(frozen=True)
class JointConfig:
    """The shapes of both networks."""

    unet: UNetConfig
    classifier: NoisyClassifierConfig


class Joint(nn.Module):
    """Used like its UNet; ``classifier`` is the other half. They share no weights.

    What ties them together is the training: one batch, one noise, one sum of losses, and one
    gradient whose length is cut as a whole.
    """

    def __init__(self, config: JointConfig):
        super().__init__()
        self.config = config
        self.unet, self.classifier = UNet(config.unet), NoisyClassifier(config.classifier)

    @property
    def null(self) -> int:
        """As in ``UNet``."""
        return self.unet.null

    def of_class(self, labels: Tensor) -> Cond:
        """As in ``UNet``."""
        return self.unet.of_class(labels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """As in ``UNet``."""
        return self.unet(x, t, cond)
