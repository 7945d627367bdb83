"""Reading many sequences at once out of memory-mapped shards: a whole micro-batch, never sequence by sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data import compiled
from launch.errors import DataError


class Shard(Protocol):
    """What is read of a `data.indexed.Shard`."""

    prefix: Path
    ids: np.ndarray
    lengths: np.ndarray
    pointers: np.ndarray

    def extents(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where sequences begin in `ids`, and their lengths: int64 [n] each."""


@dataclass(frozen=True)
class Extents:
    """Where sequences are.

    Attributes:
        shard_of: int64 [n], the shard of each.
        first: int64 [n], where it begins in the shard's ids.
        lengths: int64 [n], its tokens.
    """

    shard_of: np.ndarray
    first: np.ndarray
    lengths: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Extents":
        return Extents(self.shard_of[chosen], self.first[chosen], self.lengths[chosen])


class Reader:
    """Reads sequences 0 .. n - 1 of several shards. Knows nothing of what was read before.

    Raises:
        DataError: an index that points outside the ids, or a file that was cut short while it is open (seen by the
            compiled form; in numpy it ends the process).
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0] + [len(shard.lengths) for shard in shards])
        self.table = np.array([_row(shard) for shard in shards], _ROW)

    def extents(self, sequences: np.ndarray) -> Extents:
        """Where sequences (int64 [n]) are."""
        operations = compiled.operations("gather")
        if not operations:
            return self._extents_in_numpy(sequences)
        sequences = np.ascontiguousarray(sequences, np.int64)
        shard_of, first, lengths = np.empty((3, sequences.size), np.int64)
        sound = operations(
            "extents", self.table, self.starts, len(self.shards), sequences, sequences.size, shard_of, first, lengths
        )
        if sound < 0:
            raise self._cut_short()
        if sound < sequences.size:
            return self._extents_in_numpy(sequences)  # to say what is wrong
        return Extents(shard_of, first, lengths)

    def _extents_in_numpy(self, sequences: np.ndarray) -> Extents:
        assert ((sequences >= 0) & (sequences < self.starts[-1])).all(), "no such sequence"
        shard_of = np.searchsorted(self.starts, sequences, "right") - 1
        first, lengths = np.empty((2, len(sequences)), np.int64)
        for k in np.unique(shard_of):
            mine = shard_of == k
            first[mine], lengths[mine] = self.shards[k].extents(sequences[mine] - self.starts[k])
        return Extents(shard_of, first, lengths)

    def ids(self, extents: Extents) -> tuple[np.ndarray, np.ndarray]:
        """Read sequences.

        Returns:
            ids: int64 [tokens], one sequence after another.
            ends: int64 [n + 1], cumulative lengths, 0 first.
        """
        ends = np.zeros(extents.lengths.size + 1, np.int64)
        np.cumsum(extents.lengths, out=ends[1:])
        ids = np.empty(ends[-1], np.int64)
        operations = compiled.operations("gather")
        if not operations:
            self._ids_in_numpy(extents, ends, ids)
        elif operations("ids", self.table, extents.shard_of, extents.first, ends, extents.first.size, ids) < 0:
            raise self._cut_short()
        return ids, ends

    def _ids_in_numpy(self, extents: Extents, ends: np.ndarray, ids: np.ndarray) -> None:
        for k in np.unique(extents.shard_of):
            mine = extents.shard_of == k
            lengths = extents.lengths[mine]
            ids[_ranges(ends[:-1][mine], lengths)] = self.shards[k].ids[_ranges(extents.first[mine], lengths)]

    def _cut_short(self) -> DataError:
        """After SIGBUS: which file is shorter than it was when it was opened?"""
        for shard in self.shards:
            path = shard.prefix.with_name(shard.prefix.name + ".bin")
            if not path.exists() or path.stat().st_size < shard.ids.nbytes:
                return DataError(f"{path}: was cut short while it was read")
        return DataError(f"{self.shards[0].prefix.parent}: an index was cut short while it was read, or its disk fails")


# As in gather.cpp.
_ROW = np.dtype("u8, u8, u8, i8, u4, u4")  # addresses of lengths, pointers and ids; ids; bytes of one; signed or not


def _row(shard: Shard) -> tuple[int, ...]:
    """Addresses stay good while the reader holds the shard."""
    addresses = [array.ctypes.data for array in (shard.lengths, shard.pointers, shard.ids)]
    return (*addresses, shard.ids.size, shard.ids.itemsize, shard.ids.dtype.kind == "i")


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(start, start + length): int64 [sum of lengths]."""
    skip = starts - np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.repeat(skip, lengths) + np.arange(lengths.sum())
