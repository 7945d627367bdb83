"""Files of tasks: found by their published names, and read so that every error says where."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.errors import DataError, did_you_mean, did_you_mean_path


def find(data: Path, names: Sequence[str], what: str) -> Path:
    """The first of the names that is there.

    Raises:
        DataError: none is; says which were looked for.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder{did_you_mean_path(data)}; it should hold {' or '.join(names)}")
    for name in names:
        if (data / name).is_file():
            return data / name
    raise DataError(f"--data {data}: {what} is not there; looked for {', '.join(names)}")


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Where it is, and the text, of each line that is not blank. Lines end at a line feed only, and a carriage return
    before it belongs to the end; a byte order mark is passed over.

    Raises:
        DataError: no line at all, or one that is not UTF-8.
    """
    empty = True
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8: {error.reason}, byte {error.start + 1} of the line") from error
            if text:
                empty = False
                yield place, text
    if empty:
        raise DataError(f"{path}: the file is empty")


def table(
    path: Path, columns: Sequence[str], header: Sequence[str] = (), ragged: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Where it is, and the wanted columns, of each row of a table of tab-separated values. Quotes are characters like
    any others.

    Args:
        header: names of all columns, where the file's first line doesn't give them.
        ragged: rows that lack fields are known of the published file: they are passed over, and counted.

    Raises:
        DataError: a column is missing, or a row has not as many fields as there are columns.
    """
    rows = lines(path)
    names = list(header)
    if not names:
        place, first = next(rows)
        names = first.split("\t")
        for column in columns:
            if column not in names:
                raise DataError(
                    f"{place}: no column '{column}'{did_you_mean(column, names)}; the columns are "
                    f"{', '.join(map(repr, names))}, separated by tabs"
                )
    wanted = [names.index(column) for column in columns]
    short: list[str] = []
    place = str(path)
    for place, line in rows:
        fields = line.split("\t")
        if ragged and len(fields) < len(names):
            short.append(place)
        elif len(fields) != len(names):
            raise DataError(
                f"{place}: {len(fields)} fields, expected {len(names)} ({', '.join(names)}), separated by tabs"
            )
        else:
            yield place, [fields[i] for i in wanted]
    if short and short[-1] == place:
        raise DataError(f"{place}: the last line lacks fields; the file seems to be cut off")
    if short:
        logging.getLogger(__name__).warning(
            "warning: %d lines lack fields and are passed over: %s", len(short), short[0]
        )


def load_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        DataError: empty, not UTF-8, or not JSON; says line and column.
    """
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8: {error.reason}, byte {error.start + 1} of the file"
        ) from error
    except json.JSONDecodeError as error:
        ends = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string")
        cut = "; the file seems to be cut off" if ends else ""
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}{cut}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise DataError(f"{path}: not JSON that can be read: {error}") from error
