"""Writes shards in Megatron-Core's layout, see data.indexed."""

import os
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from data.index_header import pack_header
from data.manifest import ShardEntry


class ShardWriter:
    """Writes one `.bin/.idx` pair as a stream; only the lengths are kept in memory (4 bytes a sequence).

    A context manager: leaving it closes the file, also where an error ends the writing.
    """

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.prefix, self.dtype = prefix, np.dtype(dtype)
        self.hash = xxhash.xxh3_64()
        self.lengths: list[np.ndarray] = []
        self.documents: list[np.ndarray] = []
        self.file = open(prefix.with_name(prefix.name + ".bin"), "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, ids: np.ndarray, lengths: np.ndarray, documents: np.ndarray) -> None:
        """Append sequences.

        Args:
            ids: integers [sum of lengths].
            lengths: tokens of each sequence [sequences].
            documents: sequences of each document [documents], summing to the number of sequences.
        """
        assert ids.size == lengths.sum() and lengths.size == documents.sum()
        content = np.ascontiguousarray(ids, self.dtype).view(np.uint8).data
        self.hash.update(content)
        self.file.write(content)
        self.lengths.append(lengths.astype(np.int32))
        self.documents.append(documents.astype(np.int64))

    def close(self) -> ShardEntry:
        """Write the index, sync both files and return the manifest's entry (without its source)."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        lengths = np.concatenate([np.zeros(0, np.int32), *self.lengths])
        documents = np.concatenate([np.zeros(1, np.int64), *self.documents])
        index = _index_bytes(self.dtype, lengths, np.cumsum(documents))
        with open(self.prefix.with_name(self.prefix.name + ".idx"), "wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        tokens = int(lengths.sum(dtype=np.int64))
        return ShardEntry(
            name=self.prefix.name, sequences=lengths.size, documents=documents.size - 1, tokens=tokens,
            longest=int(lengths.max(initial=0)), bin_bytes=tokens * self.dtype.itemsize, bin_xxh3=self.hash.hexdigest(),
            idx_bytes=len(index), idx_xxh3=xxhash.xxh3_64_hexdigest(index),
        )  # fmt: skip


def _index_bytes(dtype: np.dtype, lengths: np.ndarray, document_ends: np.ndarray) -> bytes:
    pointers = np.zeros(lengths.size, np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=pointers[1:])
    header = pack_header(dtype, lengths.size, document_ends.size)
    return header + lengths.tobytes() + (pointers * dtype.itemsize).tobytes() + document_ends.tobytes()
