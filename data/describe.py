"""What a dataset holds: `python -m data.describe DATASET [--verify]`.

Prints totals, the histogram of lengths, the share of unknown tokens and some decoded sequences; with `--verify` it
reads everything and checks it: checksums, pointers, the frame of every sequence, ids, counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.indexed import Dataset, Shard
from data.manifest import Manifest, ShardEntry, checksum_faults
from data.token_counts import count_tokens
from data.tokenizer import load_tokenizer
from launch import hub
from launch.args import flag, parse, positional, require
from launch.errors import DataError, run
from launch.lines import width

BINS = (0, 16, 32, 64, 128, 256, 512, 1 << 31)


@dataclass(frozen=True)
class Arguments:
    """What is described."""

    data: Path = positional("dataset folder, or prefix of a bare Megatron pair", "DATASET")
    samples: int = flag(3, "decoded sequences to show")
    verify: bool = flag(False, "read and check everything")

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples", self.samples, "must not be negative")


def all_lengths(dataset: Dataset) -> np.ndarray:
    """Tokens of every sequence: int32 [sequences]."""
    return np.concatenate([shard.lengths for shard in dataset.shards])


def histogram(lengths: np.ndarray) -> list[str]:
    """One line for each bin of lengths, with a bar."""
    counts, _ = np.histogram(lengths, BINS)
    rows = []
    for low, high, count in zip(BINS, BINS[1:], counts, strict=False):
        label = f"{low:4d} .. {high - 1:4d}" if high < 1 << 31 else f"{low:4d} and up"
        rows.append(f"  {label}  {count:12,}  {'#' * round(40 * count / max(counts.max(), 1))}")
    return rows


def samples(dataset: Dataset, count: int) -> list[str]:
    """Some sequences, evenly spaced, a line each, as text where the dataset brings its tokenizer, else as ids."""
    folder = dataset.path / "tokenizer"
    tokenizer: Any = load_tokenizer(str(folder)) if dataset.manifest and hub.has_tokenizer(folder) else None
    rows = []
    for number in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64):
        ids = dataset.gather(np.asarray([number]))[0]
        row = f"  [{number}] {tokenizer.decode(ids) if tokenizer else ' '.join(map(str, ids))}"
        rows.append(row if len(row) <= width() else row[: width() - 4] + " ...")
    return rows


def describe(dataset: Dataset, count: int) -> str:
    """The whole description."""
    lengths = all_lengths(dataset)
    lines = [
        f"{dataset.path}: {len(dataset):,} sequences, {dataset.tokens:,} tokens, {len(dataset.shards)} shard(s), "
        f"{dataset.shards[0].dtype.name}",
        f"tokens per sequence: mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, "
        f"shortest {lengths.min()}, longest {lengths.max()}",
        *histogram(lengths),
    ]
    vocabulary, manifest = dataset.vocabulary, dataset.manifest
    if vocabulary and manifest:
        did = manifest.cleaning
        folders = sorted({entry.folder for entry in manifest.shards} - {"."})
        if folders:
            lines.append(f"shards in {', '.join(folders)}")
        lines.append(f"vocabulary: {vocabulary.size:,} entries, tokenizer {vocabulary.tokenizer_hash[:16]}")
        lines.append(
            f"cleaned from {did.lines:,} lines: {did.dropped_too_short:,} too short, {did.dropped_unknown:,} mostly "
            f"unknown, {did.lines_split:,} split into {did.pieces_of_split_lines:,}, "
            f"{did.lines_with_invalid_utf8:,} with invalid UTF-8"
        )
    if dataset.counts_path.exists():
        counts = dataset.counts()
        unknown = f", unknown {counts[vocabulary.unk_id] / counts.sum():.4%}" if vocabulary else ""
        lines.append(f"token ids that occur: {np.count_nonzero(counts):,} of {counts.size:,}{unknown}")
    if count:
        lines += ["samples:", *samples(dataset, count)]
    return "\n".join(lines)


def verify(dataset: Dataset) -> list[str]:
    """Read everything. Returns the faults found, each with file, expected and found; none for a sound dataset."""
    faults: list[str] = []
    for shard in dataset.shards:
        faults += _index_faults(shard)
    if dataset.manifest:
        for shard, entry in zip(dataset.shards, dataset.manifest.shards, strict=True):
            faults += _sequence_faults(shard, entry, dataset.manifest)
        faults += checksum_faults(dataset.path, dataset.manifest.checksums)
    return faults + _counts_faults(dataset)


def _index_faults(shard: Shard) -> list[str]:
    """Lengths, pointers and document ends must follow from each other."""
    faults = []
    for i in np.flatnonzero(shard.lengths <= 0)[:1]:
        faults.append(f"{shard.prefix}.idx: sequence {i} has length {shard.lengths[i]}")
    if fault := shard.pointer_fault(0, len(shard.lengths)):
        faults.append(fault)
    if (np.diff(shard.document_ends) < 0).any():
        faults.append(f"{shard.prefix}.idx: document ends are not ascending")
    return faults


def _sequence_faults(shard: Shard, entry: ShardEntry, manifest: Manifest) -> list[str]:
    """Every sequence must be [CLS] ... [SEP], and no longer than the rules allow and the manifest says."""
    faults = []
    lengths = shard.lengths.astype(np.int64)
    first = shard.pointers // shard.dtype.itemsize
    framed = (first >= 0) & (lengths > 0) & (first <= shard.ids.size - lengths)
    inside = np.flatnonzero(framed)
    ends = shard.ids[first[inside]], shard.ids[first[inside] + lengths[inside] - 1]
    framed[inside] = (ends[0] == manifest.vocabulary.cls_id) & (ends[1] == manifest.vocabulary.sep_id)
    if not framed.all():
        faults.append(f"{shard.prefix}: sequence {int(np.argmin(framed))} is not [CLS] ... [SEP]")
    for i in np.flatnonzero(lengths > manifest.rules.max_length)[:1]:
        faults.append(f"{shard.prefix}: sequence {i} has {lengths[i]} tokens, allowed are {manifest.rules.max_length}")
    longest = lengths.max(initial=0)
    if longest != entry.longest:
        faults.append(f"{shard.prefix}: the longest sequence has {longest} tokens, the manifest says {entry.longest}")
    return faults


def _counts_faults(dataset: Dataset) -> list[str]:
    """No id may be outside the vocabulary, and `counts.npy`, if there, must say what is counted now."""
    try:
        counts = count_tokens(dataset)
        recorded = dataset.counts() if dataset.counts_path.exists() else counts
    except DataError as error:
        return [str(error)]
    size = max(recorded.size, counts.size)
    wrong = np.flatnonzero(np.pad(recorded, (0, size - recorded.size)) != np.pad(counts, (0, size - counts.size)))
    return [f"{dataset.counts_path}: count of token id {wrong[0]} is wrong"] if wrong.size else []


def main() -> None:
    """Command line."""
    (arguments,) = parse("What a dataset holds.", Arguments, prog="data.describe")
    dataset = Dataset.open(arguments.data)
    faults = verify(dataset) if arguments.verify else []
    if faults:
        raise DataError(f"{dataset.path}: {len(faults)} fault(s):\n" + "\n".join(faults))
    print(describe(dataset, arguments.samples))
    if arguments.verify:
        known = "checksums, pointers, frames, ids and counts" if dataset.manifest else "pointers, ids and counts"
        print(f"verified: {known} are right")


if __name__ == "__main__":
    run(main)
