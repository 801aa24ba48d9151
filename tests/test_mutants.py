"""The tests can fail: each planted mistake in a file of the library is caught by a named test.

A mutant is the text of a file with one piece replaced, run in memory. Its functions take the place
of the library's in a test file, and the test named must then fail. Nothing on disk changes.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mnistlib"


class Mutant(NamedTuple):
    """A mistake: `old` becomes `new` in `file`; `test` of tests/test_FILE.py, given `args`, fails."""

    file: str
    old: str
    new: str
    test: str
    args: tuple = ()


# fmt: off
METRICS = [
    Mutant("metrics", "c_b.trace() - 2 * cross", "c_b.trace() - cross",
           "test_frechet_matches_scipy", (5, 0)),
    Mutant("metrics", "(m_a - m_b).square().sum()", "(m_a - m_b).abs().sum()",
           "test_frechet_matches_torchmetrics", (3,)),
    Mutant("metrics", "root_a @ c_b @ root_a", "c_a @ c_b @ c_a",
           "test_frechet_of_known_gaussians"),
    Mutant("metrics", "torch.cov(x.T)", "torch.cov(x.T, correction=0)",
           "test_statistics_equal_numpy", (50, 6)),
    Mutant("metrics", "values.clamp(min=0).sqrt() @", "values.clamp(min=0) @",
           "test_frechet_matches_scipy", (5, 0)),
    Mutant("metrics", "x = 1 / torch.tensor(sizes", "x = torch.tensor(sizes",
           "test_extrapolation_is_a_line_in_the_inverse_number"),
    Mutant("metrics", "value, slope = torch", "slope, value = torch",
           "test_extrapolation_removes_the_bias"),
    Mutant("metrics", "features[torch.randperm(N, generator=generator)[:n]]", "features[:n]",
           "test_extrapolation_is_a_line_in_the_inverse_number"),
    Mutant("metrics", "nearest(centres, centres, k + 1)", "nearest(centres, centres, k)",
           "test_precision_and_recall_match_brute_force", (0, 3)),
    Mutant("metrics", ".distances[:, -1]", ".distances[:, 0]",
           "test_precision_and_recall_match_brute_force", (0, 3)),
    Mutant("metrics", "_share_inside(generated, real, k), _share_inside(real, generated, k)",
           "_share_inside(real, generated, k), _share_inside(generated, real, k)",
           "test_what_is_lost_and_what_is_added"),
    Mutant("metrics", "<= radii).any(1)", "<= radii).all(1)",
           "test_precision_and_recall_match_brute_force", (0, 3)),
    Mutant("metrics", "largest=False", "largest=True",
           "test_nearest_matches_scikit_learn", (40, 30, 5, 1)),
    Mutant("metrics", 'compute_mode="donot_use_mm_for_euclid_dist"',
           'compute_mode="use_mm_for_euclid_dist"', "test_nearest_of_images_finds_copies_exactly"),
    Mutant("metrics", "scores.argmax(1)", "scores.argmin(1)",
           "test_accuracy_counts_the_highest_scores"),
]
# fmt: on
MUTANTS = METRICS


def with_text_changed(mutant):
    """Return the mutant's file as a module of its own."""
    path = PACKAGE / f"{mutant.file}.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.old!r} must stand exactly once in {path.name}"
    module = ModuleType(f"mnistlib.{mutant.file}")
    exec(compile(text.replace(mutant.old, mutant.new), str(path), "exec"), module.__dict__)
    return module


def put_in_place(module, tests, patch):
    """Replace in a test file what it imported from the library's file."""
    for name, thing in vars(tests).items():
        if getattr(thing, "__module__", None) == module.__name__ and hasattr(module, name):
            patch.setattr(tests, name, getattr(module, name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.new}")
def test_mistake_is_caught(mutant, monkeypatch):
    tests = importlib.import_module(f"test_{mutant.file}")
    test = getattr(tests, mutant.test)
    test(*mutant.args)  # passes with the library as it is
    put_in_place(with_text_changed(mutant), tests, monkeypatch)
    with pytest.raises(AssertionError):
        test(*mutant.args)
