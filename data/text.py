"""Text as blocks of whole lines: plain files are cut into byte ranges, compressed ones and standard input are streams.

Where a text is cut depends on the text alone, never on who reads it.
"""

import bz2
import glob
import gzip
import itertools
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash

from launch.errors import ConfigError, DataError

BLOCK_BYTES = 1 << 20  # text encoded at once: large enough for vectors, small enough for the cache
STANDARD_INPUT = "-"
# By their first bytes: a name may end in anything.
COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
}  # fmt: skip
UNREADABLE = {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"PAR1": "Parquet"}
MOST_SHARDS = 8192  # each is two mapped files of the trainer
_MEGABYTE = 1_000_000
_EDGE = 1 << 16


@dataclass(frozen=True)
class Range:
    """The part of an input that becomes one shard: bytes [start, end) of its text, whole lines."""

    number: int
    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Selection:
    """Which lines go where, by their content: the same line has the same fate in any file and at any place.

    Attributes:
        sample: share of the lines to take at all.
        valid_fraction: share of these that is held out, in a dataset of its own.
    """

    sample: float = 1.0
    valid_fraction: float = 0.0

    @property
    def datasets(self) -> tuple[str, ...]:
        """Folders of the datasets that are made, within the output."""
        return ("train", "valid") if self.valid_fraction else (".",)

    def split(self, block: bytes) -> tuple[list[bytes], int]:
        """The block of each dataset, lines in their order; and how many lines belong to none."""
        if self.sample >= 1 and not self.valid_fraction:
            return [block], 0
        parts: list[list[bytes]] = [[] for _ in self.datasets]
        lines = block.removesuffix(b"\n").split(b"\n")
        for line in lines:
            content = line.removesuffix(b"\r")
            if _share(content, seed=1) < self.sample:
                parts[_share(content, seed=2) < self.valid_fraction].append(line)
        left_out = len(lines) - sum(map(len, parts))
        return [b"".join(line + b"\n" for line in part) for part in parts], left_out


def _share(line: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the line."""
    return xxhash.xxh3_64_intdigest(line, seed=seed) / 2**64


def expand(patterns: Iterable[str]) -> list[str]:
    """Files that match, in sorted order within each pattern; `-` is standard input.

    Raises:
        ConfigError: no such file, a folder or device, or the same input twice.
    """
    found = []
    for pattern in patterns:
        paths = [pattern] if pattern == STANDARD_INPUT or Path(pattern).exists() else sorted(glob.glob(pattern))
        if not paths:
            raise ConfigError(f"--input {pattern}: no such file")
        found += paths
    for path in found:
        if path != STANDARD_INPUT and not Path(path).is_file():
            raise ConfigError(f"--input {path}: must be a regular file: it is cut into byte ranges (a pipe: use `-`)")
    identities = [path if path == STANDARD_INPUT else str(Path(path).resolve()) for path in found]
    twice = next((path for path, same in zip(found, identities, strict=True) if identities.count(same) > 1), None)
    if twice:
        raise ConfigError(f"--input {twice}: is given twice")
    return found


def is_stream(path: str) -> bool:
    """Whether an input can only be read from its beginning to its end.

    Raises:
        ConfigError: compressed in a way that is not read here.
    """
    if path == STANDARD_INPUT:
        return True
    head = _head(path)
    for mark, kind in UNREADABLE.items():
        if head.startswith(mark):
            raise ConfigError(f"--input {path}: is {kind}, not text: unpack it, into a pipe perhaps (`--input -`)")
    return _opener(head) is not None


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _opener(head: bytes) -> Callable[..., Any] | None:
    return next((opener for mark, opener in COMPRESSED.items() if head.startswith(mark)), None)


def identity(path: str) -> dict[str, Any]:
    """What changes when a file does, without reading all of it: size, time, first and last 64 kB."""
    if path == STANDARD_INPUT:
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


def shard_bytes(paths: list[str], megabytes: int | None) -> int:
    """Text in one shard: as asked for, or a 64th of all, between 8 and 256 MB; more where shards would be too many."""
    if megabytes is not None:
        return megabytes * _MEGABYTE
    if STANDARD_INPUT in paths:
        return 256 * _MEGABYTE
    total = sum(Path(path).stat().st_size for path in paths)
    return max(min(max(total // 64, 8 * _MEGABYTE), 256 * _MEGABYTE), total // MOST_SHARDS)


def plan(paths: list[str], size: int, limit: int | None) -> tuple[list[Range], int | None]:
    """Cut plain files into ranges of about `size` bytes.

    Args:
        limit: lines to take, of the files in their order; None: all.

    Returns:
        The ranges, and the lines that are left to take.
    """
    ranges: list[Range] = []
    for path in paths:
        end = Path(path).stat().st_size
        if limit is not None:
            end, limit = _end_of_lines(path, limit)
        cuts = itertools.pairwise(_cuts(path, size, end))
        ranges += [Range(len(ranges) + i, path, start, stop) for i, (start, stop) in enumerate(cuts)]
    return ranges, limit


def _cuts(path: str, size: int, end: int) -> list[int]:
    """0, the first line ends after every `size` bytes, and `end`."""
    cuts = [0]
    with open(path, "rb") as file:
        for target in range(size, end, size):
            if target > cuts[-1]:  # else a line longer than `size` reaches beyond it
                file.seek(target - 1)
                file.readline()
                cuts.append(file.tell())
    return [*cuts, end] if cuts[-1] < end else cuts


def _end_of_lines(path: str, lines: int) -> tuple[int, int]:
    """Where the first `lines` lines of a file end, and how many of them it lacks."""
    end = 0
    with open(path, "rb") as file:
        while lines and (block := _whole_lines(file, BLOCK_BYTES)):
            taken = _first_lines(block, lines)
            end, lines = end + len(taken), lines - count_lines(taken)
    return end, lines


def blocks(part: Range) -> Iterator[bytes]:
    """The text of a range, about BLOCK_BYTES of whole lines at a time.

    Raises:
        DataError: the file became shorter.
    """
    with open(part.path, "rb") as file:
        file.seek(part.start)
        left = part.end - part.start
        while left > 0:
            block = _whole_lines(file, min(BLOCK_BYTES, left))
            if not block:
                raise DataError(f"{part.path}: shrank while it was read")
            left -= len(block)
            if left < 0:
                raise DataError(f"{part.path}: changed while it was read")
            yield block


def stream_blocks(path: str, limit: int | None) -> Iterator[bytes]:
    """The text of a compressed file or of standard input, about BLOCK_BYTES of whole lines at a time.

    Raises:
        DataError: what is compressed is damaged or truncated.
    """
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise ConfigError("--input -: standard input is closed")
        file = sys.stdin.buffer
    else:
        file = (_opener(_head(path)) or open)(path, "rb")
    with file:
        while limit != 0:
            try:
                block = _whole_lines(file, BLOCK_BYTES)
            except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
                raise DataError(f"{path}: can't be decompressed: {error}") from error
            if not block:
                return
            if limit is not None:
                block = _first_lines(block, limit)
                limit -= count_lines(block)
            yield block


@dataclass(frozen=True)
class Piece:
    """A block of a stream, with the shard that it belongs to and where it begins in the stream's text."""

    number: int
    start: int
    head: bool
    block: bytes


class Stream:
    """An input that is read once, from its beginning to its end, cut into shards of `size` bytes or little more.

    Attributes:
        bytes, lines, shards: what has been read so far.
    """

    def __init__(self, path: str, size: int, limit: int | None, number: int) -> None:
        """
        Args:
            number: of its first shard.
        """
        self.path, self.size, self.limit, self.number = path, size, limit, number
        self.bytes = self.lines = self.shards = 0

    def __iter__(self) -> Iterator[Piece]:
        begin = 0
        for block in stream_blocks(self.path, self.limit):
            head = self.bytes == 0 or self.bytes - begin >= self.size
            if head:
                self.shards, begin = self.shards + 1, self.bytes
            yield Piece(self.number + self.shards - 1, self.bytes, head, block)
            self.bytes += len(block)
            self.lines += count_lines(block)


def _whole_lines(file: IO[bytes], size: int) -> bytes:
    """About `size` bytes, up to the end of a line."""
    block = file.read(size)
    return block if block.endswith(b"\n") else block + file.readline()


def count_lines(block: bytes) -> int:
    """Lines of a block, the last of which may lack its end."""
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _first_lines(block: bytes, lines: int) -> bytes:
    if count_lines(block) <= lines:
        return block
    return b"".join(line + b"\n" for line in block.split(b"\n", lines)[:lines])
