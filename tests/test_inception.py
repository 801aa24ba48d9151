"""The FID of papers: computed by torchmetrics, refused in one line where it cannot be had."""

import os
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchmetrics.image import fid

from mnistlib import inception
from mnistlib.metrics import feature_statistics, frechet_distance
from mnistlib.types import InputError

TORCHMETRICS = fid.FrechetInceptionDistance


class Corners(nn.Module):
    """Stand in for Inception v3: RGB bytes -> the first five pixels of each channel."""

    num_features = 15

    def forward(self, x):
        """(B, 3, H, W) uint8 -> (B, 15)."""
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x[:, :, 0, :5].flatten(1).double()


@pytest.fixture
def small_network(monkeypatch):
    """Put the small network in the place of the large one."""
    seen = []

    def metric(feature):
        seen.append((feature, os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")))
        return TORCHMETRICS(Corners())

    monkeypatch.setattr(fid, "FrechetInceptionDistance", metric)
    return seen


def test_distance_is_that_of_the_features(small_network):
    noise = torch.Generator().manual_seed(0)
    real, images = (torch.rand(n, 1, 8, 8, generator=noise) * 2 - 1 for n in (250, 130))
    metric = inception.inception_metric()
    assert small_network == [(2048, "1")], "the usual features; no pickled code is run"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    eye = [((x + 1) * 127.5).round()[:, 0, 0, :5].repeat(1, 3) for x in (real, images)]
    expected = frechet_distance(*map(feature_statistics, eye))
    for _ in range(2):  # the second call does not remember the first
        found = inception.inception_distance(metric, real, images, size=60)
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("package", ["torchmetrics", "torch_fidelity"])
def test_missing_package_is_named(monkeypatch, package):
    if package == "torchmetrics":
        monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    else:
        monkeypatch.setattr(fid, "_TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(InputError, match="pip install torchmetrics torch-fidelity"):
        inception.inception_metric()


@pytest.mark.parametrize("error", [URLError("no route\nto host"), RuntimeError("invalid hash")])
def test_missing_weights_are_one_line(monkeypatch, error):
    def fails(feature):
        raise error

    monkeypatch.setattr(fid, "FrechetInceptionDistance", fails)
    with pytest.raises(InputError, match=r"cannot be had .*; go online once") as caught:
        inception.inception_metric()
    assert "\n" not in str(caught.value)
