"""How a step's sequences are cut into micro-batches of nearly the same number of tokens, and packed without padding."""

import heapq
from dataclasses import dataclass

import numpy as np

from data import compiled


@dataclass(frozen=True)
class MicroBatch:
    """One part of a step: packed sequences, what to predict, and the step's global counts that weight its losses.

    Attributes:
        input_ids: int64 [tokens], masked, sequences one after another.
        positions: int64 [tokens], restarting at 0 in each sequence.
        cu_seqlens: int32 [sequences + 1], cumulative lengths.
        max_seqlen: the longest sequence.
        masked_positions: int64 [masked], where the model predicts.
        labels: int64 [masked], the original ids there.
        step: number of the step, from 0.
        part: number of the part within the step, from 0 to ranks x accumulation - 1.
        step_tokens: real tokens of the whole step, over all parts.
        step_masked: tokens that the whole step predicts, over all parts.
        filler: tokens at the end that are not real (data.shapes).
        static: whether this is one of the shapes that code was compiled for.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    cu_seqlens: np.ndarray
    max_seqlen: int
    masked_positions: np.ndarray
    labels: np.ndarray
    step: int
    part: int
    step_tokens: int
    step_masked: int
    filler: int = 0
    static: bool = False

    @property
    def tokens(self) -> int:
        """Real tokens of this part."""
        return self.input_ids.size - self.filler


def deal(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Part of each sequence: the longest first, each to the part with the fewest tokens so far (Graham, 1969).

    Every part gets a sequence if there are at least as many sequences as parts.

    Args:
        lengths: int64 [sequences].

    Returns:
        int64 [sequences].
    """
    order = np.argsort(-lengths, kind="stable")
    operations = compiled.operations("stream")
    if not operations:
        return _deal_in_python(lengths, order, parts)
    part_of = np.empty(lengths.size, np.int64)
    operations("deal", lengths, order, lengths.size, parts, part_of)
    return part_of


def _deal_in_python(lengths: np.ndarray, order: np.ndarray, parts: int) -> np.ndarray:
    heap = [(0, part) for part in range(parts)]
    part_of = np.empty(lengths.size, np.int64)
    for i in order.tolist():
        tokens, part = heap[0]
        part_of[i] = part
        heapq.heapreplace(heap, (tokens + int(lengths[i]), part))
    return part_of


def positions_within(ends: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... restarting in each sequence: int64 [tokens], from cumulative lengths [sequences + 1]."""
    operations = compiled.operations("stream")
    if not operations:
        return np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
    positions = np.empty(ends[-1], np.int64)
    operations("positions", ends, ends.size - 1, positions)
    return positions
