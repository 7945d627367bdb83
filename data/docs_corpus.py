"""Build a corpus of real English from the documentation of installed Python packages.

    python -m data.docs_corpus --output corpus.txt --valid-output valid.txt --max-megabytes 5

Every Python installation carries megabytes of prose: docstrings, README files, package descriptions. This reads them
(sources are parsed, never imported or executed), keeps the sentences that are plain English and writes one sequence
a line: one or several neighbouring sentences, 20 to 120 words. The same packages give the same bytes, on any machine
and with any number of workers; a file that can't be read is counted and skipped.

`data.prose` tells what is prose.
"""

import ast
import email
import gc
import hashlib
import importlib.util
import inspect
import os
import re
import site
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from data.prose import sequences
from launch import commit
from launch.args import flag, parse, require
from launch.errors import ConfigError, DataError, run
from launch.lines import width, wrapped

EXAMPLE = "  python -m data.docs_corpus --output corpus.txt --valid-output valid.txt"

MIN_STRING = 80  # characters; a shorter string can't hold MIN_WORDS words
MAX_FILE_BYTES = 4_000_000  # larger "documentation" is generated data, and parsing it takes gigabytes

SUFFIXES = {".py", ".md", ".rst", ".txt"}
METADATA_NAMES = {"METADATA", "PKG-INFO"}
SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "licenses", "node_modules", "site-packages", "test", "tests"}
SKIPPED_NAMES = re.compile(r"authors|cmakelists|copying|licen[cs]e|notice|requirements|third.?party", re.IGNORECASE)

# --- files -> texts ---


def documents(packages: Iterable[Path], skipped: Counter[str]) -> Iterator[Path]:
    """The files below `packages` that can hold documentation, sorted within each; counts folders that can't be read."""
    for package in packages:
        if package.is_file():
            yield package
            continue
        for folder, folders, names in os.walk(package, onerror=lambda _: skipped.update(["unreadable"])):
            folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
            yield from (Path(folder, name) for name in sorted(names) if holds_documentation(folder, name))


def holds_documentation(folder: str, name: str) -> bool:
    """Whether a file's name promises prose: sources, pages, and of a distribution's metadata only its description."""
    if folder.endswith((".dist-info", ".egg-info")):
        return name in METADATA_NAMES
    return Path(name).suffix in SUFFIXES and not SKIPPED_NAMES.match(name)


def read_texts(path: Path) -> list[str]:
    """The docstrings of a source, the description in a distribution's metadata, or the whole of another file.

    Raises:
        OSError: no regular file (reading a named pipe would wait forever), or not readable.
        UnicodeError: not text in the encoding it should have.
        SyntaxError, ValueError, RecursionError, MemoryError: no Python that this version parses.
    """
    if not path.is_file():
        raise OSError(f"{path} is no regular file")
    content = path.read_bytes()
    if path.suffix == ".py":
        return list(docstrings(decode_source(content)))
    text = content.decode("utf-8-sig")
    if path.name in METADATA_NAMES:
        return [str(email.message_from_string(text).get_payload())]
    return [text]


def decode_source(content: bytes) -> str:
    """Python source as text, by its coding line."""
    try:
        return importlib.util.decode_source(content)
    except SyntaxError as error:  # an encoding that doesn't exist, or isn't that of the first lines
        raise UnicodeError(str(error)) from error


def docstrings(source: str) -> Iterator[str]:
    """Every string that documents: docstrings, strings below an attribute, and those of the module's top level.

    The top level counts because compiled functions get their documentation there (`add_docstr(torch.abs, "...")`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on invalid escapes, which are not ours to mend
        module = ast.parse(source)
    for statement in module.body:
        if isinstance(statement, ast.Expr | ast.Assign):
            yield from (inspect.cleandoc(text) for text in strings_in(statement))
        else:
            yield from (inspect.cleandoc(text) for text in docstrings_below(statement))


def docstrings_below(statement: ast.stmt) -> Iterator[str]:
    """The strings that stand as statements of their own below a class, a function or an `if`."""
    for child in getattr(statement, "body", []):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            yield from strings_in(child)
        else:
            yield from docstrings_below(child)


def strings_in(statement: ast.stmt) -> Iterator[str]:
    """The strings in a statement that are long enough to hold a sequence."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= MIN_STRING:
            yield node.value


@dataclass(frozen=True)
class Harvest:
    """What was found in one file, or in many."""

    sequences: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # sentences, by reason
    skipped: Counter[str] = field(default_factory=Counter)  # files, by reason


def harvest(path: Path) -> Harvest:
    """The sequences of one file; whatever is wrong with the file is counted, never raised."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return Harvest(skipped=Counter(["too large"]))
        texts = read_texts(path)
    except OSError:
        return Harvest(skipped=Counter(["unreadable"]))
    except UnicodeError:
        return Harvest(skipped=Counter(["undecodable"]))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # NUL bytes; nested too deep for the parser
        return Harvest(skipped=Counter(["syntax error"]))
    dropped: Counter[str] = Counter()
    found = [sequence for text in texts for sequence in sequences(text, dropped)]
    return Harvest(found, dropped)


def harvest_all(paths: Sequence[Path], workers: int) -> Harvest:
    """The sequences of all files, in the order of the files, however many processes read them."""
    total = Harvest()
    for result in tqdm(in_parallel(paths, workers), total=len(paths), unit=" files", disable=None):
        total.sequences.extend(result.sequences)
        total.dropped.update(result.dropped)
        total.skipped.update(result.skipped)
    return total


def in_parallel(paths: Sequence[Path], workers: int) -> Iterator[Harvest]:
    """`map(harvest, paths)`.

    Raises:
        DataError: a worker was killed.
    """
    if workers == 1:
        yield from map(harvest, paths)
        return
    try:  # spawned, because a fork of a process with threads can hang
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=gc.disable) as pool:
            yield from pool.map(harvest, paths, chunksize=16)
    except BrokenProcessPool as error:
        raise DataError("a process that reads files was killed (out of memory?): use fewer --workers") from error


# --- sequences -> corpus files ---


def content_hash(sequence: str, purpose: bytes) -> float:
    """A number in [0, 1) that depends on the text alone; different purposes give independent numbers."""
    digest = hashlib.blake2b(sequence.encode(), digest_size=8, person=purpose).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def sample(sequences: Sequence[str], max_bytes: float) -> list[str]:
    """As many sequences as fit, in their order; a larger sample holds every smaller one."""
    chosen: set[str] = set()
    for sequence in sorted(sequences, key=lambda sequence: content_hash(sequence, b"sample")):
        max_bytes -= size(sequence)
        if max_bytes < 0:
            break
        chosen.add(sequence)
    return [sequence for sequence in sequences if sequence in chosen]


def size(sequence: str) -> int:
    """The bytes of a sequence's line."""
    return len(sequence.encode()) + 1


def split(sequences: Sequence[str], valid_fraction: float) -> tuple[list[str], list[str]]:
    """Training and validation sequences; a sequence stays on its side whatever else the corpus holds."""
    is_valid = [content_hash(sequence, b"valid") < valid_fraction for sequence in sequences]
    return (
        [sequence for sequence, valid in zip(sequences, is_valid, strict=True) if not valid],
        [sequence for sequence, valid in zip(sequences, is_valid, strict=True) if valid],
    )


def write(corpora: Mapping[Path, Sequence[str]]) -> None:
    """Write each corpus; a file that is there is replaced when the new one is on the disk."""
    for path, lines in corpora.items():
        try:
            commit.write_text(path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise ConfigError(f"{path}: the corpus can't be written: {error}; choose another --output") from error


# --- command line ---


@dataclass(frozen=True)
class Options:
    """What to read, and where the corpus goes."""

    output: Path = flag(help="file of the corpus, one sequence a line; an existing one is replaced")
    valid_output: Path | None = flag(None, "file of the held-out sequences (default: none are held out)")
    valid_fraction: float = flag(0.02, "share of the sequences that are held out, chosen by a hash of their text")
    packages: tuple[Path, ...] | None = flag(
        None, "folders or files to read (default: site-packages and standard library of this Python)"
    )
    max_megabytes: float | None = flag(None, "size at most, by a sample of all sequences (default: no limit)")
    workers: int = flag(min(os.cpu_count() or 1, 16), "processes that read; the corpus doesn't depend on it")

    def __post_init__(self) -> None:
        require(0 < self.valid_fraction < 1, "valid_fraction", self.valid_fraction, "must lie between 0 and 1")
        if self.max_megabytes is not None:
            require(self.max_megabytes > 0, "max_megabytes", self.max_megabytes, "must be more than 0")
        require(self.workers > 0, "workers", self.workers, "must be at least 1")
        same = self.valid_output is not None and self.valid_output.resolve() == self.output.resolve()
        require(not same, "valid_output", self.valid_output, "must differ from --output")
        for name, path in [("output", self.output), ("valid_output", self.valid_output)]:
            require(path is None or not path.is_dir(), name, path, "is a folder; name a file")
            require(path is None or path.parent.is_dir(), name, path, "lies in a folder that doesn't exist; create it")
        for package in self.packages or ():
            require(package.exists(), "packages", package, "doesn't exist")


def installed_packages() -> list[Path]:
    """The site-packages folders and the standard library of the running interpreter, each once."""
    folders = [*site.getsitepackages(), sysconfig.get_path("stdlib")]
    return list(dict.fromkeys(Path(folder).resolve() for folder in folders if Path(folder).is_dir()))


def divide(options: Options, sequences: Sequence[str]) -> dict[Path, list[str]]:
    """The content of each output file.

    Raises:
        DataError: a file would be empty.
    """
    if options.max_megabytes is not None:
        sequences = sample(sequences, options.max_megabytes * 1e6)
    corpora = {options.output: list(sequences)}
    if options.valid_output is not None:
        corpora[options.output], corpora[options.valid_output] = split(sequences, options.valid_fraction)
    for path, content in corpora.items():
        if not content:
            raise DataError(f"{path} would be empty: read more --packages, or change --max-megabytes, --valid-fraction")
    return corpora


def summary(read: int, harvested: Harvest, unique: int, corpora: Mapping[Path, Sequence[str]]) -> str:
    """What was read, kept and dropped, and why."""
    kept = [f"{path} {len(lines):,} ({sum(map(size, lines)) / 1e6:.2f} MB)" for path, lines in corpora.items()]
    repeated = len(harvested.sequences) - unique
    beyond = unique - sum(map(len, corpora.values()))
    dropped = f"{repeated:,} repeated, {beyond:,} over --max-megabytes; sentences: {listing(harvested.dropped)}"
    return "\n".join([
        f"read {read:,} files, skipped {listing(harvested.skipped)}",
        f"kept sequences: {', '.join(kept)}",
        *wrapped(f"dropped sequences: {dropped}", width()),
    ])  # fmt: skip


def listing(counts: Counter[str]) -> str:
    """`3 unreadable, 1 too large`, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "none"


def main() -> None:
    description = "Build a corpus of English from the documentation of Python packages."
    (options,) = parse(description, Options, example=EXAMPLE, prog="data.docs_corpus")
    gc.disable()  # syntax trees hold no cycles; the collector would walk them, and all imported modules, in vain
    unwalked: Counter[str] = Counter()
    paths = list(documents(options.packages or installed_packages(), unwalked))
    harvested = harvest_all(paths, options.workers)
    harvested.skipped.update(unwalked)
    unique = list(dict.fromkeys(harvested.sequences))
    corpora = divide(options, unique)
    write(corpora)
    print(summary(len(paths), harvested, len(unique), corpora))


if __name__ == "__main__":
    run(main)
