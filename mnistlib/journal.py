"""What a training leaves behind step by step, so that a resumed run still knows its past."""

import csv
import time
from pathlib import Path

from mnistlib.data import write_atomically

__all__ = ["Journal"]


class Journal:
    """Loss and elapsed seconds of every step, in memory and in a CSV file (step,loss,seconds).

    Seconds count the time spent training, without the pauses between two runs.

    Args:
        path: the file; None keeps the rows in memory only.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)
        self.rows: list[tuple[int, float, float]] = []
        self._start = time.monotonic()

    def resume(self, first: int) -> None:
        """Take over the rows of an earlier run that lie before step ``first``."""
        if self.path is not None and self.path.is_file() and first > 1:
            with self.path.open(newline="") as file:
                rows = [
                    (int(s), float(loss), float(t)) for s, loss, t in list(csv.reader(file))[1:]
                ]
            self.rows = [row for row in rows if row[0] < first]
        if self.path is not None:
            lines = ["step,loss,seconds", *(",".join(map(str, row)) for row in self.rows)]
            write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())
        self._start = time.monotonic() - self.seconds

    def add(self, step: int, loss: float) -> None:
        """Write down one step."""
        self.rows.append((step, loss, round(time.monotonic() - self._start, 2)))
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(self.rows[-1])

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.rows[-1][2] if self.rows else 0.0

    def losses(self, points: int = 200) -> list[float]:
        """Means over up to ``points`` equal stretches: a loss curve that fits a record."""
        values = [loss for _, loss, _ in self.rows]
        size = max(1, -(-len(values) // points))
        stretches = [values[i : i + size] for i in range(0, len(values), size)]
        return [round(sum(part) / len(part), 5) for part in stretches]
