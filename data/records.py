"""Records -> lines of text: a field of JSON lines, a column of a Parquet file, or one of a dataset of the hub.

A record is a line, as a line is a sequence: line feeds within its text become spaces. A text that is null, or a blank
line in place of a JSON object, is an empty line, which is too short for a sequence, and is counted as that.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data import hub, optional
from launch.errors import DataError, did_you_mean

ROWS = 1000  # taken out of a column at once


def of_json(block: bytes, field: str, place: Callable[[int], str]) -> bytes:
    """The texts of a block of whole lines, each of which is a JSON object.

    Args:
        place: where a line is, by its number in the block.

    Raises:
        DataError: a line that is no JSON object, lacks the field, or has no text there.
    """
    texts = []
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n")):
        try:
            texts.append(_line(_value(line, field), field))
        except _Fault as fault:
            raise DataError(f"{place(number)}: {fault}") from fault
    return b"".join(texts)


def of_parquet(path: str, field: str) -> Iterator[bytes]:
    """The texts of a column, row after row.

    Raises:
        ConfigError: the library that reads Parquet is not installed.
        DataError: a damaged file, or no such column of text.
    """
    arrow = optional.module("pyarrow", "parquet", f"--input {path}")
    parquet = optional.module("pyarrow.parquet", "parquet", f"--input {path}")
    try:
        # A megabyte at a time: by default it reads ahead, which is all of a row group.
        file = parquet.ParquetFile(Path(path), buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: can't be read as Parquet: {error}") from error
    with file:
        _refuse_missing(field, file.schema_arrow.names, path)
        kind = file.schema_arrow.field(field).type
        values = kind.value_type if arrow.types.is_dictionary(kind) else kind
        if values not in (arrow.string(), arrow.large_string(), arrow.string_view()):
            raise DataError(f"{path}: column '{field}' is of type {kind}, not text")
        batches = file.iter_batches(ROWS, columns=[field])
        # As bytes: text that is not UTF-8 is counted and mended where all lines are.
        columns = (b.column(0).cast(arrow.large_string()).cast(arrow.large_binary()).to_pylist() for b in batches)
        yield from _lines(columns, field, path)


def of_hub(source: str, field: str) -> Iterator[bytes]:
    """The texts of a column, row after row, as they come over the network.

    Args:
        source: pinned to a commit.

    Raises:
        ConfigError: no such dataset, or the hub can't be reached.
        DataError: no such column of text, or the connection broke.
    """
    rows = hub.stream(hub.Address.parse(source))
    if rows.column_names is not None:  # else they are known only when a row is there
        _refuse_missing(field, rows.column_names, source)
        rows = rows.select_columns([field])
    yield from _lines((_column(batch, field, source) for batch in rows.iter(ROWS)), field, source)


def _column(batch: dict[str, list[Any]], field: str, source: str) -> list[Any]:
    _refuse_missing(field, batch, source)
    return batch[field]


class _Fault(Exception):
    """What is wrong with a record."""


def _value(line: bytes, field: str) -> Any:
    """Of a field of a JSON object. Bytes that are not UTF-8 pass through, to be counted where all lines are."""
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode(errors="surrogateescape"))
    except json.JSONDecodeError as error:
        raise _Fault(f"no JSON object: {error.msg}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # numbers and brackets beyond what Python takes
        raise _Fault(f"no JSON object: {error}") from error
    if not isinstance(record, dict):
        raise _Fault(f"a {type(record).__name__}, no JSON object")
    if field not in record:
        raise _Fault(_missing("field", field, record))
    return record[field]


def _line(value: Any, field: str) -> bytes:
    if value is None:
        return b"\n"
    if isinstance(value, str):
        value = value.encode(errors="surrogatepass")
    if not isinstance(value, bytes):
        raise _Fault(f"field '{field}' is a {type(value).__name__}, not text")
    return value.replace(b"\n", b" ") + b"\n"


def _lines(columns: Iterator[list[Any]], field: str, source: str) -> Iterator[bytes]:
    for number, value in enumerate(itertools.chain.from_iterable(_read(columns, source))):
        try:
            yield _line(value, field)
        except _Fault as fault:
            raise DataError(f"{source}, row {number:,}: {fault}") from fault


def _read(columns: Iterator[list[Any]], source: str) -> Iterator[list[Any]]:
    """What a library gives; whatever it raises says that the data can't be read."""
    rows = 0
    while True:
        try:
            column = next(columns, None)
        except DataError:
            raise
        except Exception as error:  # of Arrow, of the network, of any decompressor
            raise DataError(f"{source}: can't be read on after row {rows:,}: {error}") from error
        if column is None:
            return
        yield column
        rows += len(column)


def _refuse_missing(field: str, columns: Iterable[str], source: str) -> None:
    if field not in columns:
        raise DataError(f"{source}: {_missing('column', field, columns)}")


def _missing(what: str, name: str, there: Iterable[str]) -> str:
    return f"no {what} '{name}' (but {', '.join(there) or 'none'}){did_you_mean(name, there)}"
