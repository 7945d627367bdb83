"""Datasets -> one: `python -m data.merge A B --output C`.

C refers to the shards where they are: it costs a manifest, counts and a tokenizer, whatever the size of the corpus.
With `--copy` it holds them itself; `--single` makes one bare Megatron pair of all. What is copied is compared with its
checksum on the way.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import pair
from data.indexed import Dataset
from data.manifest import CleaningCounts, CleaningRules, Manifest, ShardEntry, checksum_faults, file_entry
from data.token_counts import count_tokens
from launch import commit, progress
from launch.args import flag, parse, positional, require
from launch.errors import DataError, run


@dataclass(frozen=True)
class Arguments:
    """What is merged."""

    data: tuple[Path, ...] = positional("dataset folders, in this order; with --single also Megatron pairs", "DATASET")
    output: Path = flag(help="dataset folder, or prefix of a pair, to make; appears when complete", metavar="DATASET")
    copy: bool = flag(False, "copy the shards, so that the sources may be moved or removed")
    single: bool = flag(False, "write one bare Megatron pair: OUTPUT.bin, OUTPUT.idx, and OUTPUT.counts.npy")

    def __post_init__(self) -> None:
        require(not (self.copy and self.single), "copy", self.copy, "--single copies anyway: give one of them")


def open_all(paths: Sequence[Path]) -> list[Dataset]:
    """Open datasets that can be merged.

    Raises:
        DataError: one can't be opened, two differ in dtype or vocabulary, or sequences are given twice.
    """
    datasets = [Dataset.open(path) for path in paths]
    _refuse_unlike(datasets)
    _refuse_twice(datasets)
    return datasets


def _refuse_unlike(datasets: Sequence[Dataset]) -> None:
    seen: dict[str, tuple[Path, object]] = {}
    for dataset in datasets:
        for what, value in _traits(dataset).items():
            path, known = seen.setdefault(what, (dataset.path, value))
            if value != known:
                raise DataError(f"{path} has {what} {known}, {dataset.path} has {value}: they can't be merged")


def _traits(dataset: Dataset) -> dict[str, object]:
    """All in which datasets must agree; of a bare pair, only the dtype is known."""
    traits: dict[str, object] = {"dtype": dataset.shards[0].dtype.name}
    if dataset.vocabulary:
        numbers = dataclasses.asdict(dataset.vocabulary)
        traits |= {"tokenizer": numbers.pop("tokenizer_hash"), "vocabulary": numbers}
    return traits


def _refuse_twice(datasets: Sequence[Dataset]) -> None:
    """By file, through any link, and, where checksums are known, by content."""
    seen: dict[object, Path] = {}
    for dataset in datasets:
        files = [pair.beside(shard.prefix, ".bin").stat() for shard in dataset.shards]
        marks: set[object] = {(file.st_dev, file.st_ino) for file in files}
        if dataset.manifest:
            marks.add(dataset.fingerprint())
        for mark in marks & seen.keys():
            raise DataError(f"{dataset.path}: its sequences are in {seen[mark]}, too: nothing is merged twice")
        seen |= dict.fromkeys(marks, dataset.path)


def merge(datasets: Sequence[Dataset], output: Path, copy: bool = False) -> Manifest:
    """Make a dataset folder.

    Args:
        copy: hold the shards, instead of referring to them.

    Raises:
        ConfigError: the output exists, or can't be made.
        DataError: a bare pair, or a file that is not what its manifest says.
    """
    manifests = [_intact_manifest(dataset) for dataset in datasets]
    with commit.folder(output) as folder:
        shards = _copied(datasets, folder) if copy else _referred(datasets, output)
        commit.write_array(folder / "counts.npy", merged_counts(datasets))
        _copy_tokenizer(datasets, folder)
        beside = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".bin", ".idx")]
        manifest = dataclasses.replace(
            manifests[0],
            tokenizers_version=", ".join(sorted({v for m in manifests for v in m.tokenizers_version.split(", ")})),
            rules=_widest([m.rules for m in manifests]),
            cleaning=sum((m.cleaning for m in manifests), CleaningCounts()),
            shards=shards,
            files={path.relative_to(folder).as_posix(): file_entry(path) for path in beside},
        )
        manifest.write(folder)
    return manifest


def _intact_manifest(dataset: Dataset) -> Manifest:
    if dataset.manifest is None:
        raise DataError(f"{dataset.path}: a bare Megatron pair has no manifest to merge; --single takes it")
    _refuse_damaged(dataset, dataset.manifest.files)
    return dataset.manifest


def _refuse_damaged(dataset: Dataset, names: Iterable[str]) -> None:
    """Damage must not get a new checksum, under which it would be sound."""
    if dataset.manifest:
        checksums = dataset.manifest.checksums
        if faults := checksum_faults(dataset.path, {name: checksums[name] for name in names}):
            raise DataError("\n".join(faults))


def _widest(rules: Sequence[CleaningRules]) -> CleaningRules:
    """What every sequence of all datasets keeps to."""
    return CleaningRules(
        max_length=max(r.max_length for r in rules),
        min_length=min(r.min_length for r in rules),
        max_unknown=max(r.max_unknown for r in rules),
    )


def _placed(datasets: Sequence[Dataset]) -> Iterator[tuple[Path, ShardEntry]]:
    """Where each shard is, and its entry."""
    for dataset in datasets:
        if dataset.manifest:
            yield from ((dataset.path / entry.name, entry) for entry in dataset.manifest.shards)


def _referred(datasets: Sequence[Dataset], output: Path) -> tuple[ShardEntry, ...]:
    """Entries with the way from the output to each shard, symbolic links of folders resolved."""
    entries = []
    for prefix, entry in _placed(datasets):
        place = os.path.relpath(prefix.parent.resolve() / prefix.name, output.parent.resolve() / output.name)
        entries.append(dataclasses.replace(entry, name=Path(place).as_posix()))
    return tuple(entries)


def _copied(datasets: Sequence[Dataset], folder: Path) -> tuple[ShardEntry, ...]:
    """Copy the shards, numbered anew."""
    entries = []
    shards = list(_placed(datasets))
    with progress.bar(sum(entry.bin_bytes + entry.idx_bytes for _, entry in shards), "B", "copy") as bar:
        for number, (prefix, entry) in enumerate(shards):
            name = f"{number:05d}"
            for ending, expected in ((".bin", entry.bin_xxh3), (".idx", entry.idx_xxh3)):
                with open(folder / f"{name}{ending}", "wb") as target:
                    pair.append(pair.beside(prefix, ending), target, expected, bar)
            entries.append(dataclasses.replace(entry, name=name))
    return tuple(entries)


def _copy_tokenizer(datasets: Sequence[Dataset], folder: Path) -> None:
    """They are all the same; one may have been left out."""
    for dataset in datasets:
        if (dataset.path / "tokenizer").is_dir():
            shutil.copytree(dataset.path / "tokenizer", folder / "tokenizer")
            return


def merged_counts(datasets: Sequence[Dataset]) -> np.ndarray:
    """Occurrences of each token id in all datasets: int64. Where they were not counted, they are now."""
    counts = [dataset.counts() if dataset.counts_path.exists() else count_tokens(dataset) for dataset in datasets]
    total = np.zeros(max(map(len, counts)), np.int64)
    for part in counts:
        total[: part.size] += part
    return total


def merge_single(datasets: Sequence[Dataset], output: Path) -> None:
    """Make one bare Megatron pair, and its counts.

    Raises:
        ConfigError: the output exists, or can't be made.
        DataError: a file that is not what its manifest says, or sequences that don't follow one another.
    """
    for dataset in datasets:
        if dataset.manifest:  # the .bin files are compared while they are copied
            _refuse_damaged(dataset, [name for name in dataset.manifest.checksums if not name.endswith(".bin")])
    shards = [shard for dataset in datasets for shard in dataset.shards]
    recorded = {prefix: entry.bin_xxh3 for prefix, entry in _placed(datasets)}
    with pair.committed(output) as partial:
        commit.write_array(pair.beside(partial, ".counts.npy"), merged_counts(datasets))
        pair.write_index(pair.beside(partial, ".idx"), shards)
        with (
            open(pair.beside(partial, ".bin"), "wb") as target,
            progress.bar(sum(shard.ids.nbytes for shard in shards), "B", "copy") as bar,
        ):
            for shard in shards:
                pair.append(pair.beside(shard.prefix, ".bin"), target, recorded.get(shard.prefix), bar)


def main() -> None:
    """Command line."""
    example = "  python -m data.merge datasets/books datasets/wiki --output datasets/both"
    (arguments,) = parse("Datasets -> one.", Arguments, example=example, prog="data.merge")
    datasets = open_all(arguments.data)
    if arguments.single:
        merge_single(datasets, arguments.output)
    else:
        merge(datasets, arguments.output, arguments.copy)
    made = Dataset.open(arguments.output)
    where = "" if arguments.copy or arguments.single else ", which stay where they are"
    print(f"{made.path}: {len(made):,} sequences, {made.tokens:,} tokens in {len(made.shards)} shard(s){where}")


if __name__ == "__main__":
    run(main)
