"""Text as blocks of whole lines: plain files are cut into byte ranges; what is compressed, a column of records, or
standard input is a stream, whose text is the lines that come out of it.

Where a text is cut depends on the text alone, never on who reads it.
"""

import codecs
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

from data import inputs, records
from launch.errors import ConfigError, DataError

BLOCK_BYTES = 1 << 20  # text encoded at once: large enough for vectors, small enough for the cache
MOST_SHARDS = 8192  # each is two mapped files of the trainer
_MEGABYTE = 1_000_000


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


def shard_bytes(paths: list[str], megabytes: int | None) -> int:
    """Text in one shard: as asked for, or a 64th of all, between 8 and 256 MB; more where shards would be too many."""
    if megabytes is not None:
        return megabytes * _MEGABYTE
    if not all(map(inputs.is_file, paths)):
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


def text_blocks(part: Range, field: str | None) -> Iterator[tuple[bytes, int]]:
    """The lines of a range by blocks, and how many bytes of the file each block was.

    Args:
        field: the file's lines are JSON objects, and this field of each is the line that is meant.

    Raises:
        DataError: as `blocks`, or a line that is no such object.
    """
    start = part.start
    for block in blocks(part):
        yield _texts(block, field, start == 0, functools.partial(_place, part.path, start)), len(block)
        start += len(block)


def stream_blocks(path: str, limit: int | None, field: str | None = None) -> Iterator[bytes]:
    """The lines of an input that is read as a stream, about BLOCK_BYTES at a time.

    Args:
        limit: of lines.
        field: they are JSON objects, or there are columns: this one is the text.

    Raises:
        DataError: what is compressed is damaged or truncated, or a record is not what it should be.
    """
    if columns := inputs.columns(path):
        assert field  # inputs.expand has seen to it
        yield from _limited(_gathered(columns(path, field)), limit)
        return
    lines = 0
    for block in _limited(_raw_blocks(path), limit):
        yield _texts(block, field, lines == 0, functools.partial(_line, path, lines))
        lines += count_lines(block)


def _texts(block: bytes, field: str | None, first: bool, place: Callable[[int], str]) -> bytes:
    """The lines that are meant. Before the first JSON object there may be a mark of UTF-8, as some programs write it;
    in a text, the tokenizer drops it."""
    if not field:
        return block
    return records.of_json(block.removeprefix(codecs.BOM_UTF8) if first else block, field, place)


def _place(path: str, start: int, number: int) -> str:
    """Name a line of a file by its number behind byte `start`."""
    with open(path, "rb") as file:
        pieces = (file.read(min(BLOCK_BYTES, start - at)) for at in range(0, start, BLOCK_BYTES))
        return _line(path, sum(piece.count(b"\n") for piece in pieces), number)


def _line(path: str, before: int, number: int) -> str:
    return f"{path}, line {before + number + 1:,}"


def _limited(source: Iterator[bytes], lines: int | None) -> Iterator[bytes]:
    """The first so many lines; not a block more is asked for."""
    while lines != 0 and (block := next(source, None)):
        if lines is not None:
            block = _first_lines(block, lines)
            lines -= count_lines(block)
        yield block


def _raw_blocks(path: str) -> Iterator[bytes]:
    """Of standard input, or of a file, unpacked."""
    if path == inputs.STANDARD_INPUT:
        if sys.stdin is None:
            raise ConfigError("--input -: standard input is closed")
        file = sys.stdin.buffer
    else:
        file = (inputs.opener(path) or open)(path, "rb")
    with file:
        while True:
            try:
                block = _whole_lines(file, BLOCK_BYTES)
            except Exception as error:  # each library raises its own
                raise DataError(f"{path}: can't be decompressed: {error}") from error
            if not block:
                return
            yield block


def _gathered(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, about BLOCK_BYTES at a time, whatever the portions in which they came."""
    block, size = [], 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)


@dataclass(frozen=True)
class Piece:
    """A block of a stream, with the shard that it belongs to and where it begins in the stream's text."""

    number: int
    start: int
    head: bool
    block: bytes

    @property
    def end(self) -> int:
        """Where it ends in the stream's text."""
        return self.start + len(self.block)


class Stream:
    """An input that is read once, from its beginning to its end, cut into shards of `size` bytes or little more.

    Attributes:
        bytes, lines, shards: what has been read so far.
    """

    def __init__(self, path: str, size: int, limit: int | None, number: int, field: str | None = None) -> None:
        """
        Args:
            number: of its first shard.
        """
        self.path, self.size, self.limit, self.number, self.field = path, size, limit, number, field
        self.bytes = self.lines = self.shards = 0

    def __iter__(self) -> Iterator[Piece]:
        begin = 0
        for block in stream_blocks(self.path, self.limit, self.field):
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
