"""The repository as a whole: one address, no machine's paths, small files, thin workflows."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import results

ROOT = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
ADDRESS = CONFIG["repository"]["url"]
SLUG = ADDRESS.removeprefix("https://github.com/")
MB = 1_000_000
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)/\w")
OWN_LINK = re.compile(rf"https://[^\s\"'<>)\]]*{SLUG.split('/')[-1]}[^\s\"'<>)\]]*")
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def files():
    """Return the files that are, or are about to be, in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the repository's files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def texts(files):
    """Return each text file that is our own, as {path: content}."""
    own = {path: path.read_bytes() for path in files if "vendor" not in path.parts}
    return {
        str(path.relative_to(ROOT)): data.decode("utf-8")
        for path, data in own.items()
        if b"\0" not in data[:8192]
    }


def size(paths):
    """Return the bytes of some files together."""
    return sum(path.stat().st_size for path in paths)


def test_tracked_tree_is_small(files):
    assert size(files) < 45 * MB


def test_shipped_weights_are_small():
    assert size((ROOT / "mnistlib" / "weights").glob("*.safetensors")) <= 25 * MB


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_notebook_is_small(path):
    assert path.stat().st_size < 1.5 * MB


def test_no_machine_paths(texts):
    found = {name: match[0] for name, text in texts.items() if (match := MACHINE_PATH.search(text))}
    assert found == {}


def test_links_to_ourselves_use_the_one_address(texts):
    """Badges, install cells and package metadata follow _config.yml."""
    allowed = (ADDRESS, f"https://colab.research.google.com/github/{SLUG}/")
    links = [(name, link) for name, text in texts.items() for link in OWN_LINK.findall(text)]
    assert [found for found in links if not found[1].startswith(allowed)] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_its_install_cell_and_badge(path):
    text = path.read_text(encoding="utf-8")
    assert f"git+{ADDRESS}" in text
    badge = f"https://colab.research.google.com/github/{SLUG}/blob/{CONFIG['repository']['branch']}"
    assert f"{badge}/notebooks/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_workflows_only_call_make():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        assert set(commands) in ({"make book"}, {"make test"}), path.name


def test_readme_prints_what_the_weights_record():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.renewed(text) == text, "run `python scripts/results.py`"
