"""Damage of every kind to a small dataset: is it seen at opening, by `data.describe --verify`, or never?

    python -m tests.faults_data [--output FILE.csv]

Makes a dataset of two shards from made-up text, damages one thing at a time, and prints how often that was seen. "At
open" is what every run does first: it opens the dataset and reads its counts. Then the same flipped bits of `.idx` and
`.bin` are given to Megatron-Core's IndexedDataset, the layout's reference implementation, which is opened and read
through. Exit code 1 if any damage to our dataset was never seen. Hardware: one core, half a minute.

A change of the manifest's bytes that leaves the JSON equal (white space) is no damage: its checksum is of the content.
"""

import contextlib
import csv
import functools
import io
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.binarize import Files, binarize
from data.describe import verify
from data.indexed import Dataset
from data.manifest import CleaningRules
from launch import progress
from launch.args import flag, parse
from launch.errors import DataError, run

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "a", "cat", "dog", "tree", "house", "sees", "runs", "to", "from", "and", "but")
BIN_STEP, BIN_FLIPS, TOKENIZER_FLIPS = 37, 200, 200

SEEN_AT_OPEN, SEEN_BY_VERIFY, SILENT = "at open", "by verify", "silent"
REFUSED, OTHER_DATA, SAME_DATA = "refused", "other data", "same data"


@dataclass(frozen=True)
class Arguments:
    """Where the figures go."""

    output: Path | None = flag(None, "also write them to this CSV file", metavar="FILE")


@dataclass(frozen=True)
class Fault:
    """One damage.

    Attributes:
        files: what becomes of the files' contents; None: there is no such file any more.
    """

    kind: str
    files: dict[str, bytes | None]


# --- datasets ---


@dataclass(frozen=True)
class Datasets:
    """The one to damage; one of other text; and one of other text with all sizes the same."""

    folder: Path
    other: Path
    alike: Path


def make_datasets(folder: Path) -> Datasets:
    """Two shards each."""
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("".join(f"{token}\n" for token in SPECIALS + WORDS))
    texts = [_lines(seed) for seed in (0, 1)]
    turn = dict(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    alike = [[[turn[word] for word in line] for line in reversed(text)] for text in texts]
    return Datasets(
        _dataset(folder / "ours", texts), _dataset(folder / "other", [_lines(2), _lines(3)]),
        _dataset(folder / "alike", alike),
    )  # fmt: skip


def _lines(seed: int) -> list[list[str]]:
    """Some words are far more frequent than others."""
    generator = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return [generator.choices(WORDS, weights, k=generator.randint(2, 20)) for _ in range(24)]


def _dataset(output: Path, texts: list[list[list[str]]]) -> Path:
    paths = [output.with_name(f"{output.name}{number}.txt") for number in range(len(texts))]
    for path, lines in zip(paths, texts, strict=True):
        path.write_text("".join(" ".join(words) + "\n" for words in lines))
    files = Files(tuple(map(str, paths)), str(output.with_name("tokenizer")), output, workers=1)
    binarize(files, CleaningRules(16, 3, 0.5))
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a dataset by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- faults ---


def faults(datasets: Datasets, every: int = 1) -> Iterator[Fault]:
    """All damage that is tried; of the long series, each `every`-th."""
    ours = contents(datasets.folder)
    indices, ids = [[name for name in ours if name.endswith(ending)] for ending in (".idx", ".bin")]
    tokenizer = [name for name in ours if name.startswith("tokenizer/")]
    yield from truncations(".idx cut off after any byte", ours, indices, every)
    yield from truncations(f".bin cut off, every {BIN_STEP} bytes", ours, ids, BIN_STEP)
    yield from flips(".idx, a bit of any byte", ours, indices, every)
    yield from flips("manifest.json, a bit of any byte", ours, ["manifest.json"], every)
    yield from flips("counts.npy, a bit of any byte", ours, ["counts.npy"], every)
    yield from random_flips(f".bin, a bit of {BIN_FLIPS} bytes", ours, ids, BIN_FLIPS, every)
    yield from random_flips(f"tokenizer/, a bit of {TOKENIZER_FLIPS} bytes", ours, tokenizer, TOKENIZER_FLIPS, every)
    yield from appended("bytes appended to any file", ours)
    yield from dtype_codes("another dtype code", ours, indices)
    yield from missing("any file missing", ours)
    yield from swapped("files of another dataset", ours, contents(datasets.other))
    yield from swapped("files of another, of equal sizes", ours, contents(datasets.alike))
    yield from exchanged("files of two shards exchanged", ours)


def truncations(kind: str, ours: dict[str, bytes], names: list[str], step: int) -> Iterator[Fault]:
    """Each file at each `step`-th length."""
    for name in names:
        for size in range(0, len(ours[name]), step):
            yield Fault(kind, {name: ours[name][:size]})


def flips(kind: str, ours: dict[str, bytes], names: list[str], step: int) -> Iterator[Fault]:
    """Each bit of each `step`-th byte, one at a time."""
    for name in names:
        for at in range(0, len(ours[name]), step):
            for bit in range(8):
                yield Fault(kind, {name: flipped(ours[name], at, bit)})


def random_flips(kind: str, ours: dict[str, bytes], names: list[str], count: int, step: int) -> Iterator[Fault]:
    """One bit each of `count / step` bytes of each file, chosen at random; of all bytes where there are fewer."""
    generator = random.Random(0)
    for name in names:
        for at in generator.sample(range(len(ours[name])), min(count, len(ours[name])) // step):
            yield Fault(kind, {name: flipped(ours[name], at, generator.randrange(8))})


def flipped(content: bytes, at: int, bit: int) -> bytes:
    """`content` with one bit changed."""
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def appended(kind: str, ours: dict[str, bytes]) -> Iterator[Fault]:
    """Zeros, and ones, of lengths that are some item's size, or as many as there are sequences."""
    for name, content in ours.items():
        for count in (1, 2, 3, 4, 8, 12, 24, 4096):
            for byte in (b"\x00", b"\xff"):
                yield Fault(kind, {name: content + byte * count})


def dtype_codes(kind: str, ours: dict[str, bytes], names: list[str]) -> Iterator[Fault]:
    """All other values of the byte."""
    for name in names:
        for code in set(range(256)) - {ours[name][17]}:
            yield Fault(kind, {name: ours[name][:17] + bytes([code]) + ours[name][18:]})


def missing(kind: str, ours: dict[str, bytes]) -> Iterator[Fault]:
    """Each file alone, and both of a shard."""
    for name in ours:
        yield Fault(kind, {name: None})
    yield Fault(kind, {"00000.bin": None, "00000.idx": None})


def swapped(kind: str, ours: dict[str, bytes], theirs: dict[str, bytes]) -> Iterator[Fault]:
    """Files of another dataset in place of ours: one kind, or both of a shard."""
    names = [("00000.bin",), ("00000.idx",), ("00000.bin", "00000.idx"), ("counts.npy",), ("manifest.json",)]
    names += [("00000.bin", "00001.bin"), ("00000.idx", "00001.idx")]
    names += [("00000.bin", "00000.idx", "counts.npy"), ("00001.bin", "00001.idx", "manifest.json")]
    for group in names:
        yield Fault(kind, {name: theirs[name] for name in group})


def exchanged(kind: str, ours: dict[str, bytes]) -> Iterator[Fault]:
    """Between the shards of one dataset."""
    for endings in ((".bin",), (".idx",), (".bin", ".idx")):
        files = {f"0000{i}{ending}": ours[f"0000{1 - i}{ending}"] for i in range(2) for ending in endings}
        yield Fault(kind, dict(files))


# --- what comes of them ---


@contextlib.contextmanager
def damaged(folder: Path, fault: Fault) -> Iterator[None]:
    """Files are replaced, never written into: some reader may still have the old ones mapped."""
    before = {name: (folder / name).read_bytes() for name in fault.files}
    _put(folder, fault.files)
    try:
        yield
    finally:
        _put(folder, before)


def _put(folder: Path, files: dict[str, bytes | None] | dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)


def seen_by_us(folder: Path) -> str:
    """Any other error than DataError is a defect, and ends the command."""
    try:
        dataset = Dataset.open(folder)
        dataset.counts()
    except DataError:
        return SEEN_AT_OPEN
    return SEEN_BY_VERIFY if verify(dataset) else SILENT


def seen_by_megatron(folder: Path, right: list[Any]) -> str:
    """Opens and reads both shards."""
    try:
        found = read_by_megatron(folder)
    except Exception:  # of any kind: it makes no promise
        return REFUSED
    return SAME_DATA if found == right else OTHER_DATA


def read_by_megatron(folder: Path) -> list[Any]:
    """Sequences and document ends of both shards."""
    found: list[Any] = []
    for name in ("00000", "00001"):
        dataset = _megatron().IndexedDataset(str(folder / name))
        found += [dataset.get(i).tolist() for i in range(len(dataset))]
        found.append(dataset.document_indices.tolist())
    return found


@functools.cache
def _megatron() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of what it misses
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what tools print, nor of what Megatron's destructors say after a failed constructor."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.unraisablehook = hook


def is_damage(fault: Fault, ours: dict[str, bytes]) -> bool:
    """Whether anything is meant to be seen."""
    if fault.files.keys() == {"manifest.json"} and fault.files["manifest.json"] is not None:
        with contextlib.suppress(ValueError):
            return json.loads(fault.files["manifest.json"]) != json.loads(ours["manifest.json"])
    return any(content != ours[name] for name, content in fault.files.items())


Table = dict[str, Counter[str]]


def tabulate(folder: Path, damage: Iterable[Fault], outcome: Callable[[Path], str], title: str) -> Table:
    """How often each kind had which outcome."""
    ours = contents(folder)
    table: Table = {}
    with progress.bar(None, "fault", title) as bar, quiet():
        for fault in damage:
            if is_damage(fault, ours):
                with damaged(folder, fault):
                    table.setdefault(fault.kind, Counter())[outcome(folder)] += 1
            bar.update()
    return table


def our_table(datasets: Datasets, every: int = 1) -> Table:
    """What our reader and `verify` see."""
    return tabulate(datasets.folder, faults(datasets, every), seen_by_us, "data.indexed")


def megatrons_table(datasets: Datasets, every: int = 1) -> Table:
    """What Megatron-Core's reader sees of single flipped bits."""
    damage = (fault for fault in faults(datasets, every) if fault.kind.startswith((".idx, a bit", ".bin, a bit")))
    outcome = functools.partial(seen_by_megatron, right=read_by_megatron(datasets.folder))
    return tabulate(datasets.folder, damage, outcome, "Megatron-Core")


def rows(table: Table, outcomes: tuple[str, ...]) -> list[str]:
    """Lines to print, with their sum."""
    total: Counter[str] = sum(table.values(), Counter())
    lines = [f"{'fault':<36}{'tried':>8}" + "".join(f"{outcome:>12}" for outcome in outcomes)]
    for kind, seen in [*table.items(), ("all", total)]:
        lines.append(f"{kind:<36}{seen.total():>8,}" + "".join(f"{seen[outcome]:>12,}" for outcome in outcomes))
    return lines


def write_csv(path: Path, tables: dict[str, Table]) -> None:
    """A line for each reader, fault and outcome."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["reader", "fault", "outcome", "count"])
        for reader, table in tables.items():
            writer.writerows([reader, kind, outcome, n] for kind, seen in table.items() for outcome, n in seen.items())


def main() -> None:
    """Command line."""
    (arguments,) = parse("Damage of every kind to a small dataset.", Arguments, prog="tests.faults_data")
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            datasets = make_datasets(Path(folder))
        ours, theirs = our_table(datasets), megatrons_table(datasets)
    print("\n".join(rows(ours, (SEEN_AT_OPEN, SEEN_BY_VERIFY, SILENT))))
    print("\nMegatron-Core's IndexedDataset, opened and read through:\n")
    print("\n".join(rows(theirs, (REFUSED, OTHER_DATA, SAME_DATA))))
    if arguments.output:
        write_csv(arguments.output, {"data.indexed": ours, "megatron.core": theirs})
    if any(seen[SILENT] for seen in ours.values()):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
