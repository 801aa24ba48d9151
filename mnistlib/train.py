"""One training loop for everything. It knows a model, a loss and a source of batches.

``fit`` is a generator: progress bars, logs, early stops and snapshots are plain code in the
``for`` loop around it.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mnistlib.checkpoints import read_tensors, write_tensors
from mnistlib.data import generator_for
from mnistlib.types import InputError

__all__ = [
    "Ema",
    "TrainConfig",
    "TrainStep",
    "fit",
    "learning_rate",
    "moved",
    "pick_device",
    "used_precision",
]

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate of AdamW (Loshchilov & Hutter 2019).
        decay: what the learning rate does after the warm-up: "constant", or "cosine" to zero.
        warmup: steps over which the learning rate rises from zero.
        weight_decay: decoupled weight decay.
        clip: the gradient is scaled down to this norm where it is longer.
        ema: decay of the running mean of the weights; 0 keeps no memory.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where the device has it natively.
        seed: everything random in the training is a function of it and of the step.
        checkpoint_every: steps between two saved states.

    Raises:
        InputError: one of them cannot be used.
    """

    steps: int
    lr: float = 1e-3
    decay: Literal["constant", "cosine"] = "cosine"
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        _check(self)


class TrainStep(NamedTuple):
    """What one step did; ``step`` counts from 1. ``ema`` is the averaged model, in eval mode."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    model: nn.Module
    ema: nn.Module


class Ema:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992 in spirit).

    The decay warms up as (1 + n) / (10 + n), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move 1 - decay of the way towards ``model`` after step number ``step``."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, new in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(new, share)
        for mean, new in zip(self.model.buffers(), model.buffers(), strict=True):
            mean.copy_(new)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step number ``step``, 1..steps: linear warm-up, then ``decay``."""
    warm = min(1.0, step / max(1, config.warmup))
    if config.decay == "constant":
        return config.lr * warm
    past = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * past))


def fit(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Batch], Tensor],
    batch_at: Callable[[int, int], Batch],
    config: TrainConfig,
    *,
    state: str | Path | None = None,
    resume: bool = False,
) -> Iterator[TrainStep]:
    """Train, yielding after each step.

    Args:
        model: trained in place, on the device where it is.
        loss_fn: (model, batch) -> scalar loss.
        batch_at: a pure function (seed, step) -> batch, a tuple of tensors on any device.
        config: see ``TrainConfig``.
        state: file that the whole state of training is saved to, atomically, every
            ``checkpoint_every`` steps and at the end.
        resume: go on from ``state``. The weights then equal those of an uninterrupted run, bit
            for bit on the same machine, versions and thread count. The step that was saved is
            yielded again: whoever was cut may not have written it down yet.

    Raises:
        InputError: there is nothing to resume from or it belongs to another configuration, or the
            loss or its gradient is not finite.
    """
    if resume and state is None:
        raise InputError("resume needs the file that the state was saved to")
    if not resume and state is not None and Path(state).exists():
        raise InputError(f"{state} holds an earlier training; resume it or choose another folder")
    device = next(model.parameters()).device
    ema = Ema(model, config.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    saved = _load_state(state, model, ema, optimizer, config) if resume else {"step": 0}
    model.train()
    if resume:
        lr = learning_rate(saved["step"], config)
        yield TrainStep(saved["step"], saved["loss"], lr, saved["grad_norm"], model, ema.model)
    for step in range(saved["step"] + 1, config.steps + 1):
        batch = moved(batch_at(config.seed, step - 1), device)
        lr = learning_rate(step, config)
        optimizer.param_groups[0]["lr"] = lr
        with _seeded(config.seed, step, device), _autocast(device, config.precision):
            loss = loss_fn(model, batch)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        if not torch.isfinite(loss + grad_norm):
            raise InputError(_why_not_finite(step, batch, state))
        optimizer.step()
        ema.update(model, step)
        done = TrainStep(step, loss.item(), lr, grad_norm.item(), model, ema.model)
        if state is not None and (step % config.checkpoint_every == 0 or step == config.steps):
            _save_state(state, done, optimizer, config)
        yield done


def pick_device() -> torch.device:
    """CUDA where it is, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check(config: TrainConfig) -> None:
    for name in ("steps", "lr", "clip", "checkpoint_every"):
        if not getattr(config, name) > 0:  # catches nan as well
            raise InputError(f"{name} must be positive, got {getattr(config, name)}")
    for name in ("weight_decay", "warmup", "seed"):
        if not getattr(config, name) >= 0:
            raise InputError(f"{name} must not be negative, got {getattr(config, name)}")
    if config.seed >= 2**63:
        raise InputError(f"seed must lie below 2^63, got {config.seed}")
    if not 0 <= config.ema < 1:
        raise InputError(f"ema must lie in [0, 1), got {config.ema}")
    if config.decay not in ("constant", "cosine"):
        raise InputError(f"unknown decay {config.decay!r}; choose constant or cosine")
    if config.precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"unknown precision {config.precision!r}; choose auto, fp32 or bf16")


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; a named tuple stays one."""
    tensors = [t.to(device, non_blocking=True) for t in batch]
    return type(batch)._make(tensors) if hasattr(batch, "_make") else tuple(tensors)


def used_precision(device: torch.device, precision: str) -> str:
    """What a precision comes to on a device: "fp32" or "bf16"."""
    if precision != "auto":
        return precision
    return "bf16" if _has_native_bf16(device) else "fp32"


def _autocast(device: torch.device, precision: str):
    bf16 = used_precision(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older versions of torch
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


@contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout too is a function of (seed, step); the caller's random state is given back after."""
    key, cuda = generator_for(seed, step, 1).initial_seed(), device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(key)
        if cuda:
            torch.cuda.manual_seed_all(key)
        yield


def _why_not_finite(step: int, batch: Batch, state: str | Path | None) -> str:
    saved = f"; the last saved state is in {state}" if state and Path(state).is_file() else ""
    if not all(torch.isfinite(t).all() for t in batch):
        return f"the batch of step {step} holds values that are not finite; mend the data{saved}"
    return (
        f"the loss of step {step} or its gradient is not finite; "
        f"lower lr or use precision=fp32{saved}"
    )


# ---- the saved state -----------------------------------------------------------------------


def _save_state(path, done: TrainStep, optimizer, config) -> None:
    tensors = {f"model.{k}": v for k, v in done.model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in done.ema.state_dict().items()}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in slots.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    numbers = {"step": done.step, "loss": done.loss, "grad_norm": done.grad_norm}
    write_tensors(path, tensors, numbers | {"train": asdict(config)})


def _load_state(path, model, ema, optimizer, config) -> dict[str, Any]:
    """Put everything back in place; returns the numbers of the last step that was done."""
    tensors, meta = read_tensors(path)
    _check_same_run(path, meta, asdict(config))

    def part(prefix: str) -> dict[str, Any]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        model.load_state_dict(part("model."))
        ema.model.load_state_dict(part("ema."))
    except RuntimeError as e:
        raise InputError(f"{path} belongs to another model; choose another folder") from e
    saved = optimizer.state_dict()
    saved["state"] = {}
    for name, value in part("optimizer.").items():
        i, slot = name.split(".")
        saved["state"].setdefault(int(i), {})[slot] = value
    optimizer.load_state_dict(saved)
    return meta


def _check_same_run(path, meta: dict, wanted: dict) -> None:
    if "train" not in meta:
        raise InputError(f"{path} is not the state of a training; name the file fit saved")
    found = meta["train"]
    changed = [k for k in wanted if k != "checkpoint_every" and found.get(k) != wanted[k]]
    if changed:
        was = ", ".join(f"{k}={found.get(k)}" for k in changed)
        raise InputError(f"{path} was trained with {was}; use the same to resume, or start afresh")
