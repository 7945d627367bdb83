"""The batches of a task: those of training as a pure function of (fingerprint, step), those of evaluation in order."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from data import keyed
from data.batching import deal, positions_within
from data.order import sequences_at
from data.tasks.task import Features

_SAMPLED = 64  # steps
LAW = 1  # bump it when the same fingerprint would give other inputs in some step


@dataclass(frozen=True)
class TaskBatch:
    """One part of a step: packed inputs and their labels.

    Attributes:
        input_ids: int64 [tokens], inputs one after another.
        token_types: int64 [tokens].
        positions: int64 [tokens], restarting at 0 in each input.
        cu_seqlens: int32 [inputs + 1], cumulative lengths.
        max_seqlen: the longest input.
        labels: as in `Features`, of these inputs.
        step: number of the step, from 0.
        part: number of the part within the step, from 0 to ranks x accumulation - 1.
        step_examples: inputs of the whole step, over all parts.
        filler, static: as in `data.batching.MicroBatch`; there is none, and none is.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    positions: np.ndarray
    cu_seqlens: np.ndarray
    max_seqlen: int
    labels: np.ndarray
    step: int
    part: int
    step_examples: int
    filler: int = 0
    static: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of this part."""
        return self.input_ids.size


class TaskStream:
    """Steps 0, 1, 2 ... of `batch` inputs each, over epoch after epoch."""

    def __init__(self, features: Features, batch: int, seed: int, identity: str) -> None:
        """
        Args:
            identity: names what the features were made from.
        """
        self.features, self.batch, self.seed, self.identity = features, batch, seed, identity

    @property
    def epoch_size(self) -> int:
        """Inputs of an epoch."""
        return len(self.features)

    def micro_batches(self, step: int, rank: int = 0, ranks: int = 1, accumulation: int = 1) -> list[TaskBatch]:
        """The `accumulation` parts of a step that this rank trains on.

        Part p = accumulation index x ranks + rank: which inputs a part holds depends on the number of parts, never on
        the rank that it lands on.
        """
        parts = ranks * accumulation
        assert parts <= self.batch, "the DeepSpeed configuration has at least one input for each part"
        _, numbers = self._at(step)
        part_of = deal(self.features.lengths[numbers], parts)
        return [
            _pack(self.features, numbers[part_of == part], step, part, self.batch) for part in range(rank, parts, ranks)
        ]

    def largest(self, steps: range, parts: int) -> int:
        """Tokens of the largest micro-batch of some of these steps; 0: there are no steps.

        Args:
            parts: of a step: ranks x accumulation.
        """
        sizes = (self.features.lengths[self._at(step)[1]] for step in steps[:: max(1, len(steps) // _SAMPLED)])
        return max((int(np.bincount(deal(lengths, parts), lengths).max()) for lengths in sizes), default=0)

    def _at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and number of each input of a step."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        return sequences_at(places, len(self.features), keyed.key(self.seed))

    def numbers(self, step: int) -> dict[str, list[int]]:
        """The inputs of a step by their numbers, and their epochs."""
        epochs, features = self._at(step)
        return {"epochs": epochs.tolist(), "features": features.tolist()}

    def fingerprint(self) -> str:
        """Changes with anything that would change the inputs of some step, or their labels."""
        parts = [LAW, self.identity, self.batch, self.seed, *self.features.hashes()]
        return xxhash.xxh3_64_hexdigest(json.dumps(parts).encode())


def in_order(features: Features, size: int, rank: int, ranks: int) -> Iterator[tuple[np.ndarray, TaskBatch]]:
    """This rank's share of all inputs, once through, `size` at a time, and their numbers (int64 [inputs]).

    A rank may have none.
    """
    for number, first in enumerate(range(0, len(features), size)):
        if number % ranks == rank:
            numbers = np.arange(first, min(first + size, len(features)))
            yield numbers, _pack(features, numbers, step=0, part=0, step_examples=numbers.size)


def _pack(features: Features, numbers: np.ndarray, step: int, part: int, step_examples: int) -> TaskBatch:
    """Some of the inputs as a micro-batch."""
    lengths = features.lengths[numbers]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    positions = positions_within(ends)
    tokens = np.repeat(features.ends[numbers], lengths) + positions
    return TaskBatch(
        input_ids=features.ids[tokens].astype(np.int64),
        token_types=features.types[tokens].astype(np.int64),
        positions=positions,
        cu_seqlens=ends.astype(np.int32),
        max_seqlen=int(lengths.max()),
        labels=features.labels[numbers],
        step=step,
        part=part,
        step_examples=step_examples,
    )
