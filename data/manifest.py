"""The manifest of a dataset folder: what it holds, where it came from, and the checksums of all of it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import xxhash

from data.vocabulary import Vocabulary
from launch import commit
from launch.errors import DataError

FORMAT_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its sizes, its checksums (xxh3, 64 bits, hexadecimal), and the bytes of the text it was made from.

    Attributes:
        name: its place from the dataset's folder on; merged datasets refer to shards in other folders.
    """

    name: str
    sequences: int
    documents: int
    tokens: int
    longest: int
    bin_bytes: int
    bin_xxh3: str
    idx_bytes: int
    idx_xxh3: str
    source: str = ""
    start: int = 0
    end: int = 0

    @property
    def folder(self) -> str:
        """Where the files are, from the dataset's folder on: `.` unless it was merged of others."""
        return str(PurePosixPath(self.name).parent)


@dataclass(frozen=True)
class CleaningRules:
    """What becomes a sequence. Lengths count the special tokens."""

    max_length: int = 512
    min_length: int = 12
    max_unknown: float = 0.5


@dataclass(frozen=True)
class CleaningCounts:
    """What the rules did to the lines of the text."""

    lines: int = 0
    lines_with_invalid_utf8: int = 0
    lines_split: int = 0
    pieces_of_split_lines: int = 0
    dropped_too_short: int = 0
    dropped_unknown: int = 0
    not_sampled: int = 0

    def __add__(self, other: "CleaningCounts") -> "CleaningCounts":
        a, b = dataclasses.astuple(self), dataclasses.astuple(other)
        return CleaningCounts(*map(sum, zip(a, b, strict=True)))


@dataclass(frozen=True)
class FileEntry:
    """A file beside the shards."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. The same text, tokenizer and rules give the same bytes: no dates, no absolute paths."""

    dtype: str
    vocabulary: Vocabulary
    tokenizers_version: str
    rules: CleaningRules
    cleaning: CleaningCounts
    shards: tuple[ShardEntry, ...]
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        """Sequences of all shards."""
        return sum(shard.sequences for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Token ids of all shards, special ones included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def checksums(self) -> dict[str, str]:
        """The checksum of every file but this one, by its place from the dataset's folder on."""
        checksums = {name: entry.xxh3 for name, entry in self.files.items()}
        for shard in self.shards:
            checksums |= {f"{shard.name}.bin": shard.bin_xxh3, f"{shard.name}.idx": shard.idx_xxh3}
        return checksums

    def fingerprint(self) -> str:
        """Changes when any sequence, or the meaning of an id, does."""
        shards = [(s.sequences, s.bin_xxh3, s.idx_xxh3) for s in self.shards]
        return _hash([shards, self.dtype, self.vocabulary.tokenizer_hash])

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, its own checksum included."""
        body = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        body["totals"] = {"sequences": self.sequences, "tokens": self.tokens}
        text = json.dumps({**body, "checksum": _hash(body)}, indent=1)
        commit.write_text(folder / NAME, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `manifest.json`.

        Raises:
            DataError: no manifest, not one of this version, or not as it was written.
        """
        path = folder / NAME
        try:
            body = json.loads(path.read_bytes())
            recorded = body.pop("checksum")
            version = body["format_version"]
        except FileNotFoundError as error:
            held = ", ".join(str(path.parent) for path in sorted(folder.glob(f"*/{NAME}")))
            cure = f"it holds: {held}" if held else "`python -m data.binarize` makes one"
            raise DataError(f"{folder}: no {NAME}: not a dataset ({cure})") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: can't be read: {error}") from error
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: format version {version}; this code reads {FORMAT_VERSION}")
        if _hash(body) != recorded:
            raise DataError(f"{path}: its checksum is {_hash(body)}, recorded is {recorded}: damaged or edited")
        try:
            return cls._from_dict(body)
        except (KeyError, TypeError, AttributeError) as error:  # intact, but of a writer that knows other fields
            raise DataError(f"{path}: not the fields that this code knows: {error}") from error

    @classmethod
    def _from_dict(cls, body: dict[str, Any]) -> Self:
        vocabulary = {**body["vocabulary"], "special_ids": tuple(body["vocabulary"]["special_ids"])}
        return cls(
            dtype=body["dtype"],
            vocabulary=Vocabulary(**vocabulary),
            tokenizers_version=body["tokenizers_version"],
            rules=CleaningRules(**body["rules"]),
            cleaning=CleaningCounts(**body["cleaning"]),
            shards=tuple(ShardEntry(**entry) for entry in body["shards"]),
            files={name: FileEntry(**entry) for name, entry in body["files"].items()},
        )


def checksum(path: Path) -> str:
    """xxh3 (64 bits, hexadecimal) of a file, read in pieces."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Size and checksum of a file beside the shards."""
    return FileEntry(path.stat().st_size, checksum(path))


def checksum_faults(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Compare files with their checksums: a sentence for each that is missing or has another one.

    Args:
        expected: checksums by place from the folder on.
    """
    faults = []
    for name, right in expected.items():
        path = folder / name
        found = checksum(path) if path.is_file() else "missing"
        if found != right:
            faults.append(f"{path}: checksum {found}, expected {right}")
    return faults


def _hash(body: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
