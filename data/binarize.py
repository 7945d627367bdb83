"""Text -> dataset: `python -m data.binarize --input dump.txt --tokenizer bert-base-uncased --output DATASET`.

A line of the text (it ends at `\\n` only) becomes one sequence `[CLS] ids [SEP]`, or, if too long, several of one
document. The text is cut into byte ranges that depend on nothing but the text; each becomes one shard, independent of
the others.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tqdm import tqdm

from data.indexed import ShardWriter
from data.manifest import CleaningCounts, CleaningRules, Manifest, ShardEntry, file_entry
from data.tokenizer import encode_lines, load_tokenizer, vocabulary_of
from data.vocabulary import Vocabulary
from launch import commit, progress
from launch.args import flag, parse, require
from launch.errors import DataError, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCK_BYTES = 1 << 20  # text handed to the tokenizer at once: large enough for its threads, small in memory


@dataclass(frozen=True)
class Files:
    """What is read and written."""

    input: tuple[Path, ...] = flag(help="text files, UTF-8, one sequence a line", metavar="FILE")
    tokenizer: str = flag(help="folder, or name on the Hugging Face hub (bert-base-uncased)", metavar="NAME")
    output: Path = flag(help="dataset folder to make; appears only when complete", metavar="DATASET")
    shard_megabytes: int = flag(256, "text in one shard, in MB", metavar="MB")

    def __post_init__(self) -> None:
        require(self.shard_megabytes > 0, "shard_megabytes", self.shard_megabytes, "must be positive")
        for path in self.input:
            require(path.exists(), "input", path, "no such file")
            require(path.is_file(), "input", path, "must be a regular file: it is cut into byte ranges")


@dataclass(frozen=True)
class Cleaning:
    """What becomes a sequence (lengths count the special tokens)."""

    max_length: int = flag(512, "longer lines are split into pieces of at most so many tokens", metavar="TOKENS")
    min_length: int = flag(12, "shorter sequences are dropped", metavar="TOKENS")
    max_unknown: float = flag(0.5, "sequences with this share of unknown tokens or more are dropped", metavar="SHARE")

    def __post_init__(self) -> None:
        require(self.max_length >= 3, "max_length", self.max_length, "must be 3 at least: [CLS], a token, [SEP]")
        require(self.min_length <= self.max_length, "min_length", self.min_length, "must not exceed --max-length")
        require(self.max_unknown > 0, "max_unknown", self.max_unknown, "must be above 0 (above 1 keeps everything)")

    def rules(self) -> CleaningRules:
        """The form that the manifest stores."""
        return CleaningRules(self.max_length, self.min_length, self.max_unknown)


@dataclass(frozen=True)
class Range:
    """The part of a text file that becomes one shard: bytes [start, end), whole lines."""

    path: Path
    start: int
    end: int


def plan_ranges(path: Path, size: int) -> list[Range]:
    """Cut a file at the first line ends after every `size` bytes: a function of the file alone."""
    total, cuts = path.stat().st_size, [0]
    with open(path, "rb") as file:
        for target in range(size, total, size):
            if target > cuts[-1]:  # else a line longer than `size` reaches beyond it
                file.seek(target - 1)
                file.readline()
                cuts.append(file.tell())
    cuts.append(total)
    return [Range(path, start, end) for start, end in itertools.pairwise(cuts) if start < end]


def read_blocks(part: Range) -> Iterator[tuple[list[bytes], int]]:
    """The lines of a range, without their ends, about BLOCK_BYTES at a time, each with the bytes it took."""
    with open(part.path, "rb") as file:
        file.seek(part.start)
        left = part.end - part.start
        while left > 0:
            block = file.read(min(BLOCK_BYTES, left))
            if len(block) < left:
                block += file.readline()
            if not block:
                raise DataError(f"{part.path}: shrank while it was read")
            left -= len(block)
            yield [line.removesuffix(b"\r") for line in block.removesuffix(b"\n").split(b"\n")], len(block)


def decode(lines: list[bytes]) -> tuple[list[str], int]:
    """UTF-8 text of lines, invalid bytes as U+FFFD, and how many lines had some."""
    texts, invalid = [], 0
    for line in lines:
        try:
            texts.append(line.decode())
        except UnicodeDecodeError:
            texts.append(line.decode(errors="replace"))
            invalid += 1
    return texts, invalid


@dataclass(frozen=True)
class Sequences:
    """Clean sequences of some lines: ids one after another, tokens of each, sequences of each document."""

    ids: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray


def clean(
    ids: np.ndarray, lengths: np.ndarray, rules: CleaningRules, vocabulary: Vocabulary
) -> tuple[Sequences, CleaningCounts]:
    """Split, drop and frame lines.

    Args:
        ids: int64 [tokens], the lines' ids one after another, without [CLS] and [SEP].
        lengths: int64 [lines].
    """
    room = rules.max_length - 2
    pieces = np.maximum(1, -(-lengths // room))
    line_of = np.repeat(np.arange(lengths.size), pieces)
    piece = np.arange(line_of.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    body = np.minimum(lengths[line_of] - piece * room, room)
    start = (np.cumsum(lengths) - lengths)[line_of] + piece * room

    unknown_before = np.concatenate([[0], np.cumsum(ids == vocabulary.unk_id)])
    unknown = unknown_before[start + body] - unknown_before[start]
    short = body + 2 < rules.min_length
    unreadable = ~short & (unknown / (body + 2) >= rules.max_unknown)  # a quotient is exact at the border: 7/100, 0.07
    keep = ~(short | unreadable)

    documents = np.bincount(line_of[keep], minlength=lengths.size)
    sequences = Sequences(_frame(ids, start[keep], body[keep], vocabulary), body[keep] + 2, documents[documents > 0])
    counts = CleaningCounts(
        lines=lengths.size,
        lines_split=int((pieces > 1).sum()),
        pieces_of_split_lines=int(pieces[pieces > 1].sum()),
        dropped_too_short=int(short.sum()),
        dropped_unknown=int(unreadable.sum()),
    )
    return sequences, counts


def _frame(ids: np.ndarray, start: np.ndarray, body: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """[CLS] ids[start : start + body] [SEP] of every piece, one after another."""
    ends = np.cumsum(body + 2)
    first = ends - (body + 2)
    framed = np.empty(ends[-1] if ends.size else 0, np.int64)
    source = np.repeat(start - first - 1, body + 2) + np.arange(framed.size)
    inner = np.ones(framed.size, bool)
    inner[first] = inner[ends - 1] = False
    framed[inner] = ids[source[inner]]
    framed[first], framed[ends - 1] = vocabulary.cls_id, vocabulary.sep_id
    return framed


class Binarizer:
    """Turns ranges of text into shards; what it counts adds up over ranges in any order."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", rules: CleaningRules) -> None:
        self.tokenizer, self.rules, self.vocabulary = tokenizer, rules, vocabulary_of(tokenizer)

    def shard(self, part: Range, prefix: Path, bar: tqdm) -> tuple[ShardEntry, CleaningCounts, np.ndarray]:
        """Write the shard of a range.

        Returns:
            its manifest entry, what cleaning did, and the occurrences of each token id (int64 [vocabulary]).
        """
        cleaning, counts = CleaningCounts(), np.zeros(self.vocabulary.size, np.int64)
        with ShardWriter(prefix, self.vocabulary.dtype) as writer:
            for lines, size in read_blocks(part):
                texts, invalid = decode(lines)
                sequences, did = clean(*encode_lines(self.tokenizer, texts), self.rules, self.vocabulary)
                writer.add(sequences.ids, sequences.lengths, sequences.documents)
                counts += np.bincount(sequences.ids, minlength=counts.size)
                cleaning += replace(did, lines_with_invalid_utf8=invalid)
                bar.update(size)
            entry = replace(writer.close(), source=part.path.name, start=part.start, end=part.end)
        return entry, cleaning, counts


def binarize(files: Files, rules: CleaningRules) -> Manifest:
    """Build the dataset folder.

    Raises:
        ConfigError: the output exists, or the tokenizer can't be found.
        DataError: no sequence is left after cleaning, or the tokenizer can't be used.
    """
    commit.refuse_existing(files.output)
    tokenizer = load_tokenizer(files.tokenizer)
    binarizer = Binarizer(tokenizer, rules)
    parts = [part for path in files.input for part in plan_ranges(path, files.shard_megabytes * 1_000_000)]
    total = sum(part.end - part.start for part in parts)
    entries, cleaning, counts = [], CleaningCounts(), np.zeros(binarizer.vocabulary.size, np.int64)
    with commit.folder(files.output) as folder, progress.bar(total, "B", "binarize") as bar:
        for number, part in enumerate(parts):
            entry, did, seen = binarizer.shard(part, folder / f"{number:05d}", bar)
            entries.append(entry)
            cleaning, counts = cleaning + did, counts + seen
        kept = _without_empty(folder, entries)
        if not kept:
            raise DataError(f"no sequence is left of {cleaning.lines:,} lines: {cleaning}")
        _write_counts(folder, counts)
        tokenizer.save_pretrained(folder / "tokenizer")
        manifest = Manifest(
            dtype=binarizer.vocabulary.dtype.name,
            vocabulary=binarizer.vocabulary,
            tokenizers_version=tokenizers.__version__,
            rules=rules,
            cleaning=cleaning,
            shards=tuple(kept),
            files={name: file_entry(folder / name) for name in _files_beside(folder)},
        )
        manifest.write(folder)
    return manifest


def _without_empty(folder: Path, entries: list[ShardEntry]) -> list[ShardEntry]:
    """Remove shards of ranges that left no sequence: an empty file can't be memory-mapped by Megatron's reader."""
    for entry in entries:
        if not entry.sequences:
            (folder / f"{entry.name}.bin").unlink()
            (folder / f"{entry.name}.idx").unlink()
    return [entry for entry in entries if entry.sequences]


def _write_counts(folder: Path, counts: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, counts)
    commit.write_bytes(folder / "counts.npy", buffer.getvalue())


def _files_beside(folder: Path) -> list[str]:
    """Names of all files in the folder that are no shards."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith((".bin", ".idx")))


def main() -> None:
    """Command line."""
    example = "  python -m data.binarize --input dump.txt --tokenizer bert-base-uncased --output datasets/dump"
    files, cleaning = parse("Text -> dataset of token ids.", Files, Cleaning, example=example, prog="data.binarize")
    manifest = binarize(files, cleaning.rules())
    did = manifest.cleaning
    print(
        f"{files.output}: {manifest.sequences:,} sequences, {manifest.tokens:,} tokens in {len(manifest.shards)} "
        f"shard(s), from {did.lines:,} lines\n"
        f"dropped: {did.dropped_too_short:,} too short, {did.dropped_unknown:,} mostly unknown; "
        f"split: {did.lines_split:,} lines into {did.pieces_of_split_lines:,}; "
        f"invalid UTF-8 in {did.lines_with_invalid_utf8:,}"
    )


if __name__ == "__main__":
    run(main)
