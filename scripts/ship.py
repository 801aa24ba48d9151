"""Ship a finished training: runs/NAME/NAME.safetensors -> mnistlib/weights, with its SHA-256.

python scripts/ship.py ddpm
"""

import hashlib
import sys
from pathlib import Path

from mnistlib.data import write_atomically
from mnistlib.recipes import WEIGHTS, load, shipped_path


def ship(name):
    """Copy a verified checkpoint into the package and renew the manifest."""
    source = Path("runs") / name / f"{name}.safetensors"
    load(source)
    write_atomically(shipped_path(name), source.read_bytes())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(WEIGHTS.glob("*.safetensors"))
    ]
    write_atomically(WEIGHTS / "SHA256SUMS", "".join(lines).encode())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        ship(name)
