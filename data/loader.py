"""The training stream: the sequences of step k, and their masks, as a pure function of (fingerprint, k).

A step is planned alike by every rank from sequence lengths alone; then each rank reads and masks its own parts. The
whole state of the stream is the number of the step.
"""

import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xxhash

from data.batching import MicroBatch, deal, positions_within
from data.indexed import Dataset
from data.masking import Masker, MaskingSettings
from data.order import sequences_at
from data.vocabulary import Vocabulary
from launch.errors import DataError

LAW = 1  # version of the law below: bump it when the same fingerprint would give other sequences or masks
HELD_OUT_SEED = 0

T = TypeVar("T")


@dataclass(frozen=True)
class StreamSettings:
    """All that fixes the stream, beside the dataset."""

    train_batch_size: int
    seed: int
    masking: MaskingSettings


class TrainingStream:
    """Steps 0, 1, 2 ... of `train_batch_size` sequences each, over epoch after epoch of a dataset."""

    def __init__(self, dataset: Dataset, vocabulary: Vocabulary, settings: StreamSettings) -> None:
        self.dataset, self.settings = dataset, settings
        self.counts = matching_counts(dataset, vocabulary)
        self.vocabulary = vocabulary
        self.masker = Masker(settings.masking, vocabulary, self.counts, settings.seed)

    def micro_batches(self, step: int, rank: int = 0, ranks: int = 1, accumulation: int = 1) -> list[MicroBatch]:
        """The `accumulation` parts of a step that this rank trains on.

        Part p = accumulation index x ranks + rank: which sequences a part holds depends on the number of parts
        (ranks x accumulation), never on the rank that it lands on.
        """
        size = self.settings.train_batch_size
        epochs, sequences = sequences_at(step * size, size, len(self.dataset), self.settings.seed)
        lengths = self.dataset.lengths(sequences)
        part_of = deal(lengths, ranks * accumulation)
        tokens, masked = int(lengths.sum()), int(self.masker.draws(epochs, sequences, lengths).sum())
        return [
            self._pack(epochs[part_of == part], sequences[part_of == part], step, part, tokens, masked)
            for part in range(rank, ranks * accumulation, ranks)
        ]

    def _pack(
        self, epochs: np.ndarray, sequences: np.ndarray, step: int, part: int, step_tokens: int, step_masked: int
    ) -> MicroBatch:
        ids, ends = self.dataset.gather(sequences)
        check_ids(ids, self.vocabulary, self.dataset)
        masked, positions, labels = self.masker.mask(ids, ends, epochs, sequences)
        return MicroBatch(
            input_ids=masked,
            positions=positions_within(ends),
            cu_seqlens=ends.astype(np.int32),
            max_seqlen=int(np.diff(ends).max()),
            masked_positions=positions,
            labels=labels,
            step=step,
            part=part,
            step_tokens=step_tokens,
            step_masked=max(step_masked, 1),  # a tiny step may draw none; its sum of losses is 0 then
        )

    def fingerprint(self) -> str:
        """Changes with anything that would change the sequences of some step, or their masks."""
        parts = [
            LAW,
            len(self.dataset),
            self.dataset.fingerprint(),
            dataclasses.asdict(self.settings),
            dataclasses.asdict(self.vocabulary),
            xxhash.xxh3_64_hexdigest(self.counts.tobytes()),
        ]
        return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())


class HeldOut:
    """A dataset once through, in fixed order with fixed masks (drawn with the *training* counts), to measure on."""

    def __init__(self, dataset: Dataset, vocabulary: Vocabulary, masking: MaskingSettings, counts: np.ndarray) -> None:
        self.dataset, self.vocabulary = dataset, vocabulary
        self.masker = Masker(masking, vocabulary, counts, HELD_OUT_SEED)

    def micro_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[MicroBatch]:
        """This rank's share of all sequences, `size` at a time; a rank may have none."""
        for number, first in enumerate(range(0, len(self.dataset), size)):
            if number % ranks == rank:
                yield self._pack(np.arange(first, min(first + size, len(self.dataset))))

    def _pack(self, sequences: np.ndarray) -> MicroBatch:
        ids, ends = self.dataset.gather(sequences)
        check_ids(ids, self.vocabulary, self.dataset)
        masked, positions, labels = self.masker.mask(ids, ends, np.zeros_like(sequences), sequences)
        lengths = np.diff(ends)
        return MicroBatch(
            masked, positions_within(ends), ends.astype(np.int32), int(lengths.max()), positions, labels,
            step=0, part=0, step_tokens=1, step_masked=1,
        )  # fmt: skip


def matching_counts(dataset: Dataset, vocabulary: Vocabulary) -> np.ndarray:
    """The dataset's token counts, over this vocabulary.

    Raises:
        DataError: not counted, or counted over a larger vocabulary.
    """
    counts = dataset.counts()
    if counts.size > vocabulary.size:
        raise DataError(f"{dataset.path}: counts {counts.size:,} token ids, the model knows {vocabulary.size:,}")
    return np.pad(counts, (0, vocabulary.size - counts.size))


def check_ids(ids: np.ndarray, vocabulary: Vocabulary, dataset: Dataset) -> None:
    """Raise DataError for an id outside the vocabulary: on a GPU it would end in a crash that names nothing."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary.size:
        raise DataError(
            f"{dataset.path}: holds token id {ids.max() if ids.max() >= vocabulary.size else ids.min()}, outside the "
            f"vocabulary of {vocabulary.size:,}: damaged (`python -m data.describe {dataset.path} --verify`)"
        )


def prefetch(make: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> Iterator[T]:
    """make(step) for each step, in a background thread: up to `depth` results wait while the next one is computed.

    An error of `make` is raised here, at the step where it happened. Leaving the loop ends the thread.
    """
    assert depth > 0  # a queue of size 0 would be unbounded
    results: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                results.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in steps:
                if not put((make(step), None)):
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
