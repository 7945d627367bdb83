"""Counts of token ids for a dataset that has none: `python -m data.token_counts DATASET`.

Training draws rare tokens more often (see data.masking) and so needs to know how often each occurs. `data.binarize`
counts in its own pass; this is for datasets made elsewhere, such as a bare Megatron pair.
"""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import compiled
from data.indexed import Dataset, Shard
from data.manifest import file_entry
from launch import commit, progress
from launch.args import parse, positional
from launch.errors import DataError, run

PIECE = 1 << 22  # ids counted at once: numpy's form converts its input to int64
MAX_IDS = 1 << 24  # where no vocabulary is recorded: a larger id is damage, and counting up to it takes gigabytes


@dataclass(frozen=True)
class Arguments:
    """What is counted."""

    data: Path = positional("dataset folder, or prefix of a bare Megatron pair", "DATASET")


def count_tokens(dataset: Dataset) -> np.ndarray:
    """Occurrences of each token id: int64 [vocabulary, or largest id + 1 where the dataset doesn't know it].

    Raises:
        DataError: a negative id, or one outside the vocabulary.
    """
    size = dataset.vocabulary.size if dataset.vocabulary else 0
    counts = np.zeros(size, np.int64)
    with progress.bar(dataset.tokens, "token", "count") as bar:
        for shard in dataset.shards:
            for start in range(0, shard.ids.size, PIECE):
                piece = shard.ids[start : start + PIECE]
                seen = _occurrences(piece, size, shard)
                counts = np.pad(counts, (0, max(seen.size - counts.size, 0)))
                counts[: seen.size] += seen
                bar.update(piece.size)
    return counts


def _occurrences(ids: np.ndarray, size: int, shard: Shard) -> np.ndarray:
    """Of each id in a piece of a shard: int64 [largest id + 1]."""
    operations = compiled.operations("gather")
    if not operations or ids.dtype != np.uint16:
        _check_range(int(ids.min()), int(ids.max()), size, shard)
        return np.bincount(ids)
    seen = np.zeros(1 << 16, np.int64)
    if operations("count", ids, ids.size, seen) < 0:
        raise DataError(f"{shard.prefix}.bin: was cut short while it was read")
    largest = int(np.flatnonzero(seen)[-1])
    _check_range(0, largest, size, shard)
    return seen[: largest + 1]


def _check_range(low: int, high: int, size: int, shard: Shard) -> None:
    if low < 0:
        raise DataError(f"{shard.prefix}.bin: holds the negative token id {low}")
    if high >= (size or MAX_IDS):
        rule = f"outside the vocabulary of {size:,}" if size else f"above all that is counted ({MAX_IDS:,})"
        raise DataError(f"{shard.prefix}.bin: holds token id {high:,}, {rule}")


def write_counts(dataset: Dataset) -> np.ndarray:
    """Count, and store the counts with the dataset."""
    counts = count_tokens(dataset)
    buffer = io.BytesIO()
    np.save(buffer, counts)
    commit.write_bytes(dataset.counts_path, buffer.getvalue())
    if dataset.manifest:
        files = dict(sorted({**dataset.manifest.files, "counts.npy": file_entry(dataset.counts_path)}.items()))
        dataclasses.replace(dataset.manifest, files=files).write(dataset.path)
    return counts


def main() -> None:
    """Command line."""
    (arguments,) = parse("Count the token ids of a dataset.", Arguments, prog="data.token_counts")
    dataset = Dataset.open(arguments.data)
    counts = write_counts(dataset)
    print(f"{dataset.counts_path}: {counts.sum():,} tokens, {np.count_nonzero(counts):,} of {counts.size:,} ids occur")


if __name__ == "__main__":
    run(main)
