"""What a training leaves behind step by step, so that a resumed run still knows its past."""

import csv
import time
from pathlib import Path

from mnistlib.data import write_atomically

__all__ = ["Journal", "Table", "read_rows", "stretches"]


class Table:
    """Numbers of some steps, in memory and in a CSV file with one row a step.

    Args:
        path: the file; None keeps the rows in memory only.
        columns: what the numbers are called; the first column is always the step.
    """

    def __init__(self, path: str | Path | None, columns: tuple[str, ...]):
        self.path = None if path is None else Path(path)
        self.columns = ("step", *columns)
        self.rows: list[tuple[float, ...]] = []

    def resume(self, first: int) -> None:
        """Take over the rows of an earlier run that lie before step ``first``."""
        if self.path is None:
            return
        if self.path.is_file() and first > 1:
            self.rows = [row for row in read_rows(self.path) if row[0] < first]
        lines = [self.columns, *self.rows]
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        write_atomically(self.path, text.encode())

    def add(self, step: int, *numbers: float) -> None:
        """Write down one step."""
        self.rows.append((step, *numbers))
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(self.rows[-1])


class Journal(Table):
    """Loss and elapsed seconds of every step.

    Seconds count the time spent training, without the pauses between two runs.
    """

    def __init__(self, path: str | Path | None):
        super().__init__(path, ("loss", "seconds"))
        self._start = time.monotonic()

    def resume(self, first: int) -> None:
        """As in ``Table``; the clock goes on where it stood."""
        super().resume(first)
        self._start = time.monotonic() - self.seconds

    def add(self, step: int, loss: float) -> None:
        """Write down one step."""
        super().add(step, loss, round(time.monotonic() - self._start, 2))

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.rows[-1][2] if self.rows else 0.0

    def losses(self, points: int = 200) -> list[float]:
        """Means over up to ``points`` equal stretches: a loss curve that fits a record."""
        return [round(mean, 5) for mean in stretches([row[1] for row in self.rows], points)]


def read_rows(path: str | Path) -> list[tuple[float, ...]]:
    """The rows of a table's file: a step and its numbers. A last line that was cut is left out."""
    text = Path(path).read_text(encoding="utf-8")
    _, *rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    return [(int(s), *map(float, numbers)) for s, *numbers in rows]


def stretches(values: list[float], points: int) -> list[float]:
    """Means over up to ``points`` stretches of equal length; the last may be shorter."""
    size = max(1, -(-len(values) // points))
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]
