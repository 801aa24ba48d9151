"""Digit by Digit: diffusion models from the first noisy digit, one concept per file."""

from mnistlib.compat import declare_missing_operators

declare_missing_operators()  # before anything imports torchvision, see compat.py
