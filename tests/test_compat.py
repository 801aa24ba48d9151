"""The repair of an unmatched torch and torchvision, and that a matching pair is left alone."""

import re
import subprocess
import sys

import pytest
import torch

from mnistlib import compat

CPU, CUDA = "0.28.0+cpu", "0.28.0+cu130"


class Recorder:
    """Stand in for ``torch.library.Library`` and remember what is declared."""

    made = ()

    def __init__(self, namespace, kind):
        self.schemas = []
        Recorder.made = (*Recorder.made, (namespace, kind, self.schemas))

    def define(self, schema):
        self.schemas.append(schema)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that pretends these builds are installed, with nothing declared yet."""
    monkeypatch.setattr(compat, "_kept", [])
    monkeypatch.setattr(torch.library, "Library", Recorder)
    monkeypatch.setattr(Recorder, "made", ())

    def pretend(torch_cuda, torchvision):
        spec = None
        if torchvision is not None:
            (tmp_path / "version.py").write_text(f"__version__ = '{torchvision}'\ngit = 'x'\n")
            spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
        monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)

    return pretend


@pytest.mark.parametrize(
    ("torch_cuda", "torchvision"),
    [("13.0", CUDA), (None, CPU), (None, "0.28.0"), ("13.0", CPU), (None, None)],
)
def test_matching_pair_is_untouched(install, torch_cuda, torchvision):
    install(torch_cuda, torchvision)
    assert not compat.declare_missing_operators()
    assert Recorder.made == ()


def test_torchvision_without_a_version_file_is_untouched(install, tmp_path):
    install(None, CUDA)
    (tmp_path / "version.py").unlink()
    assert not compat.declare_missing_operators()


def test_unmatched_pair_is_repaired_once(install):
    install(None, CUDA)
    assert compat.declare_missing_operators()
    assert compat.declare_missing_operators()
    [(namespace, kind, schemas)] = Recorder.made
    assert (namespace, kind) == ("torchvision", "DEF")
    assert [schema.split("(")[0] for schema in schemas] == ["nms", "qnms"]
    assert len(compat._kept) == 1  # a library that is collected takes its schemas along


def test_torchvision_can_be_imported_after_mnistlib():
    """In a fresh interpreter; and a chapter's imports do not depend on who comes first after."""
    code = "import mnistlib, torchvision; from torchvision import datasets, transforms, utils"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_repair_is_needed_exactly_where_the_builds_differ():
    from torchvision import version

    differ = torch.version.cuda is None and re.search(r"\+cu\d", version.__version__)
    assert bool(compat._kept) == bool(differ)
