"""Each chapter's notebook is what its text says, is fully executed, and runs in the smoke profile.

The stored numbers themselves are computed again by nbval: see `make test`.
"""

import nbformat
import pytest

from scripts import notebooks

CHAPTERS = notebooks.chapters()
NBGRADER_KEYS = {"grade", "solution", "locked", "task", "grade_id", "schema_version"}


def read(name):
    """Return a stored notebook."""
    return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name):
    """Return the code cells of a stored notebook."""
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def tags(cell):
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def exercises(name):
    """Return the nbgrader metadata of each exercise cell of a chapter."""
    return [cell.metadata.nbgrader for cell in read(name).cells if "nbgrader" in cell.metadata]


def test_every_notebook_has_a_text():
    assert sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb")) == CHAPTERS


@pytest.mark.parametrize("name", CHAPTERS)
def test_notebook_is_as_its_text(name):
    assert notebooks.in_step(name), "run `make notebooks`"


@pytest.mark.parametrize("name", CHAPTERS)
def test_stored_outputs_come_from_one_complete_run(name):
    cells = code_cells(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "widgets" not in read(name).metadata
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds


@pytest.mark.parametrize("name", CHAPTERS)
def test_at_least_five_outputs_are_compared(name):
    compared = [cell for cell in code_cells(name) if "nbval-check-output" in tags(cell)]
    assert len(compared) >= 5
    assert all(cell.outputs for cell in compared), "a compared cell prints something"


@pytest.mark.parametrize("name", CHAPTERS)
def test_exercises_are_ready_for_nbgrader(name):
    found = exercises(name)
    assert all(set(cell) >= NBGRADER_KEYS and cell.schema_version == 3 for cell in found)
    assert all("points" in cell for cell in found if cell.grade)
    assert sum(cell.solution for cell in found) >= 3, "three exercises or more"
    identifiers = [cell.grade_id for cell in found]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_are_folded(name):
    solutions = [c for c in code_cells(name) if c.metadata.get("nbgrader", {}).get("solution")]
    assert [cell.source for cell in solutions if "hide-input" not in tags(cell)] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_runs_in_the_smoke_profile(name):
    notebooks.execute(notebooks.convert(name), profile="smoke")
