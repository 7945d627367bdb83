"""Tables on a terminal: Markdown that can be read as it is, and pasted; or columns that keep within a width."""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from launch.reporting.tables import Table

WORDS = 40  # characters; no column of words is wider
NUMBER = 10  # a column of numbers has room for so many
GAP = 2  # between columns


def markdown(tables: Iterable[Table]) -> str:
    """One below the other."""
    return "\n\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in (table.head, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    words = [place < table.words for place in range(len(widths))]
    columns = list(zip(widths, words, strict=True))
    rule = "|".join(f":{'-' * w} " if left else f" {'-' * w}:" for w, left in columns)
    lines = []
    for row in cells:
        places = zip(row, columns, strict=True)
        lines.append(" | ".join(f"{cell:<{w}}" if left else f"{cell:>{w}}" for cell, (w, left) in places))
    head, *rows = (f"| {line} |" for line in lines)
    return "\n".join([f"### {table.title}", "", head, f"|{rule}|", *rows, *(["", table.note] if table.note else [])])


def columns(tables: Iterable[Table], width: int = 120) -> str:
    """One below the other, none wider than `width`: cells take several lines, and columns without room come below.

    (Markdown knows neither.)
    """
    return "\n\n".join(_columns(table, width) for table in tables)


def _columns(table: Table, width: int) -> str:
    widths = _widths(table, width)
    lines = [table.title, "=" * len(table.title), ""]
    for places in _blocks(table, widths, width):
        rule = tuple("-" * size for size in widths)
        for row in (table.head, rule, *table.rows):
            lines += _row(table, [(row[place], widths[place], place) for place in places])
        lines.append("")
    return "\n".join([*lines, *textwrap.wrap(table.note, width)]).rstrip()


def _widths(table: Table, width: int) -> list[int]:
    """Heads of numbers make no column wider, and words leave room for three numbers or other words beside them."""
    most = min(WORDS, width // 3 - GAP if table.words < len(table.head) else (width - GAP) // 2)
    widths = []
    for place, column in enumerate(zip(table.head, *table.rows, strict=True)):
        words = place < table.words
        widths.append(min(max(map(len, column)), most) if words else max(NUMBER, *map(len, column[1:])))
    return widths


def _blocks(table: Table, widths: Sequence[int], width: int) -> list[list[int]]:
    """Places of the columns that stand beside each other: in each block the fixed ones, and as many groups as fit."""
    fixed = list(range(table.fixed))
    blocks = [fixed.copy()]
    for start in range(table.fixed, len(widths), table.group):
        group = list(range(start, min(start + table.group, len(widths))))
        together = [*blocks[-1], *group]
        if len(blocks[-1]) > len(fixed) and sum(widths[place] + GAP for place in together) - GAP > width:
            blocks.append(fixed + group)
        else:
            blocks[-1] = together
    return blocks


def _row(table: Table, cells: Sequence[tuple[str, int, int]]) -> Iterator[str]:
    """Its lines; a cell is text, width and place."""
    wrapped = [textwrap.wrap(text, size) for text, size, _ in cells]
    for parts in itertools.zip_longest(*wrapped, fillvalue=""):
        line = (
            f"{part:<{size}}" if place < table.words else f"{part:>{size}}"
            for part, (_, size, place) in zip(parts, cells, strict=True)
        )
        yield (" " * GAP).join(line).rstrip()
