"""Memory-mapped datasets of token ids: shards in Megatron-Core's `MMIDIDX` layout, and folders of many shards.

Layout of `X.idx` (little-endian), with S sequences and D documents: magic `MMIDIDX\\0\\0`, version u64 = 1,
dtype code u8, S u64, D + 1 u64, lengths i32[S] in tokens, pointers i64[S] in bytes into `X.bin`, document ends
i64[D + 1] (0 first) as numbers of sequences. `X.bin` is nothing but the ids.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from data.manifest import Manifest, ShardEntry, checksum
from data.vocabulary import Vocabulary
from launch.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats: no token ids


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
        content = ids.astype(self.dtype).tobytes()
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
    code = next(code for code, name in DTYPE_CODES.items() if np.dtype(name) == dtype)
    pointers = np.zeros(lengths.size, np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=pointers[1:])
    header = HEADER.pack(MAGIC, 1, code, lengths.size, document_ends.size)
    return header + lengths.tobytes() + (pointers * dtype.itemsize).tobytes() + document_ends.tobytes()


class Shard:
    """One `.bin/.idx` pair, memory-mapped. Opening checks sizes and header in constant time.

    Attributes:
        ids: [tokens], all ids of the shard.
        lengths: int32 [sequences].
        pointers: int64 [sequences], byte offsets into the `.bin`.
        document_ends: int64 [documents + 1].
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        idx, bin_ = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
        dtype, sequences, ends = _read_header(idx)
        self.dtype = dtype
        index = np.memmap(idx, np.uint8, "r")
        cuts = np.cumsum([HEADER.size, 4 * sequences, 8 * sequences, 8 * ends])
        self.lengths = index[cuts[0] : cuts[1]].view("<i4")
        self.pointers = index[cuts[1] : cuts[2]].view("<i8")
        self.document_ends = index[cuts[2] : cuts[3]].view("<i8")
        self.ids = _map_ids(bin_, dtype)
        self._check_ends(bin_)

    def extents(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where sequences begin in `ids`, and their lengths: int64 [n] each.

        Raises:
            DataError: the index is damaged there: it points outside the ids.
        """
        first, lengths = self.pointers[sequences] // self.dtype.itemsize, self.lengths[sequences].astype(np.int64)
        outside = (first < 0) | (lengths <= 0) | (first > self.ids.size - lengths)
        if outside.any():
            i = int(np.argmax(outside))
            raise DataError(
                f"{self.prefix}.idx: sequence {sequences[i]} has {lengths[i]:,} tokens from {first[i]:,} on, of "
                f"{self.ids.size:,}: damaged"
            )
        return first, lengths

    def _check_ends(self, path: Path) -> None:
        """The last sequence must end where the `.bin` ends, the last document where the sequences do."""
        end = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if len(self.lengths) else 0
        size = self.ids.size * self.dtype.itemsize
        if end != size:
            raise DataError(f"{path}: has {size:,} bytes, but its index ends at {end:,}: truncated or not its pair")
        if self.document_ends[0] != 0 or self.document_ends[-1] != len(self.lengths):
            raise DataError(f"{self.prefix}.idx: documents end at {self.document_ends[-1]} of {len(self.lengths)}")


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    """Dtype, sequences and document ends of an index whose size they must explain exactly."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if len(header) < HEADER.size or header[:9] != MAGIC:
        raise DataError(f"{path}: not an MMIDIDX index (Megatron-Core's layout)")
    _, version, code, sequences, ends = HEADER.unpack(header)
    if version != 1 or code not in DTYPE_CODES:
        raise DataError(f"{path}: version {version}, dtype code {code}; this reads version 1 and integer ids")
    expected = HEADER.size + 12 * sequences + 8 * ends
    if size != expected or ends < 1:
        raise DataError(f"{path}: has {size:,} bytes, its header says {expected:,}: truncated or damaged")
    return np.dtype(DTYPE_CODES[code]), sequences, ends


def _map_ids(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise DataError(f"{path}: {size:,} bytes are no whole number of {dtype.name} ids: truncated")
        return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)  # an empty file can't be mapped
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


@dataclass(frozen=True)
class Dataset:
    """Sequences 0 .. len - 1 over all shards of a dataset folder, or of one bare Megatron pair.

    Attributes:
        starts: int64 [shards + 1], number of the first sequence of each shard.
        manifest: None for a bare pair.
    """

    path: Path
    shards: tuple[Shard, ...]
    starts: np.ndarray
    manifest: Manifest | None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a dataset folder, or a Megatron prefix (`X` for `X.bin` and `X.idx`), in constant time.

        Raises:
            DataError: missing, truncated or mismatched files, with what was expected and found.
        """
        path = Path(path)
        if path.is_dir():
            manifest = Manifest.read(path)
            shards = tuple(_open_entry(path, entry, manifest) for entry in manifest.shards)
        elif path.with_name(path.name + ".idx").exists():
            manifest, shards = None, (Shard(path),)
        else:
            raise DataError(f"{path}: neither a dataset folder nor a prefix of X.bin and X.idx")
        starts = np.cumsum([0] + [len(shard.lengths) for shard in shards])
        if starts[-1] == 0:
            raise DataError(f"{path}: holds no sequence")
        return cls(path, shards, starts, manifest)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def lengths(self, sequences: np.ndarray) -> np.ndarray:
        """Tokens of each sequence: int64 [n]."""
        shard_of, local = self._locate(sequences)
        lengths = np.empty(len(sequences), np.int64)
        for k in np.unique(shard_of):
            mine = shard_of == k
            lengths[mine] = self.shards[k].lengths[local[mine]]
        return lengths

    def gather(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read sequences, in the order asked for.

        Returns:
            ids: int64 [tokens], one sequence after another.
            ends: int64 [n + 1], cumulative lengths, 0 first.

        Raises:
            DataError: a damaged index, that points outside the ids.
        """
        shard_of, local = self._locate(sequences)
        first, lengths = np.empty((2, len(sequences)), np.int64)
        for k in np.unique(shard_of):
            mine = shard_of == k
            first[mine], lengths[mine] = self.shards[k].extents(local[mine])
        ends = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.empty(ends[-1], np.int64)
        for k in np.unique(shard_of):
            mine = shard_of == k
            ids[_ranges(ends[:-1][mine], lengths[mine])] = self.shards[k].ids[_ranges(first[mine], lengths[mine])]
        return ids, ends

    def _locate(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and number within the shard of each sequence."""
        shard_of = np.searchsorted(self.starts, sequences, "right") - 1
        return shard_of, sequences - self.starts[shard_of]

    @property
    def tokens(self) -> int:
        """Number of token ids in all shards, special ones included."""
        return sum(shard.ids.size for shard in self.shards)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; the manifest knows it, a bare pair's index is read for it."""
        if self.manifest:
            return max(entry.longest for entry in self.manifest.shards)
        return max(int(shard.lengths.max()) for shard in self.shards)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary that the manifest records; a bare Megatron pair has none."""
        return self.manifest.vocabulary if self.manifest else None

    @property
    def counts_path(self) -> Path:
        """Where the counts of token ids are, or would be."""
        return self.path / "counts.npy" if self.manifest else self.path.with_name(self.path.name + ".counts.npy")

    def counts(self) -> np.ndarray:
        """Occurrences of each token id: int64 [vocabulary].

        Raises:
            DataError: not counted yet, or not the counts of this dataset.
        """
        if not self.counts_path.exists():
            raise DataError(f"{self.counts_path}: missing; `python -m data.token_counts {self.path}` writes it")
        try:
            counts = np.load(self.counts_path, allow_pickle=False)
        except Exception as error:  # a damaged header can raise TokenError, SyntaxError, TypeError, EOFError ...
            raise DataError(f"{self.counts_path}: can't be read: {error}") from error
        if counts.ndim != 1 or counts.dtype != np.int64:
            raise DataError(
                f"{self.counts_path}: {counts.dtype} {list(counts.shape)}, expected a line of int64: damaged"
            )
        if counts.sum() != self.tokens:
            raise DataError(f"{self.counts_path}: counts {counts.sum():,} tokens, the dataset has {self.tokens:,}")
        return counts

    def fingerprint(self) -> str:
        """Changes when any sequence does: the manifest's own checksum, or of a bare pair's index and `.bin` size."""
        if self.manifest:
            return self.manifest.fingerprint()
        return f"{checksum(self.path.with_name(self.path.name + '.idx'))}-{self.tokens}"


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(start, start + length): int64 [sum of lengths]."""
    skip = starts - np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.repeat(skip, lengths) + np.arange(lengths.sum())


def _open_entry(folder: Path, entry: ShardEntry, manifest: Manifest) -> Shard:
    """Open a shard and compare its sizes with the manifest's."""
    shard = Shard(folder / entry.name)
    found = (len(shard.lengths), len(shard.document_ends) - 1, shard.ids.size, shard.dtype.name)
    expected = (entry.sequences, entry.documents, entry.tokens, manifest.dtype)
    if found != expected:
        raise DataError(
            f"{folder / entry.name}: (sequences, documents, tokens, dtype) are {found}, the manifest says {expected}"
        )
    return shard
