"""One bare Megatron pair out of many shards, as a stream: memory doesn't grow with the corpus."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from tqdm import tqdm

from data.index_header import pack_header
from data.indexed import Shard
from launch import commit
from launch.errors import ConfigError, DataError

PIECE = 1 << 22  # bytes, or entries of an index, read at once
ENDINGS = (".counts.npy", ".bin", ".idx")  # in the order in which they appear: without .idx there is no dataset


def beside(prefix: Path, ending: str) -> Path:
    """A file of a pair. The prefix may have dots in its name."""
    return prefix.with_name(prefix.name + ending)


@contextlib.contextmanager
def committed(output: Path) -> Iterator[Path]:
    """A prefix under which to write a pair and its counts; they get their names when the block ends well.

    Raises:
        ConfigError: one of them exists, or the folder can't be made.
    """
    for path in (output, *(beside(output, ending) for ending in ENDINGS)):
        commit.refuse_existing(path)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: can't be made: {error.strerror}") from error
    partial = beside(output, ".partial")
    try:
        yield partial
        for ending in ENDINGS:
            commit.sync(beside(partial, ending))
        for ending in ENDINGS:
            beside(partial, ending).rename(beside(output, ending))
        commit.sync(output.parent)
    except BaseException:
        for ending in ENDINGS:
            beside(partial, ending).unlink(missing_ok=True)
            beside(output, ending).unlink(missing_ok=True)
        raise


def append(source: Path, target: IO[bytes], expected: str | None, bar: tqdm) -> None:
    """Copy a file to the end of another.

    Args:
        expected: its checksum, where one is recorded.

    Raises:
        DataError: it has another.
    """
    digest = xxhash.xxh3_64()
    with open(source, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            target.write(piece)
            bar.update(len(piece))
    if expected is not None and digest.hexdigest() != expected:
        raise DataError(f"{source}: checksum {digest.hexdigest()}, expected {expected}: damaged")


def write_index(path: Path, shards: Sequence[Shard]) -> None:
    """The `.idx` of the shards' `.bin` files one after another.

    Raises:
        DataError: a shard's sequences don't lie one after another in its `.bin`.
    """
    ends = [_document_ends(shard) for shard in shards]
    sequences, documents = sum(len(shard.lengths) for shard in shards), sum(map(len, ends))
    with open(path, "wb") as file:
        file.write(pack_header(shards[0].dtype, sequences, documents + 1))
        _write(file, (shard.lengths for shard in shards), [0] * len(shards))
        _write(file, map(_checked_pointers, shards), [shard.ids.nbytes for shard in shards])
        file.write(bytes(8))
        _write(file, ends, [len(shard.lengths) for shard in shards])


def _write(file: IO[bytes], arrays: Iterable[np.ndarray], extents: Iterable[int]) -> None:
    """Arrays one after another, in pieces; to each is added what the extents of those before it sum to."""
    shift = 0
    for array, extent in zip(arrays, extents, strict=True):
        for start in range(0, len(array), PIECE):
            piece = array[start : start + PIECE]
            file.write((piece + piece.dtype.type(shift)).tobytes())
        shift += extent


def _checked_pointers(shard: Shard) -> np.ndarray:
    for start in range(0, len(shard.lengths), PIECE):
        if fault := shard.pointer_fault(start, min(start + PIECE, len(shard.lengths))):
            raise DataError(fault)
    return shard.pointers


def _document_ends(shard: Shard) -> np.ndarray:
    """Without the 0 that stands first. Where no document was ever ended, all sequences are of one."""
    return shard.document_ends[1:] if len(shard.document_ends) > 1 else np.asarray([len(shard.lengths)])
