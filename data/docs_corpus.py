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
import hashlib
import importlib.util
import inspect
import os
import re
import sysconfig
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from launch.args import flag, parse, require
from launch.errors import ConfigError, DataError, run

MIN_WORDS, MAX_WORDS = 20, 120
MIN_STRING = 80  # characters; a shorter string can't hold MIN_WORDS words
MAX_FILE_BYTES = 4_000_000  # larger "documentation" is generated data, and parsing it takes gigabytes
MAX_ODD_WORDS = 0.08  # share of words such as `torch.nn` and `DataFrame`, in a sentence and in a sequence
MIN_FUNCTION_WORDS = 0.30  # of all words; running English has 0.4 to 0.5, lists of terms far less

SUFFIXES = {".py", ".md", ".rst", ".txt"}
METADATA_NAMES = {"METADATA", "PKG-INFO"}
SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "licenses", "node_modules", "site-packages", "test", "tests"}
SKIPPED_NAMES = re.compile(r"authors|cmakelists|copying|licen[cs]e|notice|requirements|third.?party", re.IGNORECASE)

FUNCTION_WORDS = frozenset(
    """a about above after again all also although always an and another any are as at be because been before being
    between both but by can cannot could did do does doing done down during each either else even every few for from
    had has have having he her here his how however i if in instead into is it its itself just least less like make
    many may might more most much must my neither never no nor not now of off often on once one only or other others
    our out over own per rather same she should since so some still such than that the their them then there therefore
    these they this those though through thus to too two under unless until up upon us use used uses using very was we
    well were what when where whether which while who whose why will with within without would yes yet you
    your""".split()
)

# --- lines -> prose lines ---

FENCE = re.compile(r"`{3,}|~{3,}")
PROMPT = re.compile(r">>>|\.\.\. |\$ |In \[\d*\]")
DIRECTIVE = re.compile(r"\.\.( |$)|\S.*::$")  # the latter heads a literal block
ADMONITION = re.compile(r"\.\. (note|warning|tip|hint|important|caution|attention|danger|admonition|seealso)::")
UNDERLINE = re.compile(r"([=\-~^\"'#*+`.:_])\1{2,}$")
ONE_LINER = re.compile(
    r"""[|+<]|\#{1,6}\s|\[?!\[|\{[%{]             # a table row, an HTML tag, a heading, an image, a template
    |.*\S\ {3,}\S|.*\|.*\|                        # columns
    |[=-]{2,}[ =-]*$                              # borders
    |\*{0,2}[\w.]+(,\s*\*{0,2}[\w.]+)*\s+:(\s|$)  # a parameter with its type: `x, y : array_like, optional`
    |:r?type\b                                    # the same in the style of Sphinx
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
    if not line or ADMONITION.match(line):
        return int(bool(line))
    if fence := FENCE.match(line):
        return count_until(lines, at + 1, lambda other: other.strip().startswith(fence[0])) + 2
    if PROMPT.match(line):
        return count_until(lines, at, lambda other: not other.strip())
    if DIRECTIVE.match(line):
        return count_until(lines, at + 1, lambda other: bool(other.strip()) and margin(other) <= margin(lines[at])) + 1
    if at + 1 < len(lines) and UNDERLINE.match(lines[at + 1].strip()):
        return 2
    return int(bool(ONE_LINER.match(line) or UNDERLINE.match(line)))


def count_until(lines: Sequence[str], start: int, ends: Callable[[str], bool]) -> int:
    """How many lines lie between `start` and the first one for which `ends` holds."""
    return next((at for at in range(start, len(lines)) if ends(lines[at])), len(lines)) - start


def margin(line: str) -> int:
    """The columns that a line is indented by."""
    return len(line) - len(line.lstrip())


# --- prose lines -> runs of paragraphs ---

NAME = r"[`*]{0,3}[\w.]+[`*]{0,3}"
ITEM = re.compile(
    rf"""(?:[-*+•]|\(?\d{{1,3}}[.)]|\(?[a-z]\))\s+(?:{NAME}\s*(?:\(.*?\))?\s*(?::|--|–|\s-)(?:\s+|$))?  # bullet, number
    |[:@]\w+(?:\s+[^:]+)?:\s*                                                         # a field: `:param x:`
    |{NAME}(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*(?::|--)(?:\s+(?=[A-Z])|$)       # `x (int): What it is`
    """,
    re.VERBOSE,
)


def runs(lines: Iterable[str | None]) -> Iterator[list[str]]:
    """Neighbouring paragraphs that can be read on, each unwrapped to one line.

    A run ends at a block that is no prose, at a list item or parameter, and where the indentation changes.
    """
    run_lines: list[str] = []
    expected, item_margin = None, -1  # of the run; after an item the next line sets it
    for line in lines:
        text = "" if line is None else line.strip()
        item = ITEM.match(text)
        here = margin(line) if line and text else expected
        if line is None or item or (expected is not None and here != expected) or (text and here <= item_margin):
            yield unwrap(run_lines)
            run_lines, expected, item_margin = [], None, -1
    ...
