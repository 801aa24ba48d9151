"""The network that looks at a noisy image and a time, and answers with an image."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.layers import (
    AdditiveBlock,
    Downsample,
    PassThrough,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    TimeEmbedding,
    Upsample,
    _norm,
    _zero,
    check_widths,
    resampling,
)
from mnistlib.settings import added
from mnistlib.types import Cond, InputError

__all__ = ["UNet", "UNetConfig"]

TimeMix = Literal["film", "add"]
Resampling = Literal["plain", "residual"]


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet.

    Attributes:
        in_channels, out_channels: channels of the image that goes in and of the answer.
        widths: channels of each level, from full resolution downwards; each level halves the image.
        blocks: residual blocks of a level, on the way down and again on the way up.
        attention: the levels (0 is full resolution) whose blocks are followed by attention.
        heads: attention heads, at each level.
        time_dim: width of the time embedding.
        dropout: dropout probability inside the residual blocks.
        time_input: False removes the time from the network (an ablation of chapter 2).
        skips: False cuts the connections from the way down to the way up (likewise).
        classes: the network can be told one of so many classes; 0 means that it cannot.
        head_width: channels of an attention head, which then says how many there are; 0 leaves that
            to ``heads``.
        depth: transformer blocks of a ``SpatialTransformer``, which then attends; with 0 the
            smaller ``SelfAttention`` does.
        context_dim: width of the words that the transformers look at; 0 means no words.
        time_mix: the time scales and shifts the features ("film"), or is added to them ("add").
        resampling: between the levels stands one convolution ("plain") or a whole residual block
            ("residual").
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
    head_width: int = added(0)
    depth: int = added(0)
    context_dim: int = added(0)
    time_mix: TimeMix = added("film")
    resampling: Resampling = added("plain")

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if min(self.blocks, self.in_channels, self.out_channels) < 1:
            raise InputError("blocks, in_channels and out_channels must be 1 or more")
        if any(not 0 <= level < len(self.widths) for level in self.attention):
            raise InputError(
                f"attention levels {self.attention} must lie in 0..{len(self.widths) - 1}"
            )
        if self.classes < 0 or (self.classes and not self.time_input):
            raise InputError("classes must not be negative, and they need time_input=True")
        self._check_attention()
        if self.time_mix not in get_args(TimeMix) or self.resampling not in get_args(Resampling):
            raise InputError("time_mix must be film or add, and resampling plain or residual")
        if self.time_mix == "add" and not self.time_input:
            raise InputError("time_mix=add needs time_input=True")

    def _check_attention(self) -> None:
        if min(self.head_width, self.depth, self.context_dim) < 0:
            raise InputError("head_width, depth and context_dim must not be negative")
        if self.context_dim and not (self.depth and self.attention):
            raise InputError("a context_dim needs depth of 1 or more, and an attention level")
        for width in (self.widths[level] for level in self.attention):
            if self.head_width and width % self.head_width:
                raise InputError(f"{width} channels do not divide into heads of {self.head_width}")


class UNet(nn.Module):
    """Down to see the whole, up to draw the detail, skips to carry the detail across.

    Ronneberger et al. 2015, with the residual blocks, time embedding and attention that
    Ho et al. 2020 gave it, and the words that Rombach et al. 2022 taught it to look at.
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = c = config
        self.time = TimeEmbedding(c.time_dim) if c.time_input else None
        self.label = nn.Embedding(c.classes + 1, c.time_dim) if c.classes else None
        self.conv_in = nn.Conv2d(c.in_channels, c.widths[0], 3, padding=1)
        levels = range(len(c.widths))
        before = (c.widths[0], *c.widths)  # width that arrives at each level on the way down
        self.down = nn.ModuleList(
            nn.ModuleList(
                _block(c, before[i] if b == 0 else c.widths[i], i) for b in range(c.blocks)
            )
            for i in levels
        )
        self.downsample = nn.ModuleList(_halving(c, i) for i in levels[:-1])
        self.middle = _block(c, c.widths[-1], levels[-1])
        extra = 2 if c.skips else 1  # a skip doubles the channels that a block on the way up reads
        self.up = nn.ModuleList(
            nn.ModuleList(_block(c, extra * c.widths[i], i) for _ in range(c.blocks))
            for i in levels
        )
        self.upsample = nn.ModuleList(_doubling(c, i) for i in levels[:-1])
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

        Without a condition, a network that knows classes is told "no label". One that reads words
        must be given some; the empty prompt has tokens too.

        Raises:
            InputError: another number of channels, sides that cannot be halved once per level, or
                a condition that this network cannot be told.
        """
        self._check(x)
        time, words = self._told(t, cond or Cond())  # no words, but for a network that reads
        h, skips = self.conv_in(x), []
        for level, blocks in enumerate(self.down):
            for residual, attend in blocks:
                h = attend(residual(h, time), *words)
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h, time)
        residual, attend = self.middle
        h = attend(residual(h, time), *words)
        for level in reversed(range(len(self.up))):
            if level < len(self.upsample):
                h = self.upsample[level](h, time)
            for residual, attend in self.up[level]:
                skip = skips.pop()
                h = torch.cat([h, skip], dim=1) if self.config.skips else h
                h = attend(residual(h, time), *words)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _told(self, t: Tensor, cond: Cond) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """The time, with what is said of the whole image added, (B, D); and words with their mask.

        A network that reads none gets none: ``SelfAttention`` takes the image alone.
        """
        vector, tokens, mask = cond
        if vector is None and self.label is not None:
            vector = self.label(torch.full_like(t, self.null, dtype=torch.int64))
        self._check_told(len(t), vector, tokens, mask)
        time = None if self.time is None else self.time(t)
        time = time if vector is None else time + vector
        return time, () if tokens is None else (tokens, mask)

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

    def _check_told(self, B: int, vector: Tensor | None, tokens: Tensor | None, mask):
        wide, width = (0 if self.time is None else self.config.time_dim), self.config.context_dim
        if vector is not None and vector.shape not in ((1, wide), (B, wide)):
            raise InputError(
                f"a vector of shape {tuple(vector.shape)} cannot be told; give one row, or {B}, "
                f"as wide as the time embedding: {wide}"
            )
        if tokens is None and width:
            raise InputError("this UNet reads words; give it tokens, if only of the empty prompt")
        if tokens is None:
            return
        B, L = 1 if len(tokens) == 1 else B, tokens.shape[1]
        if not width or tokens.shape != (B, L, width):
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)} cannot be read; give one row, or {B}, of "
                f"width {width} (0: this UNet reads none)"
            )
        if mask is not None and not (
            mask.dtype == torch.bool and mask.shape == (B, L) and mask.any(dim=1).all()
        ):
            raise InputError(
                f"a mask of {(B, L)} tokens must be bool, of that shape, and mark one token of "
                f"each row at least; got {mask.dtype}, {tuple(mask.shape)}"
            )


# ---- which brick stands where --------------------------------------------------------------


def _block(c: UNetConfig, c_in: int, level: int) -> nn.ModuleList:
    """What every level is made of: a residual block, and what attends behind it."""
    attend = _attention(c, c.widths[level]) if level in c.attention else PassThrough()
    return nn.ModuleList([_residual(c, c_in, c.widths[level]), attend])


def _residual(c: UNetConfig, c_in: int, c_out: int) -> ResidualBlock:
    if c.time_mix == "add":
        return AdditiveBlock(c_in, c_out, c.time_dim, c.dropout)
    return ResidualBlock(c_in, c_out, c.time_dim if c.time_input else None, c.dropout)


def _attention(c: UNetConfig, channels: int) -> nn.Module:
    heads = channels // c.head_width if c.head_width else c.heads
    if c.depth == 0:
        return SelfAttention(channels, heads)
    return SpatialTransformer(channels, heads, c.depth, c.context_dim or None)


def _halving(c: UNetConfig, level: int) -> nn.Module:
    """The way from a level to the next one below."""
    width = c.widths[level]
    if c.resampling == "plain":
        return Downsample(width)
    return resampling(_residual(c, width, width), nn.AvgPool2d(2))


def _doubling(c: UNetConfig, level: int) -> nn.Module:
    """The way to a level from the next one below."""
    below, width = c.widths[level + 1], c.widths[level]
    if c.resampling == "plain":
        return Upsample(below, width)
    return resampling(_residual(c, below, width), nn.Upsample(scale_factor=2.0, mode="nearest"))
