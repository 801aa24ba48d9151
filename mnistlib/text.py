"""From a prompt to what the UNet is told of it: words, their numbers, and what they mean together.

Legend: B prompts, L tokens of the longest of them, ``max_length`` at most, D width.
"""

import difflib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnistlib.attention import Attention
from mnistlib.types import Cond, InputError, InputWarning

__all__ = [
    "TextBlock",
    "TextConfig",
    "TextEncoder",
    "Tokenizer",
    "Tokens",
    "split",
    "vocabulary_of",
]

PADDING, START = 0, 1  # the words of the vocabulary are numbered from 2
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_HAN}]|\d|[^\W\d_{_HAN}]+|[^\w\s]")


def split(text: str) -> list[str]:
    """The words of a text: Chinese characters and numerals one by one, other letters together.

    Case, punctuation, spaces and invisible marks do not matter; full-width and half-width forms
    are the same.
    """
    whole = text.replace("\u00ad", "")  # a soft hyphen stands inside of a word
    found = _WORD.findall(unicodedata.normalize("NFKC", whole).casefold())
    return [word for word in found if unicodedata.category(word[0])[0] not in "PCM"]


def vocabulary_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Every word that the texts use, sorted: what a tokenizer needs to know."""
    return tuple(sorted({word for text in texts for word in split(text)}))


class Tokens(NamedTuple):
    """Prompts as numbers.

    Attributes:
        ids: (B, L) int64: ``START``, the words, then ``PADDING`` up to the longest of the prompts.
        mask: (B, L) bool, True at the start and the words.
    """

    ids: Tensor
    mask: Tensor


class Tokenizer:
    """Prompts -> numbers, by a list of known words.

    A word that is not on the list is left out, with a warning: no training has taught the network
    what it could mean.

    Args:
        vocabulary: the known words; the first has number 2.
        max_length: the most tokens of a prompt, the start included.
    """

    def __init__(self, vocabulary: Sequence[str], max_length: int):
        self.max_length = max_length
        self._ids = {word: i for i, word in enumerate(vocabulary, START + 1)}

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """The numbers of some prompts. The empty prompt is the start alone: it says nothing.

        Raises:
            InputError: a prompt is too long, or not one of its words is known.
        """
        if isinstance(prompts, str):
            raise InputError(f"give a list of prompts, such as [{prompts!r}]")
        words = [split(prompt) for prompt in prompts]
        known = [[word for word in row if word in self._ids] for row in words]
        unknown = dict.fromkeys(word for row in words for word in row if word not in self._ids)
        for prompt, row in zip(prompts, known, strict=True):
            self._check(prompt, row)
        if unknown:
            named = ", ".join(map(self._with_neighbours, unknown))
            message = f"left out, because no training taught them: {named}"
            warnings.warn(message, InputWarning, stacklevel=2)
        longest = 1 + max(map(len, known), default=0)
        ids = torch.full((len(prompts), longest), PADDING)
        ids[:, 0] = START
        for i, row in enumerate(known):
            ids[i, 1 : 1 + len(row)] = torch.tensor([self._ids[word] for word in row])
        return Tokens(ids, ids != PADDING)

    def _check(self, prompt: str, known: list[str]) -> None:
        if prompt.strip() and not known:
            near = dict.fromkeys(word for part in split(prompt) for word in self.nearest(part))
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise InputError(f"the prompt {prompt!r} holds no word that this model knows{hint}")
        if len(known) >= self.max_length:
            raise InputError(
                f"a prompt may hold {self.max_length - 1} words (of Chinese: characters), "
                f"this one holds {len(known)}: {prompt!r}"
            )

    def nearest(self, word: str) -> list[str]:
        """Up to three known words that are spelt nearly like this one."""
        return difflib.get_close_matches(word, self._ids, n=3)

    def _with_neighbours(self, word: str) -> str:
        near = self.nearest(word)
        return f"{word!r} (known and near: {', '.join(near)})" if near else f"{word!r}"


@dataclass(frozen=True)
class TextConfig:
    """What a text encoder knows, and its shape.

    Attributes:
        vocabulary: every word that it knows, as ``split`` gives it. It is saved with the weights,
            so that a checkpoint holds its own tokenizer.
        max_length: the most tokens of a prompt, the start included.
        width: D, numbers that stand for a token.
        layers: transformer blocks.
        heads: attention heads.
    """

    vocabulary: tuple[str, ...]
    max_length: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if not self.vocabulary or len(set(self.vocabulary)) < len(self.vocabulary):
            raise InputError("a vocabulary needs at least one word, and each only once")
        for word in self.vocabulary:
            if split(word) != [word]:
                raise InputError(f"{word!r} is not one word as prompts are split: {split(word)}")
        if self.max_length < 2 or min(self.layers, self.width) < 1:
            raise InputError("a text encoder needs max_length of 2, layers and width of 1 or more")


class TextBlock(nn.Module):
    """x + attention, then x + perceptron, each behind a norm (Xiong et al. 2020, "pre-LN")."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.look = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.widen = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), mask (B, L) bool -> (B, L, D)."""
        x = x + self.look(self.norm1(x), mask=mask)
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class TextEncoder(nn.Module):
    """Prompts -> ``Cond``: a small transformer that is trained together with the UNet.

    Each token looks at all others in both directions, but nobody looks at padding. What is told of
    the whole prompt is what comes out at the start token: it has no meaning of its own to carry,
    and attention decides what it gathers. A mean would count "a" and "on" as much as "seven".
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = c = config
        self.tokenize = Tokenizer(c.vocabulary, c.max_length)
        self.word = nn.Embedding(START + 1 + len(c.vocabulary), c.width)
        self.position = nn.Parameter(torch.empty(c.max_length, c.width))
        for p in (self.word.weight, self.position):  # small: what the blocks add is heard at once
            nn.init.normal_(p, std=0.02)
        self.blocks = nn.ModuleList(TextBlock(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Prompts -> vector (B, D), tokens (B, L, D), mask (B, L).

        Raises:
            InputError: as ``Tokenizer``.
        """
        return self(*(part.to(self.position.device) for part in self.tokenize(prompts)))

    def forward(self, ids: Tensor, mask: Tensor) -> Cond:
        """The same for prompts that are numbers already, see ``Tokens``."""
        x = self.word(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Cond(vector=x[:, 0], tokens=x, mask=mask)
