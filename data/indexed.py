"""Memory-mapped datasets of token ids: shards in Megatron-Core's `MMIDIDX` layout, and folders of many shards.

Layout of `X.idx` (little-endian), with S sequences and D documents: magic `MMIDIDX\\0\\0`, version u64 = 1,
dtype code u8, S u64, D + 1 u64, lengths i32[S] in tokens, pointers i64[S] in bytes into `X.bin`, document ends
i64[D + 1] (0 first) as numbers of sequences. `X.bin` is nothing but the ids.
"""

import functools
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from data.gather import Reader
from data.index_header import Header, dtype_of_ids, read_header
from data.manifest import Manifest, ShardEntry, checksum
from data.vocabulary import Vocabulary
from launch.errors import DataError, did_you_mean_path


class Shard:
    """One `.bin/.idx` pair, memory-mapped. Opening checks header, sizes and both ends of the index in constant time.

    Attributes:
        ids: [tokens], all ids of the shard.
        lengths: int32 [sequences].
        pointers: int64 [sequences], byte offsets into the `.bin`.
        document_ends: int64 [documents + 1], 0 first; nothing but that 0 where no document was ever ended.

    Raises:
        DataError: missing, truncated or mismatched files, or a kind that is not read here.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        idx, bin_ = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
        header = read_header(idx)
        self.lengths, self.pointers, self.document_ends = _map_index(idx, header)
        self.dtype = self._dtype(header.code, _size(bin_))
        self._check_ends()
        self.ids = _map(bin_, self.dtype)

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

    def pointer_fault(self, start: int, stop: int) -> str | None:
        """What is wrong with the first pointer in [start, stop) that isn't where the sequence before it ends."""
        before = slice(max(start - 1, 0), stop - 1)
        ends = self.pointers[before] + self.lengths[before].astype(np.int64) * self.dtype.itemsize
        expected = ends if start else np.concatenate([[0], ends])[:stop]
        wrong = np.flatnonzero(self.pointers[start:stop] != expected)
        if not wrong.size:
            return None
        i = start + int(wrong[0])
        return f"{self.prefix}.idx: pointer {i} is {self.pointers[i]}, expected {expected[wrong[0]]}"

    def _dtype(self, code: int, size: int) -> np.dtype:
        """Also checks that the last sequence ends where the `.bin` does."""
        pointer, length = (int(self.pointers[-1]), int(self.lengths[-1])) if len(self.lengths) else (0, 0)
        return dtype_of_ids(self.prefix, size, code, pointer, length)

    def _check_ends(self) -> None:
        """The first two sequences must follow each other, the last document must end where the sequences do."""
        if fault := self.pointer_fault(0, min(2, len(self.lengths))):
            raise DataError(fault)
        first, last = self.document_ends[[0, -1]].tolist()
        without_documents = len(self.document_ends) == 1  # by a builder that was never told to end one
        if first != 0 or (last != len(self.lengths) and not without_documents):
            raise DataError(f"{self.prefix}.idx: documents end at {last} of {len(self.lengths)}")


def _allow_files(more: int) -> None:
    """Raise the limit of open files so that there can be so many more: a mapped file keeps its descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + more + 64
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _map_index(path: Path, header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, pointers and document ends."""
    index = _map(path, np.dtype(np.uint8))
    lengths, pointers, ends, end = header.cuts
    return index[lengths:pointers].view("<i4"), index[pointers:ends].view("<i8"), index[ends:end].view("<i8")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        return np.memmap(path, dtype, "r") if _size(path) else np.zeros(0, dtype)  # an empty file can't be mapped
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
            _allow_files(2 * len(manifest.shards))
            shards = tuple(_open_entry(path, entry, manifest) for entry in manifest.shards)
        elif path.with_name(path.name + ".idx").exists():
            manifest, shards = None, (Shard(path),)
        else:
            near = did_you_mean_path(path)
            raise DataError(f"{path}: neither a dataset folder nor a prefix of X.bin and X.idx{near}")
        starts = np.cumsum([0] + [len(shard.lengths) for shard in shards])
        if starts[-1] == 0:
            raise DataError(f"{path}: holds no sequence")
        return cls(path, shards, starts, manifest)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def reader(self) -> Reader:
        """Reads sequences of all shards at once."""
        return Reader(self.shards)

    def lengths(self, sequences: np.ndarray) -> np.ndarray:
        """Tokens of each sequence: int64 [n].

        Raises:
            DataError: a damaged index, that points outside the ids.
        """
        return self.reader.extents(sequences).lengths

    def gather(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read sequences, in the order asked for.

        Returns:
            ids: int64 [tokens], one sequence after another.
            ends: int64 [n + 1], cumulative lengths, 0 first.

        Raises:
            DataError: a damaged index, that points outside the ids, or a file that was cut short since it was opened.
        """
        return self.reader.ids(self.reader.extents(sequences))

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
        """Changes when any sequence does: the manifest's own checksum. Of a bare pair: that of its index, and of
        samples of its ids, which are all of them up to 4 MB."""
        if self.manifest:
            return self.manifest.fingerprint()
        idx, bin_ = (self.path.with_name(self.path.name + ending) for ending in (".idx", ".bin"))
        return f"{checksum(idx)}-{_sample(bin_)}"


def _sample(path: Path, pieces: int = 1024, size: int = 4096) -> str:
    """Checksum of a file's size and of pieces that are spread evenly over it, its end included."""
    total = path.stat().st_size
    digest = xxhash.xxh3_64(str(total).encode())
    with open(path, "rb") as file:
        for k in range(pieces):
            file.seek(max(total - size, 0) * k // (pieces - 1))
            digest.update(file.read(size))
    return digest.hexdigest()


def _open_entry(folder: Path, entry: ShardEntry, manifest: Manifest) -> Shard:
    """Open a shard and compare its sizes with the manifest's."""
    prefix = folder / entry.name
    idx, bin_ = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
    if entry.folder != "." and not (idx.exists() and bin_.exists()):
        raise DataError(
            f"{folder}: refers to {prefix}.bin and .idx, which are not there: moved or removed since the merge. Put "
            "them back, or merge again (with --copy a dataset holds its shards itself)"
        )
    shard = Shard(prefix)
    sizes = (shard.ids.nbytes, _size(idx))
    found = (len(shard.lengths), len(shard.document_ends) - 1, shard.ids.size, shard.dtype.name, *sizes)
    expected = (entry.sequences, entry.documents, entry.tokens, manifest.dtype, entry.bin_bytes, entry.idx_bytes)
    if found != expected:
        raise DataError(
            f"{prefix}: (sequences, documents, tokens, dtype, bytes of .bin and .idx) are {found}, the manifest says "
            f"{expected}"
        )
    return shard
