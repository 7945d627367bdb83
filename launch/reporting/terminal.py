"""Tables on a terminal: Markdown that can be read as it is, and pasted."""

from collections.abc import Iterable

from launch.reporting.tables import Table


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
