"""From the figures of a step's variants to a table: medians, and ratios to the first row."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.step_variants import Setting

Figures = dict[str, Any]
Cells = list[tuple[str, ...]]
HEAD = ("variant", "batches", "dtype", "attention / norm / losses", "tokens/s", "ratio", "of CPU time", "ratio",
        "padding", "TFLOP/s", "MFU", "of the maker's", "MB", "ratio", "loss apart", "gradient apart",
        "note")  # fmt: skip


def cells(setting: Setting, found: Mapping[str, Sequence[Figures]]) -> Cells:
    """The table, of all processes' figures."""
    middle = {name: medians(figures) for name, figures in found.items()}
    first = next((row for row in middle.values() if "missing" not in row), {})
    return [HEAD, *(line(setting, name, row, first) for name, row in middle.items())]


def medians(results: Sequence[Figures]) -> Figures:
    """Of the numbers; what only the first process has, and what is no number, as it has it."""
    row = dict(results[0])
    for key, value in row.items():
        if isinstance(value, int | float) and all(key in result for result in results):
            row[key] = statistics.median(result[key] for result in results)
    return row


def line(setting: Setting, name: str, row: Figures, first: Figures) -> tuple[str, ...]:
    """One variant."""
    if "missing" in row:
        return (name, *["-"] * (len(HEAD) - 2), row["missing"])
    wall, cpu, memory = (f"{row[key] / first[key]:.2f}" for key in ("wall", "cpu", "memory"))
    sheet = f"{row['flops'] / row['sheet']:.0%}" if row["sheet"] else "-"
    apart = [f"{row[key]:.1e}" if key in row else "-" for key in ("loss_difference", "gradient_difference")]
    return (
        name, row["batching"], setting.dtype, row["kernels"], f"{row['wall']:,.0f}", wall, f"{row['cpu']:,.0f}", cpu,
        f"{row['padding']:.0%}", f"{row['flops'] / 1e12:.3g}", f"{row['mfu']:.0%}", sheet,
        f"{row['memory'] / 2**20:,.0f}", memory, *apart, note(row),
    )  # fmt: skip


def note(row: Figures) -> str:
    """Whether the machine was quiet."""
    others = row["others"]
    return f"others took {others:.0%} of the processors" if others > 0.05 else ""
