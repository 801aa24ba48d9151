"""The classifier of noisy images or latents."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import numbers

from mnistlib.classifier import NoisyClassifier, NoisyClassifierConfig
from mnistlib.guidance import classifier_guided
from mnistlib.schedules import cosine
from mnistlib.types import InputError

SMALL = NoisyClassifierConfig(in_channels=2, widths=(8, 16), time_dim=16, classes=3)


def alive(config=SMALL, seed=0):
    """Return a classifier whose every part does something, in eval mode."""
    network, generator = NoisyClassifier(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, 8), ({"in_channels": 1, "widths": (8, 8, 16, 16)}, 32), ({"classes": 10}, 12)],
)
def test_scores_of_each_class(changes, size):
    config = replace(SMALL, **changes)
    scores = alive(config)(numbers(5, config.in_channels, size, size), torch.arange(5))
    assert scores.shape == (5, config.classes)


def test_time_changes_the_scores_of_its_own_image():
    network, x = alive(), numbers(2, 2, 8, 8)
    before, after = (network(x, torch.tensor([5, t])) for t in (5, 900))
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=0.01)


def test_every_parameter_learns():
    network = alive().train()
    network(numbers(4, 2, 8, 8), torch.tensor([1, 5, 50, 900])).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_log_prob_is_the_log_of_the_softmax():
    network, x, t = alive(), numbers(3, 2, 8, 8), torch.tensor([1, 5, 900])
    labels = torch.tensor([2, 0, 1])
    scores = network(x, t).detach().double().numpy()
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = np.log(shares[range(3), labels])
    np.testing.assert_allclose(network.log_prob(labels)(x, t).detach(), expected, rtol=1e-4)


def test_a_step_of_guidance_raises_the_probability():
    """Moving along x0_hat's change makes the wish more likely, image by image."""
    network, x, t, schedule = alive(), numbers(6, 2, 8, 8), torch.full((6,), 500), cosine()
    log_prob = network.log_prob(torch.arange(6) % 3)
    eps = classifier_guided(lambda x, t: torch.zeros_like(x), log_prob, schedule, 1.0)(x, t)
    with torch.no_grad():
        gain = log_prob(x - 1e-2 * eps / eps.norm(), t) - log_prob(x, t)
    assert (gain > 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 8, 8)])
def test_other_channels_are_refused(shape):
    with pytest.raises(InputError, match=r"reads \(B, 2, H, W\), got"):
        alive()(torch.zeros(shape), torch.ones(1))
