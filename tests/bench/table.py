"""What benchmarks share: a row, the fastest of several goes, and the table."""

import csv
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        ours, peer: millions of real tokens a second where `unit` says so, else a time; None: nothing to compare with.
        note: why something is missing, or what else was seen.
    """

    stage: str
    against: str
    unit: str
    ours: float
    peer: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better."""
        if self.peer is None:
            return None
        return self.ours / self.peer if self.unit == "Mtok/s" else self.peer / self.ours


def best(work: Callable[[], object], goes: int = 7) -> float:
    """Seconds of the fastest go."""
    work()
    times = []
    for _ in range(goes):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def each(function: Callable[..., object], arguments: Iterable[Sequence[object]]) -> Callable[[], None]:
    """Work that calls a function with all of these and keeps no result."""
    calls = list(arguments)

    def work() -> None:
        for call in calls:
            function(*call)

    return work


def show(rows: Sequence[Row], output: Path) -> None:
    """The table, and the same as CSV."""
    cells = [("stage", "against", "unit", "ours", "peer", "ratio", "note")]
    for row in rows:
        peer = "-" if row.peer is None else f"{row.peer:,.2f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:,.1f}"
        cells.append((row.stage, row.against, row.unit, f"{row.ours:,.2f}", peer, ratio, row.note))
    show_cells(cells, right=range(3, 6))
    with open(output / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows(cells)


def show_cells(cells: Sequence[Sequence[str]], right: Iterable[int]) -> None:
    """Print columns; those named stand to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    columns = set(right)
    for line in cells:
        parts = [
            f"{c:>{w}}" if i in columns else f"{c:<{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(parts).rstrip())
