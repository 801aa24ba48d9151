"""The bricks of the UNet.

Legend of shape comments: B batch, C channels, H height, W width, D embedding, h heads,
L = H * W positions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.attention import TransformerBlock
from mnistlib.types import InputError

__all__ = [
    "AdditiveBlock",
    "Downsample",
    "PassThrough",
    "ResidualBlock",
    "SelfAttention",
    "SpatialTransformer",
    "TimeEmbedding",
    "Upsample",
    "check_widths",
    "resampling",
    "sinusoidal",
]


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines and sines of t at ``dim / 2`` geometric frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: (B,) times.
        dim: even width of the embedding.

    Returns:
        (B, dim) float32, the cosines first.
    """
    if dim % 2:
        raise InputError(f"the width of a sinusoidal embedding must be even, got {dim}")
    i = torch.arange(dim // 2, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-math.log(max_period) * i / (dim // 2))  # (B, dim/2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, D): sinusoids, then a two-layer perceptron that may bend them."""

    def __init__(self, dim: int):
        super().__init__()
        if dim < 2 or dim % 2:
            raise InputError(f"the width of a time embedding must be even and positive, got {dim}")
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal(t, self.dim))


class ResidualBlock(nn.Module):
    """x + f(x), where the time scales and shifts the features inside f (FiLM).

    Two 3x3 convolutions, each behind GroupNorm and SiLU. The second starts at zero, so a fresh
    block is the identity (or its 1x1 projection where the width changes). FiLM: Perez et al. 2018;
    this arrangement: Dhariwal & Nichol 2021.
    """

    def __init__(self, c_in: int, c_out: int, time_dim: int | None, dropout: float = 0.0):
        super().__init__()
        if not 0 <= dropout <= 1:
            raise InputError(f"dropout must lie between 0 and 1, got {dropout}")
        self.norm1 = _norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = None if time_dim is None else nn.Linear(time_dim, 2 * c_out)
        self.norm2 = _norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), time (B, D) or None -> (B, C_out, H, W)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None:
            scale, shift = self.film(F.silu(time))[..., None, None].chunk(2, dim=1)  # (B, C, 1, 1)
            h = h * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class AdditiveBlock(ResidualBlock):
    """A residual block to whose features the time is added, between the convolutions.

    As in Ho et al. 2020 and in Stable Diffusion, where FiLM scales and shifts instead.
    """

    def __init__(self, c_in: int, c_out: int, time_dim: int, dropout: float = 0.0):
        super().__init__(c_in, c_out, None, dropout)
        self.shift = nn.Linear(time_dim, c_out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C_in, H, W), time (B, D) -> (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.shift(F.silu(time))[..., None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


def resampling(block: ResidualBlock, resize: nn.Module) -> ResidualBlock:
    """Make a residual block change the size: behind its first norm and SiLU, and in its shortcut.

    Dhariwal & Nichol 2021, section 3.

    Args:
        block: changed in place, and returned.
        resize: (B, C, H, W) -> (B, C, H', W'), such as ``nn.AvgPool2d(2)``.
    """
    block.conv1 = nn.Sequential(resize, block.conv1)
    block.shortcut = nn.Sequential(resize, block.shortcut)
    return block


class SelfAttention(nn.Module):
    """Every position looks at every other and adds what it found (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"{channels} channels do not divide into {heads} heads")
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.unbind(1)  # each (B, h, C/h, L)
        scores = q.transpose(-1, -2) @ k / math.sqrt(C // self.heads)  # (B, h, L queries, L keys)
        weights = scores.softmax(dim=-1)  # over the keys: what each query looks at sums to 1
        found = v @ weights.transpose(-1, -2)  # (B, h, C/h, L queries)
        return x + self.out(found.reshape(B, C, H, W))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of an image, each of which may look at words.

    The last 1x1 convolution starts at zero, so a fresh one is the identity. Rombach et al. 2022,
    appendix E.2.1.
    """

    def __init__(self, channels: int, heads: int, depth: int = 1, context_dim: int | None = None):
        super().__init__()
        self.norm = _norm(channels)
        self.enter = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim) for _ in range(depth)
        )
        self.leave = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, words: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), words (B, S, E), mask (B, S) bool -> (B, C, H, W)."""
        places = self.enter(self.norm(x)).flatten(2).transpose(1, 2)  # (B, L, C)
        for block in self.blocks:
            places = block(places, words, mask)
        return x + self.leave(places.transpose(1, 2).unflatten(2, x.shape[2:]))


class PassThrough(nn.Module):
    """What stands where nothing attends: x comes out as it went in, and words are not heard."""

    def forward(self, x: Tensor, *words: Tensor) -> Tensor:
        return x


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution: (B, C, H, W) -> (B, C, H/2, W/2).

    It has no use for the time; it takes it because a residual block may stand in its place.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: 1x1 convolution, then repeat each pixel.

    (B, C_in, H, W) -> (B, C_out, 2H, 2W). The convolution comes first, where it is four times
    cheaper; the residual block behind it smooths the blocks of repeated pixels. The time is taken
    and not used, as in ``Downsample``.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


def check_widths(widths: Sequence[int]) -> None:
    """Refuse a network without levels, or with a level of no channels.

    Raises:
        InputError: it is one.
    """
    if not widths or min(widths) < 1:
        raise InputError(f"each level needs a width of 1 or more; got {tuple(widths)}")


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over groups of about eight channels (Wu & He 2018)."""
    groups = max(g for g in range(1, channels // 8 + 2) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _zero(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
