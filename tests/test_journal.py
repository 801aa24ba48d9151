"""The journal of a training survives a cut, and thins to a curve that fits a record."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnistlib.journal import Journal, read_rows


def test_a_resumed_run_knows_its_past(tmp_path):
    """Steps after the last saved state are done again: their old rows go."""
    cut = Journal(tmp_path / "journal.csv")
    cut.resume(1)
    for step in range(1, 8):
        cut.add(step, step / 10)
    resumed = Journal(tmp_path / "journal.csv")
    resumed.resume(6)
    assert [row[:2] for row in resumed.rows] == [(n, n / 10) for n in range(1, 6)]
    resumed.add(6, 0.5)
    assert resumed.seconds >= cut.rows[4][2]
    again = Journal(tmp_path / "journal.csv")
    again.resume(7)
    assert again.rows == resumed.rows


def test_a_fresh_run_forgets_an_older_file(tmp_path):
    (tmp_path / "journal.csv").write_text("step,loss,seconds\n1,5.0,1.0\n")
    fresh = Journal(tmp_path / "journal.csv")
    fresh.resume(1)
    assert fresh.rows == []
    assert fresh.seconds == 0
    assert (tmp_path / "journal.csv").read_text() == "step,loss,seconds\n"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=900))
def test_the_curve_is_thinned(losses):
    journal = Journal(None)
    for step, loss in enumerate(losses, start=1):
        journal.add(step, loss)
    thin = journal.losses()
    size = -(-len(losses) // 200)
    assert len(thin) == -(-len(losses) // size) <= 200
    assert thin[0] == pytest.approx(np.mean(losses[:size]), abs=1e-5)
    assert thin[-1] == pytest.approx(np.mean(losses[(len(thin) - 1) * size :]), abs=1e-5)


@pytest.mark.parametrize("last", ["25", "251,0.5", "\0\0\0\0"])
def test_a_last_line_that_was_cut_is_left_out(tmp_path, last):
    """Of "251,0.5,25.1" only "25" may have reached the disk, and that is another step."""
    path = tmp_path / "journal.csv"
    path.write_text(f"step,loss,seconds\n249,0.5,24.9\n250,0.5,25.0\n{last}")
    assert [row[0] for row in read_rows(path)] == [249, 250]
