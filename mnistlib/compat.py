"""One repair, made before anything imports torchvision.

PyPI's torchvision for Linux is built for CUDA. Beside a CPU build of torch its import fails with
"operator torchvision::nms does not exist", because its compiled half cannot be loaded. Data sets,
transforms and utilities need only that the two operators are known by name, so their schemas are
declared here. A matching pair of builds is left untouched.
"""

import importlib.util
import re
from pathlib import Path

import torch

__all__ = ["declare_missing_operators"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[torch.library.Library] = []  # a Library withdraws its schemas when it is collected


def declare_missing_operators() -> bool:
    """Declare nms and qnms if torch is a CPU build and torchvision a CUDA one; was it needed?"""
    if _kept:
        return True
    if torch.version.cuda is not None or not _torchvision_is_cuda():
        return False
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _kept.append(library)
    return True


def _torchvision_is_cuda() -> bool:
    """Read torchvision's version file without importing the package."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).parent / "version.py"
    return version.is_file() and bool(re.search(r"__version__ = '.*\+cu\d", version.read_text()))
