"""Attention over sequences, and the transformer blocks that are made of it.

Legend of shape comments: B batch, L queries, S keys (of the sequence that is looked into), D and E
widths, h heads, d = D / h.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.types import InputError

__all__ = ["Attention", "GatedFeedForward", "TransformerBlock", "attention_maps"]


class Attention(nn.Module):
    """Each query looks at every key and takes home what is found there (Vaswani et al. 2017, 3.2).

    Looking into its own sequence it is self-attention; looking into another, cross-attention.
    Queries, keys and values have no bias, as in Rombach et al. 2022.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        if heads < 1 or dim % heads:
            raise InputError(f"a width of {dim} does not divide into {heads} heads")
        self.heads, self.crosses = heads, context_dim is not None
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(context_dim or dim, dim, bias=False)
        self.v = nn.Linear(context_dim or dim, dim, bias=False)
        self.softmax = nn.Softmax(dim=-1)  # a part of its own: `attention_maps` listens to it
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None):
        """What each position found.

        Args:
            x: (B, L, D) what asks.
            context: (B, S, E) what is looked into; None means x itself, in self-attention.
            mask: (B, S) bool, False where nobody may look; a row needs one True at least.

        Returns:
            (B, L, D). One row of context and mask serves every row of x.

        Raises:
            InputError: cross-attention was given nothing to look into.
        """
        if self.crosses and context is None:
            raise InputError("cross-attention needs a context to look into")
        context = x if context is None else context
        q, k, v = (self._split(y) for y in (self.q(x), self.k(context), self.v(context)))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, h, L, S)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        found = self.softmax(scores) @ v  # (B, h, L, d): over the keys the weights sum to 1
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, h, L, d)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """A perceptron for each position, half of whose features gate the other half (GEGLU).

    (B, L, D) -> (B, L, D). Shazeer 2020.
    """

    def __init__(self, dim: int, expand: int = 4):
        super().__init__()
        self.widen = nn.Linear(dim, 2 * expand * dim)
        self.narrow = nn.Linear(expand * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Look around, look at the words, think: x + f(norm(x)), three times.

    Rombach et al. 2022, appendix E.2.1. Without ``context_dim`` there are no words to look at, and
    the middle part is absent.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.norm1, self.look = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = None if context_dim is None else nn.LayerNorm(dim)
        self.read = None if context_dim is None else Attention(dim, heads, context_dim)
        self.norm3, self.think = nn.LayerNorm(dim), GatedFeedForward(dim)

    def forward(self, x: Tensor, words: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B, L, D), words (B, S, E) and their mask (B, S) -> (B, L, D)."""
        x = x + self.look(self.norm1(x))
        if self.read is not None:
            x = x + self.read(self.norm2(x), words, mask)
        return x + self.think(self.norm3(x))


@contextmanager
def attention_maps(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While it is open, note which words every place of a picture looks at.

    Yields:
        name of a cross-attention -> its weights (B, h, L, S) at the latest call: L places in the
        order of ``flatten(2)``, S words, summing to 1 over the words. It fills as the network runs.

    Raises:
        InputError: no part of the network looks at words.
    """
    readers = {
        f"{name}.read": block.read
        for name, block in network.named_modules()
        if isinstance(block, TransformerBlock) and block.read is not None
    }
    if not readers:
        raise InputError("this network has no cross-attention to watch; give it a context_dim")
    maps: dict[str, Tensor] = {}

    def note(name: str):
        return lambda softmax, given, weights: maps.__setitem__(name, weights.detach())

    hooks = [part.softmax.register_forward_hook(note(name)) for name, part in readers.items()]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
