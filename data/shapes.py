"""Fixed shapes for compiled code: micro-batches are filled up, so that few shapes are ever seen.

Filler forms sequences of its own, after the real ones, and is never counted: whoever computes takes the real tokens.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.batching import MicroBatch, positions_within

_FEWEST, _ROUND = 256, 128  # tokens of a block; a longest sequence's length is rounded up to such


@dataclass(frozen=True)
class Shapes:
    """All shapes that are expected: they differ in the number of tokens alone.

    Attributes:
        tokens: numbers of tokens, filler included.
        sequences: boundaries are filled up with empty sequences to so many.
        longest: tokens of the longest sequence of the data, and of filler.
        pad_id: filler.
    """

    tokens: range
    sequences: int
    longest: int
    pad_id: int

    @classmethod
    def expected(cls, sizes: Iterable[tuple[int, int]], longest: int, pad_id: int, block: int = 0) -> "Shapes":
        """From numbers of tokens and sequences of some micro-batches, with a margin.

        Args:
            block: tokens are filled up to a multiple of it; 0: about a thirty-second of a micro-batch.
        """
        tokens, sequences = np.array(list(sizes)).T
        block = block or max(_FEWEST, 2 ** round(np.log2(tokens.mean() / 32)))
        least, most = int(tokens.min()) // block, -(-int(tokens.max()) // block)
        most_sequences = int(sequences.max() * 1.1) + -(-block // longest) + 1
        return cls(range(max(least, 1) * block, (most + 1) * block + 1, block), most_sequences, longest, pad_id)

    @property
    def max_seqlen(self) -> int:
        """What code that is compiled for a longest sequence takes it to be."""
        return -(-self.longest // _ROUND) * _ROUND

    def fill(self, batch: MicroBatch) -> MicroBatch:
        """The micro-batch in one of the expected shapes; as it is, if none of them can hold it."""
        filler = -batch.tokens % self.tokens.step
        pieces = [min(self.longest, filler - start) for start in range(0, filler, self.longest)]
        empty = self.sequences - (batch.cu_seqlens.size - 1) - len(pieces)
        if batch.tokens + filler not in self.tokens or empty < 0:
            return batch
        ends = np.cumsum([0, *pieces, *[0] * empty])
        return dataclasses.replace(
            batch,
            input_ids=np.concatenate([batch.input_ids, np.full(filler, self.pad_id)]),
            positions=np.concatenate([batch.positions, positions_within(ends)]),
            cu_seqlens=np.concatenate([batch.cu_seqlens, batch.tokens + ends[1:].astype(np.int32)]),
            max_seqlen=self.max_seqlen,
            filler=filler,
            static=True,
        )

    def examples(self) -> list[MicroBatch]:
        """A micro-batch of each shape, to warm up with."""
        return [self.fill(self._example(tokens)) for tokens in self.tokens]

    def _example(self, tokens: int) -> MicroBatch:
        ends = np.array([*range(0, tokens, -(-tokens // self.sequences)), tokens])
        one = np.zeros(1, np.int64)
        return MicroBatch(
            input_ids=np.full(tokens, self.pad_id), positions=positions_within(ends), cu_seqlens=ends.astype(np.int32),
            max_seqlen=self.longest, masked_positions=one, labels=one, step=0, part=0, step_tokens=tokens,
            step_masked=1,
        )  # fmt: skip
