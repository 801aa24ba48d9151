"""The autoencoder: a picture becomes a small latent with Gaussian noise around it, and comes back.

Legend: B batch, C channels, H and W of the picture, h = H / down and w = W / down of the latent,
Z latent channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    _norm,
    check_widths,
)
from mnistlib.types import InputError

__all__ = ["Posterior", "Vae", "VaeConfig", "vae_loss"]


@dataclass(frozen=True)
class VaeConfig:
    """The shape of an autoencoder.

    Attributes:
        in_channels: 1 (grey) or 3 (RGB).
        latent_channels: Z, 1 to 8.
        widths: channels of each level, from full resolution downwards; three levels make a latent
            of a quarter of the sides, four levels one of an eighth.
        heads: attention heads at the bottleneck.
    """

    in_channels: int = 1
    latent_channels: int = 4
    widths: tuple[int, ...] = (16, 32, 64)
    heads: int = 4

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if len(self.widths) not in (3, 4):
            raise InputError(f"an autoencoder needs 3 or 4 widths, got {len(self.widths)}")
        if self.in_channels not in (1, 3):
            raise InputError(f"pictures have 1 or 3 channels, got in_channels={self.in_channels}")
        if not 1 <= self.latent_channels <= 8:
            raise InputError(f"latent_channels must lie in 1..8, got {self.latent_channels}")

    @property
    def down(self) -> int:
        """How many times smaller the sides of the latent are, 4 or 8."""
        return 2 ** (len(self.widths) - 1)


class Posterior(NamedTuple):
    """The encoder's answer: an independent Gaussian for each number of the latent.

    Attributes:
        mean, log_var: (B, Z, h, w).
    """

    mean: Tensor
    log_var: Tensor

    def draw(self, eps: Tensor) -> Tensor:
        """A latent of the posterior, from standard normal noise (B, Z, h, w).

        Written as a function of the noise so that gradients reach mean and variance
        (Kingma & Welling 2014, section 2.4).
        """
        return self.mean + (0.5 * self.log_var).exp() * eps

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to the standard normal, in nats: (B,).

        (mean^2 + var - 1 - log var) / 2, summed (Kingma & Welling 2014, appendix B).
        """
        each = self.mean.square() + self.log_var.exp() - 1 - self.log_var
        return 0.5 * each.flatten(1).sum(1)


class Encoder(nn.Module):
    """(B, C, H, W) -> mean and log variance, (B, 2 Z, h, w)."""

    def __init__(self, c: VaeConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(c.in_channels, c.widths[0], 3, padding=1)
        before = (c.widths[0], *c.widths)
        self.blocks = nn.ModuleList(
            ResidualBlock(before[i], w, None) for i, w in enumerate(c.widths)
        )
        self.downsample = nn.ModuleList(Downsample(w) for w in c.widths[:-1])
        self.middle = _middle(c)
        self.norm = _norm(c.widths[-1])
        self.conv_out = nn.Conv2d(c.widths[-1], 2 * c.latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks[0](self.conv_in(x))
        for down, block in zip(self.downsample, self.blocks[1:], strict=True):
            h = block(down(h))
        return self.conv_out(F.silu(self.norm(self.middle(h))))


class Decoder(nn.Module):
    """(B, Z, h, w) -> (B, C, H, W), the encoder's mirror image."""

    def __init__(self, c: VaeConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(c.latent_channels, c.widths[-1], 3, padding=1)
        self.middle = _middle(c)
        self.blocks = nn.ModuleList(ResidualBlock(w, w, None) for w in c.widths)
        self.upsample = nn.ModuleList(
            Upsample(below, w) for w, below in zip(c.widths, c.widths[1:], strict=False)
        )
        self.norm = _norm(c.widths[0])
        self.conv_out = nn.Conv2d(c.widths[0], c.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.blocks[-1](self.middle(self.conv_in(z)))
        for up, block in zip(reversed(self.upsample), reversed(self.blocks[:-1]), strict=True):
            h = block(up(h))
        return self.conv_out(F.silu(self.norm(h)))


class Vae(nn.Module):
    """Variational autoencoder (Kingma & Welling 2014) with the layers of a UNet and no skips.

    Everything that the decoder is to know has to pass through the latent. What Rombach et al. 2022
    call the first stage, without their adversarial and perceptual losses.

    The mean of the latents of real pictures and the inverse of their spread travel with the
    weights, one number a latent channel: ``shift`` and ``scale`` (Z, 1, 1), 0 and 1 until
    ``latent.measure_scale`` has measured them.
    """

    def __init__(self, config: VaeConfig = VaeConfig()):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.register_buffer("shift", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("scale", torch.ones(config.latent_channels, 1, 1))

    def encode(self, x: Tensor) -> Posterior:
        """Pictures (B, C, H, W) in [-1, 1] -> where their latents lie.

        Raises:
            InputError: another number of channels, or sides that do not divide.
        """
        down, channels = self.config.down, self.config.in_channels
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % down or x.shape[3] % down:
            raise InputError(
                f"this autoencoder reads (B, {channels}, H, W) with sides divisible by {down}, "
                f"got {tuple(x.shape)}"
            )
        mean, log_var = self.encoder(x).float().chunk(2, dim=1)  # the KL cancels in bfloat16
        return Posterior(mean, log_var.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, Z, h, w) -> pictures (B, C, H, W), about in [-1, 1].

        Raises:
            InputError: another number of latent channels.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise InputError(
                f"this decoder reads latents (B, {self.config.latent_channels}, h, w), "
                f"got {tuple(z.shape)}"
            )
        return self.decoder(z)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Posterior]:
        """Pictures, and noise (B, Z, h, w) for their latents -> reconstructions and posterior."""
        posterior = self.encode(x)
        return self.decode(posterior.draw(eps)), posterior


def vae_loss(vae: Vae, x: Tensor, eps: Tensor, kl_weight: float) -> Tensor:
    """Squared error of the pictures plus ``kl_weight`` times the KL divergence, a scalar.

    Both are divided by the number of pixels C H W. With weight 2 v this is, up to a constant, the
    negative variational bound of a decoder whose pixels have variance v (Higgins et al. 2017 call
    the weight beta).

    Args:
        x: (B, C, H, W) pictures in [-1, 1].
        eps: (B, Z, h, w) standard normal noise.
        kl_weight: in summed squared error per nat.
    """
    reconstruction, posterior = vae(x, eps)
    error = (reconstruction.float() - x).square().flatten(1).sum(1)
    return (error + kl_weight * posterior.kl()).mean() / x[0].numel()


def _middle(c: VaeConfig) -> nn.Sequential:
    """Attention at the bottleneck, where it is cheap, and a block to digest what it found."""
    width = c.widths[-1]
    return nn.Sequential(SelfAttention(width, c.heads), ResidualBlock(width, width, None))
