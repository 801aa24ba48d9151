"""One model, one safetensors file: weights, configuration, provenance, and a digest of all three.

Nothing here unpickles. A file that is not what it says it is gets refused with the reason.
"""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mnistlib.classifier import (
    DigitFeatures,
    DigitFeaturesConfig,
    NoisyClassifier,
    NoisyClassifierConfig,
)
from mnistlib.data import write_atomically
from mnistlib.joint import Joint, JointConfig
from mnistlib.settings import from_dict
from mnistlib.text_to_image import TextToImage, TextToImageConfig
from mnistlib.types import InputError
from mnistlib.unet import UNet, UNetConfig
from mnistlib.vae import Vae, VaeConfig

__all__ = [
    "Checkpoint",
    "load",
    "provenance",
    "read_tensors",
    "round_to_half",
    "save",
    "write_tensors",
]

_MODELS: dict[str, tuple[type[nn.Module], type]] = {
    "unet": (UNet, UNetConfig),
    "digit_features": (DigitFeatures, DigitFeaturesConfig),
    "vae": (Vae, VaeConfig),
    "noisy_classifier": (NoisyClassifier, NoisyClassifierConfig),
    "joint": (Joint, JointConfig),
    "text_to_image": (TextToImage, TextToImageConfig),
}


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        model: the rebuilt network, in eval mode, float32, on the CPU.
        settings: everything the training was configured with.
        record: provenance and measured metrics.
    """

    model: nn.Module
    settings: dict[str, Any]
    record: dict[str, Any]


def save(path: str | Path, model: nn.Module, settings: dict, record: dict) -> None:
    """Write a model whole or not at all; parameters in half precision, buffers as they are.

    Raises:
        InputError: ``load`` could not rebuild such a model.
    """
    kind = next((k for k, (cls, _) in _MODELS.items() if type(model) is cls), None)
    if kind is None:
        raise InputError(f"{type(model).__name__} is no model of this library; it cannot be saved")
    parameters = {name: p.detach().half() for name, p in model.named_parameters()}
    tensors = {name: t.cpu().contiguous() for name, t in (model.state_dict() | parameters).items()}
    metadata = {"kind": kind, "config": asdict(model.config), "settings": settings}
    write_tensors(path, tensors, metadata | {"record": record})


def load(path: str | Path) -> Checkpoint:
    """Rebuild a model from its file alone.

    Raises:
        InputError: the file is missing, damaged, changed, not a safetensors file, or of a
            model that this version of the library does not know.
    """
    tensors, meta = read_tensors(path)
    if meta.get("kind") not in _MODELS:
        raise InputError(f"{path} holds {meta.get('kind')!r}, not a model of this library")
    model_class, config_class = _MODELS[meta["kind"]]
    try:
        model = model_class(from_dict(config_class, meta["config"]))
        model.load_state_dict(tensors)
    except (TypeError, KeyError, RuntimeError) as e:
        raise InputError(
            f"{path} does not fit this version of the library ({str(e).splitlines()[0]}); "
            "train it again or install the version that wrote it"
        ) from e
    model = model.eval().to(memory_format=torch.channels_last)  # the faster layout
    return Checkpoint(model, meta["settings"], meta["record"] | {"sha256": meta["sha256"]})


def round_to_half(model: nn.Module) -> nn.Module:
    """Round parameters in place to what a saved file keeps: one judges what one ships."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    return model


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write named tensors with JSON metadata and a digest over both, atomically."""
    text = json.dumps(metadata, sort_keys=True)
    write_atomically(path, to_bytes(tensors, {"mnistlib": text, "sha256": _digest(tensors, text)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Read what ``write_tensors`` wrote, and verify it.

    Raises:
        InputError: the file is missing, unreadable, foreign or changed since it was written.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path, or train the model first")
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not a readable safetensors file ({e}); replace it") from e
    if "mnistlib" not in metadata or "sha256" not in metadata:
        raise InputError(f"{path} was not written by this library; replace it")
    if _digest(tensors, metadata["mnistlib"]) != metadata["sha256"]:
        raise InputError(f"{path} was changed or damaged since it was written; replace it")
    return tensors, json.loads(metadata["mnistlib"]) | {"sha256": metadata["sha256"]}


def provenance() -> dict[str, str]:
    """Where and with what a result was made: versions, processor, git revision."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "revision": _git_revision(),
    }


def _git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    h = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
