"""Corpora too large to exist: sparse files, in which only what a test or a benchmark reads is written."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.index_header import pack_header
from data.indexed import Dataset
from data.manifest import ShardEntry

LENGTH = 128  # tokens of every sequence


def write_corpus(folder: Path, like: Dataset, sequences: int) -> Path:
    """A dataset of so many sequences, with the vocabulary of another one; all ids are 0. Nothing can be read yet."""
    assert like.manifest
    folder.mkdir(parents=True)
    dtype, tokens = like.shards[0].dtype, sequences * LENGTH
    header = pack_header(dtype, sequences, 2)
    sizes = {"bin": tokens * dtype.itemsize, "idx": len(header) + 12 * sequences + 16}
    for suffix, size in sizes.items():
        (folder / f"00000.{suffix}").touch()
        os.truncate(folder / f"00000.{suffix}", size)
    counts = np.zeros(like.manifest.vocabulary.size, np.int64)
    counts[0] = tokens
    np.save(folder / "counts.npy", counts)
    entry = ShardEntry("00000", sequences, 1, tokens, LENGTH, sizes["bin"], "", sizes["idx"], "")
    replace(like.manifest, shards=(entry,)).write(folder)
    index = np.memmap(folder / "00000.idx", np.uint8, "r+")
    index[: len(header)] = np.frombuffer(header, np.uint8)
    index[-8:] = np.asarray([sequences], "<i8").view(np.uint8)
    make_readable(folder, np.asarray([0, 1, sequences - 1]), sequences, dtype)  # what opening looks at
    return folder


def make_readable(folder: Path, wanted: np.ndarray, sequences: int, dtype: np.dtype) -> None:
    """Write the index of some sequences."""
    index = np.memmap(folder / "00000.idx", np.uint8, "r+")
    begin = len(pack_header(dtype, sequences, 2))
    index[begin:][: 4 * sequences].view("<i4")[wanted] = LENGTH
    index[begin + 4 * sequences : -16].view("<i8")[wanted] = wanted * LENGTH * dtype.itemsize
