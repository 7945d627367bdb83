"""Text -> shards, one range of the text at a time, each committed as a whole.

A shard is `00012.bin` and `00012.idx`, in the folder of each dataset that is made of the text. Beside them, in the
folder `build`, is what the manifest will be made of: its counts, and, written last, `00012.json`: what it holds and
which bytes it was made from. Where that file is, the shard is complete.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tokenizers

from data.cleaning import Sequences, clean
from data.encoder import Reference, fastest, invalid_lines
from data.inputs import name_of
from data.manifest import CleaningCounts, CleaningRules, ShardEntry
from data.shard_writer import ShardWriter
from data.text import Range, Selection, text_blocks
from data.vocabulary import Vocabulary
from launch import commit

UNFINISHED = ".making-"  # begin of the names of files that are not complete
WORK = "build"  # folder of what goes when the dataset is complete


@dataclass(frozen=True)
class Recipe:
    """All that decides what a text becomes. Every process that builds shards gets one.

    Attributes:
        tokenizer: JSON of the `tokenizers` library.
        field: of records, where the text is in one of theirs.
    """

    tokenizer: str
    vocabulary: Vocabulary
    rules: CleaningRules
    selection: Selection
    field: str | None = None


@dataclass(frozen=True)
class Encoded:
    """What a block becomes in one dataset.

    Attributes:
        counts: int64 [vocabulary], occurrences of each id.
    """

    sequences: Sequences
    cleaning: CleaningCounts
    counts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, lengths: np.ndarray, recipe: Recipe) -> Self:
        """Lines that are ids already, see `data.cleaning.clean`."""
        vocabulary = recipe.vocabulary
        sequences, cleaning = clean(ids.astype(vocabulary.dtype), lengths, recipe.rules, vocabulary)
        return cls(sequences, cleaning, np.bincount(sequences.ids, minlength=vocabulary.size))

    @classmethod
    def nothing(cls, vocabulary: Vocabulary) -> Self:
        """Of no lines."""
        none = np.zeros(0, np.int64)
        empty = Sequences(none.astype(vocabulary.dtype), none, none)
        return cls(empty, CleaningCounts(), np.zeros(vocabulary.size, np.int64))


@dataclass(frozen=True)
class Made:
    """A complete shard of one dataset."""

    entry: ShardEntry
    cleaning: CleaningCounts


class Builder:
    """Turns blocks of text into clean sequences; a pure function of each block."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.encoder, self.form = fastest(tokenizers.Tokenizer.from_str(recipe.tokenizer))
        self.fast = not isinstance(self.encoder, Reference)

    def encode(self, block: bytes, head: bool) -> list[Encoded]:
        """What a block of whole lines becomes in each dataset.

        Args:
            head: the block begins a shard; more of its lines are checked against the reference.
        """
        parts, left_out = self.recipe.selection.split(block)
        first, *others = (
            self._encode(part, head) if part else Encoded.nothing(self.recipe.vocabulary) for part in parts
        )
        cleaning = dataclasses.replace(first.cleaning, not_sampled=left_out)
        return [dataclasses.replace(first, cleaning=cleaning), *others]

    def _encode(self, block: bytes, head: bool) -> Encoded:
        encoded = Encoded.of(*self.encoder.encode(block, head), self.recipe)
        cleaning = dataclasses.replace(encoded.cleaning, lines_with_invalid_utf8=invalid_lines(block))
        return dataclasses.replace(encoded, cleaning=cleaning)


class ShardFiles:
    """The files of one shard while it is written, in the folder of each dataset. A context manager: an error leaves
    nothing that looks complete."""

    def __init__(self, folder: Path, number: int, recipe: Recipe) -> None:
        self.folder, self.name = folder, f"{number:05d}"
        self.folders = [folder / name for name in recipe.selection.datasets]
        dtype = recipe.vocabulary.dtype
        self.writers = [ShardWriter(place / f"{UNFINISHED}{self.name}", dtype) for place in self.folders]
        self.cleaning = [CleaningCounts() for _ in self.folders]
        self.counts = [np.zeros(recipe.vocabulary.size, np.int64) for _ in self.folders]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for writer in self.writers:
            writer.__exit__()

    def add(self, encoded: list[Encoded]) -> int:
        """Append what a block became; its number of tokens."""
        for i, part in enumerate(encoded):
            sequences = part.sequences
            self.writers[i].add(sequences.ids, sequences.lengths, sequences.documents)
            self.cleaning[i] += part.cleaning
            self.counts[i] += part.counts
        return sum(part.sequences.ids.size for part in encoded)

    def commit(self, part: Range) -> None:
        """Sync, give the files their names, and then say that the shard is complete."""
        made = []
        for place, writer, cleaning, counts in zip(self.folders, self.writers, self.cleaning, self.counts, strict=True):
            entry = writer.close()
            for ending in (".bin", ".idx"):
                os.replace(place / f"{UNFINISHED}{self.name}{ending}", place / f"{self.name}{ending}")
            commit.write_array(counts_path(self.folder, self.name, place), counts)
            source = name_of(part.path)
            entry = dataclasses.replace(entry, name=self.name, source=source, start=part.start, end=part.end)
            made.append(Made(entry, cleaning))
            commit.sync(place)
        body = [{"entry": dataclasses.asdict(m.entry), "cleaning": dataclasses.asdict(m.cleaning)} for m in made]
        commit.write_text(self.folder / WORK / f"{self.name}.json", json.dumps(body))


def build(builder: Builder, part: Range, folder: Path, progress: Callable[[int, int], None]) -> None:
    """One range of a plain file -> one shard.

    Args:
        progress: called after each block with its bytes and its tokens; what it raises ends the building.
    """
    with ShardFiles(folder, part.number, builder.recipe) as files:
        for i, (block, size) in enumerate(text_blocks(part, builder.recipe.field)):
            progress(size, files.add(builder.encode(block, head=i == 0)))
        files.commit(part)


def counts_path(folder: Path, name: str, place: Path) -> Path:
    """Where the counts of a shard are, of the dataset in the folder `place`."""
    return folder / WORK / f"{name}-{place.relative_to(folder).name or 'all'}.npy"


def is_complete(folder: Path, number: int) -> bool:
    """Whether a shard was committed."""
    return (folder / WORK / f"{number:05d}.json").exists()


def complete(folder: Path) -> Iterator[list[Made]]:
    """All complete shards in the order of their numbers; each for every dataset."""
    records = (path for path in (folder / WORK).glob("*.json") if path.stem.isdigit())
    for path in sorted(records, key=lambda path: int(path.stem)):
        yield [_made(body) for body in json.loads(path.read_text())]


def _made(body: dict[str, Any]) -> Made:
    return Made(ShardEntry(**body["entry"]), CleaningCounts(**body["cleaning"]))
