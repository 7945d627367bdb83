"""The original's binarized text -> dataset: `python -m data.import_pickle --input P --tokenizer NAME --output DATASET`.

The original distillation code pickles a list of arrays, `[CLS] ids [SEP]` of a line each, and cleans them when it
trains. They are cleaned here, by the rules of `data.binarize`: the dataset is what the same lines, in the order of the
pickle, become there. A pickle could run code: here nothing of it is run, see data.pickled. It is read as a stream; an
import that was killed goes on where it was.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import inputs, pickled, text
from data.binarize import Cleaning, identity_of, make, summary
from data.building import Extent, Job, counting, write_shards
from data.manifest import CleaningRules, Manifest
from data.shards import Encoded, Recipe, is_complete
from data.text import Range, Selection
from data.vocabulary import Vocabulary
from launch import progress
from launch.args import flag, parse, require, require_named
from launch.errors import DataError, did_you_mean_path, run

LAW = "pickle 1"  # version of what a pickle becomes


@dataclass(frozen=True)
class Files:
    """What is read and written."""

    input: Path = flag(help="list of arrays that the original's scripts/binarized_data.py wrote", metavar="PICKLE")
    tokenizer: str = flag(help="the tokenizer it was made with: folder, or name on the hub", metavar="NAME")
    output: Path = flag(help="dataset folder to make; appears only when complete", metavar="DATASET")
    token_counts: Path | None = flag(
        None, "list of counts that its scripts/token_counts.py wrote: compared with the arrays; not needed", "PICKLE"
    )

    def __post_init__(self) -> None:
        for name, path in (("input", self.input), ("token_counts", self.token_counts)):
            require(path is None or path.is_file(), name, path, f"is no file{did_you_mean_path(path or '')}")
        require_named("output", self.output)


@dataclass(frozen=True)
class Lines:
    """Lines that are ids already, one after another.

    Attributes:
        ids: int64 [tokens], [CLS] and [SEP] included.
        lengths: int64 [lines], 2 at least.
    """

    ids: np.ndarray
    lengths: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """Where each line ends in `ids`."""
        return np.cumsum(self.lengths)

    def without_frames(self) -> np.ndarray:
        """Ids without the first and the last one of each line."""
        inner = np.ones(self.ids.size, bool)
        inner[self.ends - self.lengths] = inner[self.ends - 1] = False
        return self.ids[inner]


def import_pickle(files: Files, rules: CleaningRules) -> Manifest:
    """Make the dataset folder, or go on with it.

    Raises:
        ConfigError: the output exists, the tokenizer can't be found, or an unfinished build was of something else.
        DataError: no list of integer arrays, or not of this tokenizer; the item is named.
    """
    from data.tokenizer import load_tokenizer, vocabulary_of

    tokenizer = load_tokenizer(files.tokenizer)
    counted = None if files.token_counts is None else read_counts(files.token_counts)
    path = str(files.input)
    recipe = Recipe(tokenizer.backend_tokenizer.to_str(), vocabulary_of(tokenizer), rules, Selection())
    folder = files.output.with_name(files.output.name + ".partial")
    job = Job(folder, recipe, [path], [], [path], None, text.shard_bytes([path], None))

    def build() -> list[Extent]:
        extent, seen = build_shards(job, path)
        if counted is not None:
            print(f"{files.token_counts}: {compare(counted, seen)}", flush=True)
        return [extent]

    (manifest,) = make(files.output, job, identity_of(job, law=LAW), tokenizer, build)
    return manifest


def build_shards(job: Job, path: str) -> tuple[Extent, np.ndarray]:
    """Make all shards that are not complete; the pickle's extent, and the counts of its ids, before cleaning."""
    seen = np.zeros(job.recipe.vocabulary.size, np.int64)
    last = Range(-1, path, 0, 0)

    def encoded() -> Iterator[tuple[Range, list[Encoded]]]:
        nonlocal last
        for last, lines in read_lines(path, job.shard_bytes, job.recipe.vocabulary):
            seen[:] += np.bincount(lines.ids, minlength=seen.size)
            if not is_complete(job.folder, last.number):
                yield last, [Encoded.of(lines.without_frames(), lines.lengths - 2, job.recipe)]

    with progress.bar(Path(path).stat().st_size, "B", "import") as bar:
        write_shards(job, encoded(), counting(bar))
    return Extent(inputs.name_of(path), last.number + 1, last.end), seen


def read_lines(path: str, size: int, vocabulary: Vocabulary) -> Iterator[tuple[Range, Lines]]:
    """The lines of a pickle, about a thousand at a time, and which of its bytes they were.

    Args:
        size: bytes of a shard, which may have little more.

    Raises:
        DataError: see `import_pickle`.
    """
    number = first = start = begin = 0
    for items, end in pickled.items(Path(path)):
        if start - begin >= size:
            number, begin = number + 1, start
        yield Range(number, path, start, end), checked(items, first, path, vocabulary)
        first, start = first + len(items), end
    if not first:
        raise DataError(f"{path}: the list is empty")


def checked(items: list[Any], first: int, path: str, vocabulary: Vocabulary) -> Lines:
    """Items of the list, once they are known to be lines of this tokenizer.

    Args:
        first: number of the first of them.
    """
    for number, item in enumerate(items, first):
        if not isinstance(item, np.ndarray) or item.size < 2:
            what = f"an array of {item.size}" if isinstance(item, np.ndarray) else f"of type {type(item).__name__}"
            raise DataError(f"{path}: item {number:,} of the list is {what}, not a line's array, [CLS] ids [SEP]")
    lengths = np.fromiter(map(len, items), np.int64, len(items))
    lines = Lines(np.concatenate(items, dtype=np.int64, casting="unsafe"), lengths)
    ids, ends = lines.ids, lines.ends

    def refuse(line: int, what: str) -> None:
        raise DataError(f"{path}: item {first + line:,} of the list {what}: was it made with another tokenizer?")

    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary.size))
    if outside.size:
        line = int(np.searchsorted(ends, outside[0], side="right"))
        refuse(line, f"holds id {ids[outside[0]]:,}, outside the vocabulary of {vocabulary.size:,}")
    for places, expected, what in (
        (ends - lengths, vocabulary.cls_id, "begins with id {}, not with {}, which is [CLS]"),
        (ends - 1, vocabulary.sep_id, "ends with id {}, not with {}, which is [SEP]"),
    ):
        wrong = np.flatnonzero(ids[places] != expected)
        if wrong.size:
            refuse(int(wrong[0]), what.format(ids[places[wrong[0]]], expected))
    return lines


def read_counts(path: Path) -> np.ndarray:
    """The counts of a pickle, by id: int64.

    Raises:
        DataError: no list of numbers of occurrences.
    """
    counts = array("q")
    for items, _ in pickled.items(path):
        for count in items:
            if type(count) is not int or not 0 <= count < 1 << 63:
                what = f"item {len(counts):,} of the list, {pickled.said(count):.40}"
                raise DataError(f"{path}: {what}, is no number of occurrences")
            counts.append(count)
    return np.asarray(counts, np.int64)


def compare(counted: np.ndarray, seen: np.ndarray) -> str:
    """In which ids two counts of the same text differ, as a sentence."""
    if counted.size != seen.size:
        return f"counts {counted.size:,} ids, the tokenizer has {seen.size:,}; the dataset has counts of its own"
    differ = np.flatnonzero(counted != seen)
    if not differ.size:
        return f"agrees with the {seen.sum():,} ids of the arrays; the dataset has counts of its own, after cleaning"
    most = int(differ[np.argmax(np.abs(counted - seen)[differ])])
    return (
        f"is of something else than the arrays: {differ.size:,} of {seen.size:,} counts differ, most that of id "
        f"{most} ({counted[most]:,}, but {seen[most]:,} in the arrays); the dataset has counts of its own"
    )


def main() -> None:
    """Command line."""
    example = (
        "  python -m data.import_pickle --input binarized_text.bert-base-uncased.pickle \\\n"
        "      --tokenizer bert-base-uncased --output datasets/train"
    )
    description = "The original's binarized text -> dataset of token ids."
    files, cleaning = parse(description, Files, Cleaning, example=example, prog="data.import_pickle")
    print(summary(files.output, import_pickle(files, cleaning.rules())))


if __name__ == "__main__":
    run(main)
