"""The distance that papers report: FID on the features of Inception v3, through torchmetrics.

Nothing here is needed by the book. It takes two more packages, torchmetrics and torch-fidelity, and
once a network, because torch-fidelity downloads the weights.
"""

import os
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mnistlib.data import to_uint8
from mnistlib.types import InputError

__all__ = ["inception_distance", "inception_metric"]


def inception_metric(device: torch.device | str = "cpu") -> Any:
    """An empty ``FrechetInceptionDistance`` of torchmetrics on the 2048 features of Inception v3.

    Raises:
        InputError: a package is missing, or the weights cannot be had.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        # The weights come as a pickle; read nothing but tensors from it.
        with patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
            return FrechetInceptionDistance(feature=2048).to(device)
    except ImportError as e:
        raise InputError(
            "the Inception network needs two packages: pip install torchmetrics torch-fidelity"
        ) from e
    except (OSError, RuntimeError) as e:
        raise InputError(
            f"the weights of the Inception network cannot be had ({str(e).splitlines()[0]}); "
            "go online once, or leave --inception out"
        ) from e


@torch.no_grad()
def inception_distance(metric: Any, real: Tensor, images: Tensor, size: int = 100) -> float:
    """FID between real digits and images, each (N, 1, H, W) in [-1, 1], shown as grey RGB.

    Args:
        metric: from ``inception_metric``.
        size: images a batch.
    """
    metric.reset()
    for batch, is_real in [(real, True), (images, False)]:
        for part in batch.split(size):
            metric.update(to_uint8(part).expand(-1, 3, -1, -1).to(metric.device), real=is_real)
    return float(metric.compute())
