"""Lines that fit a terminal."""

import shutil
import sys
import textwrap

_PROGRAMS = ("python ", "deepspeed ", "mpirun ", "torchrun ")


def width() -> int:
    """Characters of a line of this terminal, or file: 80 to 120."""
    return min(max(shutil.get_terminal_size((120, 24)).columns, 80), 120)


def bars() -> str:
    """Eight characters, each higher than the one before, or darker where standard output has no blocks."""
    blocks = "▁▂▃▄▅▆▇█"
    try:
        blocks.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return ".:-=+*%#"
    return blocks


def wrapped(line: str, width: int) -> list[str]:
    """The line, in pieces of at most `width` characters: cut at " | " or, where that is not enough, between words."""
    first, *others = line.split(" | ")
    pieces = [first]
    for part in others:
        if len(together := f"{pieces[-1]} | {part}") <= width:
            pieces[-1] = together
        else:
            pieces.append(f"    {part}")
    return [short for piece in pieces for short in _cut(piece, width, "    ")]


def folded(text: str, width: int) -> str:
    """The text with lines of at most `width` characters, cut between words and indented alike; a word that is longer,
    such as a path, stays whole, and so does a command, which someone may copy."""
    lines = []
    for line in text.split("\n"):
        words = line.lstrip()
        whole = len(line) <= width or words.startswith(_PROGRAMS)
        lines += [line] if whole else _cut(line, width, " " * (len(line) - len(words)))
    return "\n".join(lines)


def _cut(line: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
