"""Build a corpus of real English from the documentation of installed Python packages.

    python -m data.docs_corpus --output corpus.txt --valid-output valid.txt --max-megabytes 5

Every Python installation carries megabytes of prose: docstrings, README files, package descriptions. This reads them
(sources are parsed, never imported or executed), keeps the sentences that are plain English and writes one sequence
a line: one or several neighbouring sentences, 20 to 120 words. The same packages give the same bytes, on any machine
and with any number of workers; a file that can't be read is counted and skipped.

The way of a text: `prose_lines` (leaves out code, tables, headings) -> `runs` (neighbouring paragraphs, unwrapped) ->
`clean` (leaves out markup) -> `split_sentences` -> `sentence_fault` (is it English?) -> `sequences`.
"""

import ast
import email
import gc
import hashlib
import importlib.util
import inspect
import itertools
import os
import re
import site
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from launch.args import flag, parse, require
from launch.errors import ConfigError, DataError, run

EXAMPLE = "  python -m data.docs_corpus --output corpus.txt --valid-output valid.txt"

MIN_WORDS, MAX_WORDS = 20, 120
MIN_STRING = 80  # characters; a shorter string can't hold MIN_WORDS words
MAX_CHARACTERS = 5_000  # of a line or paragraph; longer ones are data, on which the expressions below take forever
MAX_FILE_BYTES = 4_000_000  # larger "documentation" is generated data, and parsing it takes gigabytes
MAX_ODD_WORDS = 0.08  # share of words such as `torch.nn` and `DataFrame` in a sentence
MIN_FUNCTION_WORDS = 0.30  # of all words; running English has 0.4 to 0.5, lists of terms far less

SUFFIXES = {".py", ".md", ".rst", ".txt"}
METADATA_NAMES = {"METADATA", "PKG-INFO"}
SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "licenses", "node_modules", "site-packages", "test", "tests"}
SKIPPED_NAMES = re.compile(r"authors|cmakelists|copying|licen[cs]e|notice|requirements|third.?party", re.IGNORECASE)

LIST_OF_FUNCTION_WORDS = """
    a about above after again all also although always an and another any are as at be because been before being
    between both but by can cannot could did do does doing done down during each either else even every few for from
    had has have having he her here his how however i if in instead into is it its itself just least less like make
    many may might more most much must my neither never no nor not now of off often on once one only or other others
    our out over own per rather same she should since so some still such than that the their them then there therefore
    these they this those though through thus to too two under unless until up upon us use used uses using very was we
    well were what when where whether which while who whose why will with within without would yes yet you
    your
"""
FUNCTION_WORDS = frozenset(LIST_OF_FUNCTION_WORDS.split())

# --- lines -> prose lines ---

FENCE = re.compile(r"(`{3,}|~{3,})[^`]*$")
PROMPT = re.compile(r">>>|\.\.\. |\$ |In \[\d*\]")
DIRECTIVE = re.compile(r"\.\.( |$)|\S.*::$")  # the latter heads a literal block
ADMONITION = re.compile(r"\.\. (note|warning|tip|hint|important|caution|attention|danger|admonition|seealso)::")
UNDERLINE = re.compile(r"([=\-~^\"'#*+`.:_])\1{2,}$")
ONE_LINER = re.compile(
    r"""[|<]|\+[-=]|\#{1,6}\s|\[?!\[|\{[%{]       # a table row, an HTML tag, a heading, an image, a template
    |.*\S\ {3,}\S|.*\|.*\|                        # columns
    |[=-]{2,}[ =-]*$                              # borders
    |\*{0,2}[\w.]+(,\s*\*{0,2}[\w.]+)*\s+:(\s|$)  # a parameter with its type: `x, y : array_like, optional`
    """,
    re.VERBOSE,
)


def prose_lines(text: str) -> Iterator[str | None]:
    """The lines of `text`, with one None for every block that is no prose."""
    lines = text.expandtabs().splitlines()
    at = 0
    while at < len(lines):
        length = block_length(lines, at)
        yield None if length else lines[at]
        at += length or 1


def block_length(lines: Sequence[str], at: int) -> int:
    """How many lines from `at` on are code, a table, a heading, a directive ...; 0 if the line is prose."""
    line = lines[at].strip()
    if not line:
        return 0
    if fence := FENCE.match(line):
        return count_until(lines, at + 1, lambda other: other.strip().startswith(fence[1])) + 2
    if ADMONITION.match(line):
        return 1
    if PROMPT.match(line):
        return count_until(lines, at, lambda other: not other.strip())
    if DIRECTIVE.match(line):
        return count_until(lines, at + 1, lambda other: bool(other.strip()) and margin(other) <= margin(lines[at])) + 1
    if at + 1 < len(lines) and UNDERLINE.match(lines[at + 1].strip()):
        return 2  # with the underline, which might pass for a fence
    return int(bool(UNDERLINE.match(line) or ONE_LINER.match(line) or len(line) > MAX_CHARACTERS))


def count_until(lines: Sequence[str], start: int, ends: Callable[[str], bool]) -> int:
    """How many lines lie between `start` and the first one for which `ends` holds."""
    return next((at for at in range(start, len(lines)) if ends(lines[at])), len(lines)) - start


def margin(line: str) -> int:
    """The columns that a line is indented by."""
    return len(line) - len(line.lstrip())


# --- prose lines -> runs of paragraphs ---

NAME = r"[`*]{0,3}[\w.]+[`*]{0,3}"
TYPE = r"\([^()]*(?:\([^()]*\)[^()]*)*\)"  # in brackets that may hold brackets
ITEM = re.compile(
    rf"""(?:[-*+\u2022]|\(?\d{{1,3}}[.)]|\(?[a-z]\))\s+(?:{NAME}\s*(?:{TYPE})?\s*(?::|--|\u2013|\s-)(?:\s+|$))?
    |[:@]\w+(?:\s+[^:]+)?:(?:\s+|$)          # a field: `:param x: What it is`; above: a bullet, a number
    |{NAME}\s*{TYPE}\s*(?::|--)(?:\s+|$)     # a parameter with its type: `x (int): what it is`
    |{NAME}\s*(?::|--)(?:\s+(?=[A-Z])|$)     # without: `x: What it is`
    """,
    re.VERBOSE,
)


def runs(lines: Iterable[str | None]) -> Iterator[list[str]]:
    """Neighbouring paragraphs that read on, each unwrapped to one line."""
    for interrupted, group in itertools.groupby(interrupt(lines), key=lambda line: line is None):
        if not interrupted:
            yield unwrap(line for line in group if line is not None)


def interrupt(lines: Iterable[str | None]) -> Iterator[str | None]:
    """Stripped lines, with a further None before each item and where the indentation changes; items lose their mark."""
    indent: int | None = None  # of the lines that read on; None: the next line sets it
    hang = -1  # the margin of the item they belong to; its lines lie deeper
    for line in lines:
        if line is None or not line.strip():
            indent, hang = (None, -1) if line is None else (indent, hang)
            yield line and ""
            continue
        text, here = line.strip(), margin(line)
        item = ITEM.match(text)
        if item or here <= hang or (indent is not None and here != indent):
            yield None
            hang = -1
        yield text[item.end() :] if item else text
        indent, hang = (None, here) if item else (here, hang)


def unwrap(lines: Iterable[str]) -> list[str]:
    """The paragraphs of stripped lines; empty lines lie between paragraphs."""
    groups = itertools.groupby(lines, key=bool)
    paragraphs = [" ".join(group) for is_text, group in groups if is_text]
    return [paragraph for paragraph in paragraphs if len(paragraph) <= MAX_CHARACTERS]


# --- paragraph -> sentences ---

MARKUP = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"!\[[^\[\]]*\]\([^()]*\)", ""),  # image of Markdown
        (r"\[([^\[\]]+)\](?:\([^()]*\)|\[[^\[\]]*\])", r"\1"),  # link of Markdown
        (r"`([^`<]+?)\s*<[^`>]*>`_{1,2}", r"\1"),  # link of reStructuredText
        (r":(?!math)(?:\w+:)?[\w-]+:`[~!.]?([^`<]+?)(?:\s*<[^`>]*>)?`", r"\1"),  # role; formulas stay, and are refused
        (r"(?<![:`])(`{1,3})([^`]+)\1_{0,2}", r"\2"),  # code, reference
        (r"(?<![\w*])(\*{1,3})(\S(?:[^*]*\S)?)\1(?![\w*])", r"\2"),  # emphasis
        (r"(?<=[a-z]-) (?!and |or |to )(?=[a-z])", ""),  # a compound that was wrapped at its hyphen
        (r"\s+", " "),
    ]
]
ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "..."}
)
SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["')]))                                         # a full stop, perhaps inside quotes
    (?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\bal\.)(?<!\b[A-Z]\.)  # that ends no abbreviation
    \s+(?=["'(]?[A-Z])""",
    re.VERBOSE,
)


def clean(paragraph: str) -> str:
    """The paragraph without inline markup and typographic quotes."""
    paragraph = paragraph.translate(ASCII)
    for pattern, replacement in MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; the last one may lack its end."""
    return SENTENCE_END.split(paragraph)


# --- which sentences and sequences are English prose ---

PIECE = r"(?:[A-Z]?[a-zà-ÿ]+|[A-Z]{1,6}s?)"
WORD = re.compile(rf"{PIECE}(?:['/-]{PIECE})*|(?:[A-Za-z]\.)+[A-Za-z]?")
NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*(?:%|st|nd|rd|th|s)?")
SHAPE = re.compile(r"[\"'(]?[A-Z].*[.!?](?<!\be\.g\.)(?<!\bi\.e\.)[\"')]*")
SYMBOL = re.compile(
    r"""[^A-Za-zÀ-ɏ0-9\ ,.;:!?"'()/%&+-]  # a character of code or formulas
    |\w\((?!e?s\)|ies\))|\)[.]?\w             # a call, but not a plural(s)
    |--|[,;:]{2}|(?<!\.)\.\.(?!\.)|\.{4}      # what is left of markup
    """,
    re.VERBOSE,
)
ADDRESS = re.compile(r"https?:|www\.|\w\.(?:com|org|io|net|dev|html)\b")
LICENCE = re.compile(
    r"copyright|licen[cs]e|warrant(?:y|ies)|all rights reserved|permission is hereby|redistributions? ", re.IGNORECASE
)


def sentence_fault(sentence: str) -> str | None:
    """Why a sentence is no plain English; None if it is."""
    if not SHAPE.fullmatch(sentence):
        return "no full sentence"
    if SYMBOL.search(sentence) or not balanced(sentence):
        return "symbols"
    if ADDRESS.search(sentence):
        return "web address"
    if LICENCE.search(sentence):
        return "licence"
    words = words_of(sentence)
    if not 3 <= len(words) <= MAX_WORDS:
        return "too short or long a sentence"
    return "identifiers" if odd_share(words) > MAX_ODD_WORDS else None


def sequence_fault(sequence: str) -> str | None:
    """Why sentences, each good, make no good sequence; None if they do."""
    words = words_of(sequence)
    if len(words) < MIN_WORDS:
        return "too few words"
    known = sum(word.lower() in FUNCTION_WORDS for word in words)
    return "not English" if known < MIN_FUNCTION_WORDS * len(words) else None


def words_of(text: str) -> list[str]:
    """The words, without the punctuation around them."""
    stripped = (word.strip(".,;:!?\"'()-&+") for word in text.split())
    return [word for word in stripped if word]


def odd_share(words: Sequence[str]) -> float:
    """The share of the words that are spelt neither like English nor like numbers."""
    return sum(not (WORD.fullmatch(word) or NUMBER.fullmatch(word)) for word in words) / len(words)


def balanced(sentence: str) -> bool:
    """Whether brackets and quotes are closed; a sentence cut from code or a list often has half of a pair."""
    return sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0


def sequences(text: str, dropped: Counter[str]) -> Iterator[str]:
    """The sequences of one docstring or file; counts in `dropped`, by reason, what is left out."""
    for paragraphs in runs(prose_lines(text)):
        for group in sentence_groups(paragraphs, dropped):
            sequence = " ".join(group)
            if fault := sequence_fault(sequence):
                dropped[fault] += len(group)
            else:
                yield sequence


def sentence_groups(paragraphs: Iterable[str], dropped: Counter[str]) -> Iterator[list[str]]:
    """Good sentences in groups, each of neighbours, that end with a paragraph, or before a bad one or MAX_WORDS."""
    group: list[str] = []
    length = 0
    for paragraph in paragraphs:
        for sentence in split_sentences(clean(paragraph)):
            fault = sentence_fault(sentence)
            count = len(words_of(sentence))
            if group and (fault or length + count > MAX_WORDS):
                yield group
                group, length = [], 0
            if fault:
                dropped[fault] += 1
            else:
                group.append(sentence)
                length += count
        if length >= MIN_WORDS:
            yield group
            group, length = [], 0
    if group:
        yield group


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
    """Write each corpus under a temporary name beside it; rename when all are on the disk."""
    partials = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in corpora}
    try:
        for path, sequences in corpora.items():
            with open(partials[path], "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{sequence}\n" for sequence in sequences)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"the corpus can't be written: {error}; choose another --output") from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


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
    return (
        f"read {read:,} files, skipped {listing(harvested.skipped)}\n"
        f"kept sequences: {', '.join(kept)}\n"
        f"dropped sequences: {repeated:,} repeated, {beyond:,} over --max-megabytes; "
        f"sentences: {listing(harvested.dropped)}"
    )


def listing(counts: Counter[str]) -> str:
    """`3 unreadable, 1 too large`, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "none"


def main() -> None:
    (options,) = parse("Build a corpus of English from the documentation of Python packages.", Options, example=EXAMPLE)
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
