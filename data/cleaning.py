"""What becomes a sequence: long lines are split, short and unreadable ones dropped, the rest framed."""

from dataclasses import dataclass

import numpy as np

from data.manifest import CleaningCounts, CleaningRules
from data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sequences:
    """Clean sequences of some lines.

    Attributes:
        ids: [tokens], one sequence after another, each `[CLS] ... [SEP]`.
        lengths: int64 [sequences].
        documents: int64 [lines that left something], sequences of each.
    """

    ids: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray


def clean(
    ids: np.ndarray, lengths: np.ndarray, rules: CleaningRules, vocabulary: Vocabulary
) -> tuple[Sequences, CleaningCounts]:
    """Split, drop and frame lines.

    Args:
        ids: integers [tokens], the lines' ids one after another, without [CLS] and [SEP].
        lengths: int64 [lines].

    Returns:
        The sequences, their ids in the dtype of `ids`, and what was done.
    """
    room = rules.max_length - 2
    pieces = np.maximum(1, -(-lengths // room))
    line_of = np.repeat(np.arange(lengths.size), pieces)
    piece = np.arange(line_of.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    body = np.minimum(lengths[line_of] - piece * room, room)  # tokens of each piece; the pieces make up all of `ids`
    ends = np.cumsum(body)

    unknown_at = np.flatnonzero(ids == vocabulary.unk_id)
    unknown = np.searchsorted(unknown_at, ends) - np.searchsorted(unknown_at, ends - body)
    short = body + 2 < rules.min_length
    unreadable = ~short & (unknown / (body + 2) >= rules.max_unknown)  # a quotient is exact at the border: 7/100, 0.07
    keep = ~(short | unreadable)

    kept = ids if keep.all() else ids[np.repeat(keep, body)]
    documents = np.bincount(line_of[keep], minlength=lengths.size)
    sequences = Sequences(_frame(kept, body[keep], vocabulary), body[keep] + 2, documents[documents > 0])
    counts = CleaningCounts(
        lines=lengths.size,
        lines_split=int((pieces > 1).sum()),
        pieces_of_split_lines=int(pieces[pieces > 1].sum()),
        dropped_too_short=int(short.sum()),
        dropped_unknown=int(unreadable.sum()),
    )
    return sequences, counts


def _frame(ids: np.ndarray, body: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """[CLS] before and [SEP] behind each run of `body` ids."""
    ends = np.cumsum(body + 2)
    first = ends - (body + 2)
    framed = np.empty(ids.size + 2 * body.size, ids.dtype)
    inner = np.ones(framed.size, bool)
    inner[first] = inner[ends - 1] = False
    framed[inner] = ids
    framed[first], framed[ends - 1] = vocabulary.cls_id, vocabulary.sep_id
    return framed
