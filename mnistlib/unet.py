"""The network that looks at a noisy image and a time, and answers with an image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    _norm,
    _zero,
)
from mnistlib.settings import added
from mnistlib.types import Cond, InputError

__all__ = ["UNet", "UNetConfig"]


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet.

    Attributes:
        in_channels, out_channels: channels of the image that goes in and of the answer.
        widths: channels of each level, from full resolution downwards; each level halves the image.
        blocks: residual blocks of a level, on the way down and again on the way up.
        attention: the levels (0 is full resolution) whose blocks are followed by self-attention.
        heads: attention heads.
        time_dim: width of the time embedding.
        dropout: dropout probability inside the residual blocks.
        time_input: False removes the time from the network (an ablation of chapter 2).
        skips: False cuts the connections from the way down to the way up (likewise).
        classes: the network can be told one of so many classes; 0 means that it cannot.
    """

    in_channels: int = 1
    out_channels: int = 1
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    heads: int = 4
    time_dim: int = 128
    dropout: float = 0.0
    time_input: bool = True
    skips: bool = True
    classes: int = added(0)

    def __post_init__(self) -> None:
        if not self.widths or self.blocks < 1:
            raise InputError("a UNet needs at least one level and one block per level")
        if any(not 0 <= level < len(self.widths) for level in self.attention):
            raise InputError(
                f"attention levels {self.attention} must lie in 0..{len(self.widths) - 1}"
            )
        if self.classes < 0 or (self.classes and not self.time_input):
            raise InputError("classes must not be negative, and they need time_input=True")


class UNet(nn.Module):
    """Down to see the whole, up to draw the detail, skips to carry the detail across.

    Ronneberger et al. 2015, with the residual blocks, time embedding and attention that
    Ho et al. 2020 gave it.
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = c = config
        time_dim = c.time_dim if c.time_input else None
        self.time = TimeEmbedding(c.time_dim) if c.time_input else None
        self.label = nn.Embedding(c.classes + 1, c.time_dim) if c.classes else None
        self.conv_in = nn.Conv2d(c.in_channels, c.widths[0], 3, padding=1)

        def block(c_in: int, c_out: int, level: int) -> nn.ModuleList:
            attend = SelfAttention(c_out, c.heads) if level in c.attention else nn.Identity()
            return nn.ModuleList([ResidualBlock(c_in, c_out, time_dim, c.dropout), attend])

        levels = range(len(c.widths))
        before = (c.widths[0], *c.widths)  # width that arrives at each level on the way down
        self.down = nn.ModuleList(
            nn.ModuleList(
                block(before[i] if b == 0 else c.widths[i], c.widths[i], i) for b in range(c.blocks)
            )
            for i in levels
        )
        self.downsample = nn.ModuleList(Downsample(c.widths[i]) for i in levels[:-1])
        self.middle = block(c.widths[-1], c.widths[-1], levels[-1])
        extra = 2 if c.skips else 1  # a skip doubles the channels that a block on the way up reads
        self.up = nn.ModuleList(
            nn.ModuleList(block(extra * c.widths[i], c.widths[i], i) for _ in range(c.blocks))
            for i in levels
        )
        self.upsample = nn.ModuleList(Upsample(c.widths[i + 1], c.widths[i]) for i in levels[:-1])
        self.norm_out = _norm(c.widths[0])
        self.conv_out = _zero(nn.Conv2d(c.widths[0], c.out_channels, 3, padding=1))

    @property
    def null(self) -> int:
        """The class index that stands for "no label", one above the classes."""
        return self.config.classes

    def of_class(self, labels: Tensor) -> Cond:
        """The condition that says these classes: labels (B,) int64, 0..classes -> vector (B, D).

        Raises:
            InputError: the network knows no classes, or not these.
        """
        if self.label is None:
            raise InputError("this network was built without classes; it cannot be told a label")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= self.null:
            raise InputError(
                f"labels must lie in 0..{self.null - 1}, or be {self.null} for none, "
                f"got {int(labels.min())}..{int(labels.max())}"
            )
        return Cond(vector=self.label(labels))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, C_in, H, W), t (B,) -> (B, C_out, H, W).

        Without a condition, a network that knows classes is told "no label".

        Raises:
            InputError: another number of channels, or sides that cannot be halved once per level.
        """
        self._check(x)
        time = None if self.time is None else self.time(t)
        if cond is None and self.label is not None:
            cond = self.of_class(torch.full_like(t, self.null, dtype=torch.int64))
        if cond is not None:
            time = time + cond.vector
        h, skips = self.conv_in(x), []
        for level, blocks in enumerate(self.down):
            for residual, attend in blocks:
                h = attend(residual(h, time))
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
        residual, attend = self.middle
        h = attend(residual(h, time))
        for level in reversed(range(len(self.up))):
            if level < len(self.upsample):
                h = self.upsample[level](h)
            for residual, attend in self.up[level]:
                skip = skips.pop()
                h = torch.cat([h, skip], dim=1) if self.config.skips else h
                h = attend(residual(h, time))
        return self.conv_out(F.silu(self.norm_out(h)))

    def _check(self, x: Tensor) -> None:
        factor = 2 ** (len(self.config.widths) - 1)
        if x.ndim != 4 or x.shape[-1] % factor or x.shape[-2] % factor:
            raise InputError(
                f"a UNet of {len(self.config.widths)} levels needs (B, C, H, W) with sides "
                f"divisible by {factor}, got {tuple(x.shape)}"
            )
        if x.shape[1] != self.config.in_channels:
            raise InputError(
                f"this UNet reads images of {self.config.in_channels} channels, got {x.shape[1]}"
            )
