"""What all tests share: one thread, a clean environment, and the full MNIST for those that ask."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

FULL_MNIST = os.environ.get("MNISTLIB_DATA")  # read before the environment is cleaned
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, in the next line
import mnistlib  # noqa: E402, F401  (before diffusers, see mnistlib/compat.py)

# Property tests try the same examples on every machine, however slow it is.
settings.register_profile("mnistlib", deadline=None, derandomize=True, database=None)
settings.load_profile("mnistlib")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment():
    """Hide the user's MNISTLIB_* settings; a test that wants one sets it with monkeypatch."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MNISTLIB_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def scene_vae(tmp_path_factory):
    """Return the file of an autoencoder of scenes, for trainings that need one."""
    import tiny

    return tiny.train_scene_vae(tmp_path_factory.mktemp("scene_vae"))


@pytest.fixture
def full_mnist(monkeypatch):
    """Put $MNISTLIB_DATA back for one test and return the folder; skip where it was not set."""
    if not FULL_MNIST:
        pytest.skip("the full MNIST is not at hand: $MNISTLIB_DATA is not set")
    root = Path(FULL_MNIST).resolve()
    monkeypatch.setenv("MNISTLIB_DATA", str(root))
    return root


@pytest.fixture(scope="session")
def smoke_text_to_image(tmp_path_factory, scene_vae):
    """Train a reader of prompts for a moment; return its file."""
    import tiny

    from mnistlib import recipes

    folder = tmp_path_factory.mktemp("text_to_image")
    few = {"held_out": "20", "steps": "5", "judged": "10", "checkpoint_every": "5"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(folder / "digits")))
        settings = recipes.settings_of("text_to_image", "smoke", few | {"vae": str(scene_vae)})
        *_, _ = recipes.train("text_to_image", settings, profile="smoke", out=folder)
    return folder / "text_to_image.safetensors"
