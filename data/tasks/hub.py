"""Tasks by name from the Hugging Face hub, with the `datasets` library, which is optional."""

from collections.abc import Iterator
from typing import Any

from data import hub
from launch.errors import DataError, did_you_mean


def load(
    dataset: str, config: str | None, split: str, columns: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a split, each with where it is.

    Args:
        columns: that a row must have.

    Raises:
        ConfigError: the library is not installed, or the hub can't be reached and nothing is cached.
        DataError: a row lacks a column.
    """
    what = f"without --data, '{dataset}', of the Hugging Face hub,"
    rows = hub.load(dataset, config, split, what, "give the task's files as published: --data FOLDER")
    for number, row in enumerate(rows):
        place = f"'{dataset}', {split}, row {number}"
        for column in columns:
            if column not in row:
                raise DataError(f"{place}: no column '{column}' (but {', '.join(row)}){did_you_mean(column, row)}")
        yield place, row
