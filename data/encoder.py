"""Lines of text -> ids: the reference (the `tokenizers` library), and the fastest form that gives the same ids.

Knows nothing of `transformers`: its import takes seconds, and every process that builds shards would pay them.
"""

from typing import Protocol

import numpy as np
import tokenizers
import xxhash

from data.wordpiece import WordPiece
from launch import native
from launch.errors import DataError

CHECKED_LINES = 32  # at the head of each shard; then one a block
CHECKED_BYTES = 1 << 16  # a longer line is not checked: the reference takes a hundred times its size in memory


class Encoder(Protocol):
    """A form of a tokenizer."""

    def encode(self, block: bytes, head: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the lines of a block, without special tokens around them.

        Args:
            block: lines, which end at a line feed only; the last one may lack its end.
            head: the block begins a shard.

        Returns:
            ids: integers [sum of lengths], one line after another.
            lengths: int64 [lines].
        """
        ...


class Reference:
    """The `tokenizers` library itself."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, block: bytes, head: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """See Encoder; ids are int64."""
        texts = [line.decode(errors="replace") for line in lines_of(block)]
        per_line = [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, per_line), np.int64, len(per_line))
        ids = np.fromiter((token for line in per_line for token in line), np.int64, int(lengths.sum()))
        return ids, lengths


class Checked:
    """A fast form, some lines of which the reference encodes, too."""

    def __init__(self, fast: WordPiece, reference: Reference) -> None:
        self.fast, self.reference = fast, reference

    def encode(self, block: bytes, head: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """See Encoder; ids are uint32. At the head of a shard more lines are checked.

        Raises:
            DataError: the two forms disagree; the line is shown.
        """
        ids, lengths = self.fast.encode(block)
        starts = np.cumsum(lengths) - lengths
        chosen = range(min(CHECKED_LINES, lengths.size)) if head else [xxhash.xxh3_64_intdigest(block) % lengths.size]
        lines = lines_of(block) if head else [_line(block, chosen[0])]
        for number, line in zip(chosen, lines, strict=False):
            found = ids[starts[number] : starts[number] + lengths[number]]
            if len(line) <= CHECKED_BYTES and not np.array_equal(found, self.reference.encode(line)[0]):
                raise DataError(
                    f"the fast tokenizer gives other ids than the reference for this line: please report it\n{line!r}\n"
                    "DILBERT_NATIVE=0 in the environment builds with the reference alone"
                )
        return ids, lengths


def fastest(tokenizer: tokenizers.Tokenizer) -> tuple[Encoder, str]:
    """The fastest form of a tokenizer, and a sentence that says which it is and why."""
    reference = Reference(tokenizer)
    try:
        fast = WordPiece(tokenizer)
    except native.Unavailable as reason:
        return reference, f"the tokenizers library {tokenizers.__version__} (no fast form: {reason})"
    return Checked(
        fast, reference
    ), f"WordPiece in C++, checked against the tokenizers library {tokenizers.__version__}"


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block without their ends (one carriage return before a line feed belongs to the end)."""
    if not block:
        return []
    return [line.removesuffix(b"\r") for line in block.removesuffix(b"\n").split(b"\n")]


def invalid_lines(block: bytes) -> int:
    """How many lines are not UTF-8."""
    try:
        block.decode()
        return 0
    except UnicodeDecodeError:
        return sum(not _is_utf8(line) for line in lines_of(block))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
        return True
    except UnicodeDecodeError:
        return False


def _line(block: bytes, number: int) -> bytes:
    return block.split(b"\n", number + 1)[number].removesuffix(b"\r")
