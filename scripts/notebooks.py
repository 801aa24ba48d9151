"""Make the chapters from their text: notebooks/src/NN_name.md -> notebooks/NN_name.ipynb.

python scripts/notebooks.py             convert and execute every chapter
python scripts/notebooks.py 02_unet     only the named ones
python scripts/notebooks.py --check     execute nothing; say which notebooks differ from their text

The text rules. A notebook is converted afresh (nothing of an older one survives), executed in the
`read` profile, stripped of what changes from run to run, and replaced in one step at the end.
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def chapters(folder=FOLDER):
    """Return the names of all chapters, such as `02_unet`, in order."""
    return sorted(path.stem for path in (folder / "src").glob("*.md"))


def convert(name, folder=FOLDER):
    """Return chapter `name` as a notebook without outputs; cell ids count: 02-0001, 02-0002, ..."""
    notebook = jupytext.read(folder / "src" / f"{name}.md", fmt="md:myst")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"{name[:2]}-{number:04d}"
    return bare(notebook)


def bare(notebook):
    """Return a copy of a notebook without outputs and counts, as the conversion would give it."""
    notebook = nbformat.from_dict(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def execute(notebook, profile, folder=FOLDER, timeout=600):
    """Run a notebook in place; raise CellExecutionError at the first cell that fails.

    The chapters compute with the 5,000 embedded digits only, so $MNISTLIB_DATA is not passed on.
    """
    variables = {key: value for key, value in os.environ.items() if key != "MNISTLIB_DATA"}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=variables | {"MNISTLIB_PROFILE": profile})
    return notebook


def settle(notebook):
    """Drop widget states, kernel versions and the outputs of live widgets; return the notebook."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "remove-output" in cell.metadata.get("tags", []):
            cell.outputs = []  # live widgets: nothing to show without a kernel
    return notebook


def store(notebook, path):
    """Write a notebook completely or not at all."""
    nbformat.validate(notebook)
    draft = path.with_suffix(".part")
    draft.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    draft.replace(path)


def in_step(name, folder=FOLDER):
    """Whether the stored notebook is what its text converts to: sources, tags, nbgrader."""
    path = folder / f"{name}.ipynb"
    return path.exists() and bare(nbformat.read(path, as_version=4)) == convert(name, folder)


def make(name):
    """Convert, execute and store one chapter."""
    notebook = settle(execute(convert(name), profile="read"))
    store(notebook, FOLDER / f"{name}.ipynb")


def main(arguments=None):
    """Return the exit status: 0 when all went well, 1 when a chapter failed, 2 for a wrong name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NN_name", help="chapters (default: all)")
    parser.add_argument("--check", action="store_true", help="compare only, execute nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(chapters()))
    if unknown:
        parser.error(f"no text notebooks/src/{unknown[0]}.md; there are: {', '.join(chapters())}")
    status = 0
    for name in options.names or chapters():
        if options.check:
            good = in_step(name)
            print(f"{name}: {'as its text' if good else 'differs, run `make notebooks`'}")
        else:
            good = made(name)
        status = status if good else 1
    return status


def made(name):
    """Make one chapter and say so; on a failing cell print its error and leave the old notebook."""
    print(f"{name}: executing", flush=True)
    try:
        make(name)
    except CellExecutionError as error:
        print(f"{name}: a cell failed, the notebook is left as it was\n{error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
