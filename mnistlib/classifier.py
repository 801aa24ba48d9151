"""A small network that reads digits; its last hidden layer is the eye of the metrics."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.layers import Downsample, ResidualBlock, _norm

__all__ = ["DigitFeatures", "DigitFeaturesConfig"]


@dataclass(frozen=True)
class DigitFeaturesConfig:
    """The shape of the network.

    Attributes:
        widths: channels of each level, each half the size; the last is the number of features D.
        dropout: dropout probability inside the residual blocks.
        classes: number of classes.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    dropout: float = 0.1
    classes: int = 10


class DigitFeatures(nn.Module):
    """Image -> features -> class scores.

    The Frechet distance of ``metrics.py`` is measured on ``features``. The mean and covariance of
    the features of the 60,000 training digits travel with the weights (``reference_mean``,
    ``reference_cov``; float64, zero until they are measured), so that samples can be judged
    where MNIST is not at hand.
    """

    def __init__(self, config: DigitFeaturesConfig = DigitFeaturesConfig()):
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv_in = nn.Conv2d(1, widths[0], 3, padding=1)
        before = (widths[0], *widths)
        self.blocks = nn.ModuleList(
            ResidualBlock(before[i], w, None, config.dropout) for i, w in enumerate(widths)
        )
        self.downsample = nn.ModuleList(Downsample(w) for w in widths[:-1])
        self.norm = _norm(widths[-1])
        self.head = nn.Linear(widths[-1], config.classes)
        d = widths[-1]
        self.register_buffer("reference_mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("reference_cov", torch.zeros(d, d, dtype=torch.float64))

    def float(self) -> "DigitFeatures":
        """float32 weights; the statistics stay in float64."""
        for p in self.parameters():
            p.data = p.data.float()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32) in [-1, 1] -> (B, D) features: averages over all positions."""
        h = self.conv_in(x)
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        return F.silu(self.norm(h)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32) in [-1, 1] -> (B, classes) logits."""
        return self.head(self.features(x))
