"""English prose out of documentation: text -> sequences of one or several neighbouring sentences, 20 to 120 words.

The way of a text: `prose_lines` (leaves out code, tables, headings) -> `runs` (neighbouring paragraphs, unwrapped) ->
`clean` (leaves out markup) -> `split_sentences` -> `sentence_fault` (is it English?) -> `sequences`.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

MIN_WORDS, MAX_WORDS = 20, 120
MAX_CHARACTERS = 5_000  # of a line or paragraph; longer ones are data, on which the expressions below take forever
MAX_ODD_WORDS = 0.08  # share of words such as `torch.nn` and `DataFrame` in a sentence
MIN_FUNCTION_WORDS = 0.30  # of all words; running English has 0.4 to 0.5, lists of terms far less

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
