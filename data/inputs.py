"""Inputs of a build: files by name or pattern, standard input, and datasets of the hub.

What a file is, is told by its first bytes, since a name may end in anything. JSON alone looks like text: by its name.
"""

import bz2
import glob
import gzip
import importlib
import lzma
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from data import hub, optional, records
from launch.errors import ConfigError, did_you_mean_path

STANDARD_INPUT = "-"
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_EDGE = 1 << 16


def _open_zstd(path: str, mode: str) -> Any:
    zstd = importlib.import_module(ZSTD)
    return zstd.open(
        path, mode, options={zstd.DecompressionParameter.window_log_max: 31}
    )  # what `zstd --long` may need


COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd, b"\x50\x2a\x4d\x18": _open_zstd,  # the second is pzstd's
}  # fmt: skip
PARQUET, ZIP = b"PAR1", b"PK\x03\x04"
JSON = re.compile(r"\.(json|jsonl|ndjson)(\.\w+)?$")


def expand(patterns: Iterable[str], field: str | None = None) -> list[str]:
    """Inputs that are meant, files in sorted order within each pattern. `-` is standard input; what is on the hub gets
    the commit that it has now.

    Args:
        field: the inputs are records, and this field of each is the text.

    Raises:
        ConfigError: no such file or dataset, a folder or device, nothing that is read here, or the same input twice.
    """
    found = []
    for pattern in map(str, patterns):
        if pattern.startswith(hub.PREFIX):
            found.append(hub.pinned(pattern))
            continue
        paths = [pattern] if pattern == STANDARD_INPUT or Path(pattern).exists() else sorted(glob.glob(pattern))
        if not paths:
            raise ConfigError(f"--input {pattern}: no such file{did_you_mean_path(pattern)}")
        found += paths
    for path in found:
        if Path(path).is_dir():
            raise ConfigError(f"--input {path}: is a folder: give its files, '{Path(path) / '*'}'")
        if not (is_file(path) or path == STANDARD_INPUT or path.startswith(hub.PREFIX)):
            raise ConfigError(f"--input {path}: must be a regular file: it is cut into byte ranges (a pipe: use `-`)")
        _refuse_unreadable(path, field)
    identities = [str(Path(path).resolve()) if is_file(path) else path for path in found]
    twice = next((path for path, same in zip(found, identities, strict=True) if identities.count(same) > 1), None)
    if twice:
        raise ConfigError(f"--input {twice}: is given twice")
    return found


def is_file(path: str) -> bool:
    """Whether an input is a file, neither standard input nor on the hub."""
    return path != STANDARD_INPUT and not path.startswith(hub.PREFIX) and Path(path).is_file()


def _refuse_unreadable(path: str, field: str | None) -> None:
    """Also where a library is missing: the rest of a build would be for nothing."""
    if _head(path).startswith(ZIP):
        raise ConfigError(f"--input {path}: is zip, not text: unpack it, into a pipe perhaps (`--input -`)")
    if field is None and (columns(path) or JSON.search(path)):
        raise ConfigError(f"--input {path}: holds records: say which field of them is the text, as in `--field text`")
    if opener(path) is _open_zstd:
        optional.module(ZSTD, "zstd", f"--input {path}")
    if columns(path) is records.of_parquet:
        optional.module("pyarrow", "parquet", f"--input {path}")


def is_stream(path: str) -> bool:
    """Whether an input can only be read from its beginning to its end."""
    return path == STANDARD_INPUT or bool(columns(path) or opener(path))


def _head(path: str) -> bytes:
    if not is_file(path):
        return b""
    with open(path, "rb") as file:
        return file.read(8)


def opener(path: str) -> Callable[..., Any] | None:
    """What opens a compressed file; None: it is none."""
    head = _head(path)
    return next((opens for mark, opens in COMPRESSED.items() if head.startswith(mark)), None)


def columns(path: str) -> Callable[[str, str], Iterator[bytes]] | None:
    """What reads the lines out of a column; None: the input has none."""
    if path.startswith(hub.PREFIX):
        return records.of_hub
    return records.of_parquet if _head(path).startswith(PARQUET) else None


def name_of(path: str) -> str:
    """What an input is called where its folder is of no interest."""
    return path if path.startswith(hub.PREFIX) else Path(path).name


def identity(path: str) -> dict[str, Any]:
    """What changes when a file does, without reading all of it: size, time, first and last 64 kB; the hub's commit."""
    if not is_file(path):
        return {"name": path}
    status = Path(path).stat()
    with open(path, "rb") as file:
        digest = xxhash.xxh3_64(file.read(_EDGE))
        file.seek(max(status.st_size - _EDGE, 0))
        digest.update(file.read(_EDGE))
    return {
        "name": Path(path).name,
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "edges": digest.hexdigest(),
    }
