"""Networks that name the class: of clean digits, whose features are the eye of the metrics, and of
noisy images or latents, whose gradient guides a diffusion.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.layers import Downsample, ResidualBlock, TimeEmbedding, _norm, check_widths
from mnistlib.types import InputError

__all__ = ["DigitFeatures", "DigitFeaturesConfig", "NoisyClassifier", "NoisyClassifierConfig"]


class _Reader(nn.Module):
    """Down through the levels, then an average over all positions, then a score for each class."""

    def __init__(self, c_in: int, widths, classes: int, dropout: float, time_dim: int | None):
        super().__init__()
        self.conv_in = nn.Conv2d(c_in, widths[0], 3, padding=1)
        before = (widths[0], *widths)
        self.blocks = nn.ModuleList(
            ResidualBlock(before[i], w, time_dim, dropout) for i, w in enumerate(widths)
        )
        self.downsample = nn.ModuleList(Downsample(w) for w in widths[:-1])
        self.norm = _norm(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def _features(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B, D) or None -> (B, widths[-1])."""
        h = self.conv_in(x)
        for i, block in enumerate(self.blocks):
            h = block(h, time)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        return F.silu(self.norm(h)).mean(dim=(2, 3))


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

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if self.classes < 1:
            raise InputError(f"classes must be 1 or more, got {self.classes}")


class DigitFeatures(_Reader):
    """Image -> features -> class scores.

    The Frechet distance of ``metrics.py`` is measured on ``features``. The mean and covariance of
    the features of the 60,000 training digits travel with the weights (``reference_mean``,
    ``reference_cov``; float64, zero until they are measured), so that samples can be judged
    where MNIST is not at hand.
    """

    def __init__(self, config: DigitFeaturesConfig = DigitFeaturesConfig()):
        super().__init__(1, config.widths, config.classes, config.dropout, time_dim=None)
        self.config = config
        d = config.widths[-1]
        self.register_buffer("reference_mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("reference_cov", torch.zeros(d, d, dtype=torch.float64))

    def features(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32) in [-1, 1] -> (B, D) features: averages over all positions."""
        return self._features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32) in [-1, 1] -> (B, classes) logits."""
        return self.head(self.features(x))


@dataclass(frozen=True)
class NoisyClassifierConfig:
    """The shape of the network.

    Attributes:
        in_channels: channels of the noisy images or latents.
        widths: channels of each level, each half the size.
        time_dim: width of the time embedding.
        dropout: dropout probability inside the residual blocks.
        classes: number of classes.
    """

    in_channels: int = 4
    widths: tuple[int, ...] = (64, 128)
    time_dim: int = 128
    dropout: float = 0.1
    classes: int = 10

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if min(self.in_channels, self.classes) < 1:
            raise InputError("in_channels and classes must be 1 or more")


class NoisyClassifier(_Reader):
    """(x_t, t) -> class scores, for images or latents: knows how much noise it sees.

    Dhariwal & Nichol 2021 (section 4) train such a classifier to guide with.
    """

    def __init__(self, config: NoisyClassifierConfig = NoisyClassifierConfig()):
        c = config
        super().__init__(c.in_channels, c.widths, c.classes, c.dropout, c.time_dim)
        self.config = config
        self.time = TimeEmbedding(c.time_dim)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, H, W), t (B,) -> (B, classes) logits.

        Raises:
            InputError: another number of channels.
        """
        if x_t.ndim != 4 or x_t.shape[1] != self.config.in_channels:
            raise InputError(
                f"this classifier reads (B, {self.config.in_channels}, H, W), "
                f"got {tuple(x_t.shape)}"
            )
        return self.head(self._features(x_t, self.time(t)))

    def log_prob(self, labels: Tensor):
        """The function (x_t, t) -> log p(label | x_t), (B,), that ``classifier_guided`` follows.

        Args:
            labels: (B,) int64, the class that each image shall become.
        """
        return lambda x_t, t: -F.cross_entropy(self(x_t, t), labels, reduction="none")
