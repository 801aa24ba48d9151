"""The house stands: each file imports from lower layers only, and none grows out of hand."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mnistlib"
FILES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}

# fmt: off
LAYERS = {
    "types": -2,  # the words that layer 0 speaks in already
    "grammar": -1, "attention": -1,  # attention: what bricks are made of
    "compat": 0, "data": 0, "schedules": 0, "layers": 0, "settings": 0, "captions": 0,
    "__init__": 1, "journal": 1, "objective": 1, "samplers": 1, "unet": 1,
    "vae": 1, "classifier": 1, "readers": 1, "text": 1, "clip": 1, "pngs": 1,
    "guidance": 2, "latent": 2, "joint": 2, "scenes": 2, "text_to_image": 2,
    "folders": 2,
    "checkpoints": 3, "sources": 3, "editing": 3,
    "train": 4, "metrics": 4, "inception": 4, "plots": 4, "film": 4,
    "configs": 5, "obedience": 5,
    "trained": 6, "losses": 6,
    "jobs": 7,
    "vae_jobs": 8, "prompt_jobs": 8, "folder_jobs": 8,
    "registry": 9,
    "recipes": 10,
    "yardsticks": 11, "pace": 11, "vae_trials": 11, "latent_trials": 11, "guidance_trials": 11,
    "latent_tuning": 11, "edit_trials": 11, "watch": 11, "drawing": 11,
    "text_trials": 12, "aux_losses": 12, "judging": 12,
    "binding_trials": 13,
    "ablations": 14, "cli": 14,
    "__main__": 15,
}
# fmt: on

LINES = 280
LONGER = {"recipes": 300, "ablations": 310, "data": 345, "cli": 430}

# What a bare machine with a GPU has; all else is imported where it is used.
TRAINING = {"torch", "numpy", "safetensors", "tqdm"}
TRAINS = [
    name for name in LAYERS if LAYERS[name] <= LAYERS["recipes"] and name not in ("plots", "film")
]


def imported(nodes):
    """Yield what import statements name: `a.b`, and `a.b.c` for `from a.b import c`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tree(name):
    """Return the syntax tree of a file of the package."""
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def siblings(name):
    """Return the files of the package that a file imports from, wherever in it."""
    full = [module.split(".") for module in imported(ast.walk(tree(name)))]
    return {parts[1] for parts in full if parts[0] == "mnistlib" and len(parts) > 1}


def at_import(nodes):
    """Yield the statements that run when a module is imported: function bodies are left out."""
    for node in nodes:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(ast.iter_child_nodes(node))


def test_every_file_has_a_layer():
    assert set(FILES) == set(LAYERS)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    upward = {other for other in siblings(name) if LAYERS[other] >= LAYERS[name]}
    assert upward == set(), f"{name} (layer {LAYERS[name]}) may not import these"


def test_the_reference_names_every_file_from_the_ground_up():
    text = (PACKAGE.parent / "book" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"automodule:: mnistlib\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(set(FILES) - {"__init__", "__main__", "cli"})
    assert [LAYERS[name] for name in named] == sorted(LAYERS[name] for name in named)


@pytest.mark.parametrize("name", FILES)
def test_no_file_grows_out_of_hand(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= LONGER.get(name, LINES)


@pytest.mark.parametrize("name", TRAINS)
def test_training_needs_few_packages(name):
    roots = {module.split(".")[0] for module in imported(at_import(tree(name).body))}
    assert roots <= TRAINING | {"mnistlib"} | sys.stdlib_module_names


def test_importing_the_recipes_loads_no_optional_package():
    """Not by way of another package either."""
    heavy = {"matplotlib", "torchvision", "IPython", "PIL", "typer", "mlxtend", "scipy", "pandas"}
    program = f"import sys, mnistlib.recipes; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
