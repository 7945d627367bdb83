"""The training stream: the sequences of step k, and their masks, as a pure function of (fingerprint, k).

A step is planned alike by every rank from sequence lengths alone; then each rank reads and masks its own parts. The
whole state of the stream is the number of the step.
"""

import contextlib
import dataclasses
import json
import queue
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from data import keyed
from data.batching import MicroBatch, deal, positions_within
from data.corpora import Corpora, Rows
from data.gather import Extents
from data.indexed import Dataset
from data.masking import Masker, MaskingSettings
from data.order import OrderSettings
from data.shapes import Shapes
from data.vocabulary import Vocabulary
from launch.errors import DataError, DilbertError

LAW = 2  # version of the law below: bump it when the same fingerprint would give other sequences or masks
HELD_OUT_SEED = 0
_SAMPLED = 64  # steps whose micro-batches are looked at for their shapes
_ORDER, _MASKS = range(2)  # independent streams of random numbers

T = TypeVar("T")


@dataclass(frozen=True)
class StreamSettings:
    """All that fixes the stream, beside the corpora."""

    train_batch_size: int
    seed: int
    masking: MaskingSettings
    order: OrderSettings = OrderSettings()


class TrainingStream:
    """Steps 0, 1, 2 ... of `train_batch_size` sequences each, over epoch after epoch of the corpora."""

    def __init__(self, corpora: Corpora, vocabulary: Vocabulary, settings: StreamSettings) -> None:
        self.corpora, self.vocabulary, self.settings = corpora, vocabulary, settings
        self.counts = corpora.counts(vocabulary)
        self.packer = Packer(corpora, Masker(settings.masking, vocabulary, self.counts), settings.seed)
        self.order_keys = [keyed.key(settings.seed, _ORDER, number) for number in range(len(corpora.datasets))]

    def micro_batches(
        self, step: int, rank: int = 0, ranks: int = 1, accumulation: int = 1, shapes: Shapes | None = None
    ) -> list[MicroBatch]:
        """The `accumulation` parts of a step that this rank trains on.

        Part p = accumulation index x ranks + rank: which sequences a part holds depends on the number of parts
        (ranks x accumulation), never on the rank that it lands on.

        Args:
            shapes: parts are filled up to them.

        Raises:
            DataError: damaged data, or whatever else keeps this rank from its data, with step and rank.
        """
        with failures_named(f"step {step}, rank {rank}"):
            plan = self.packer.plan(self.rows(step))
            part_of = deal(plan.lengths, ranks * accumulation)
            total = plan.total(step)
            mine = range(rank, ranks * accumulation, ranks)
            made = [self.packer.pack(plan[part_of == part], part, total) for part in mine]
            return [shapes.fill(batch) for batch in made] if shapes else made

    def shapes(self, steps: range, parts: int, block: int = 0) -> Shapes:
        """Shapes that micro-batches of these steps are filled up to, from some of the steps.

        Args:
            parts: of a step: ranks x accumulation.
            block: as for `Shapes.expected`.
        """
        longest = max(dataset.longest for dataset in self.corpora.datasets)
        return Shapes.expected(list(self._sizes(steps, parts)), longest, self.vocabulary.pad_id, block)

    def largest(self, steps: range, parts: int) -> int:
        """Tokens of the largest micro-batch of some of these steps; 0: there are no steps.

        Args:
            parts: of a step: ranks x accumulation.
        """
        return max((tokens for tokens, _ in self._sizes(steps, parts)), default=0)

    def _sizes(self, steps: range, parts: int) -> Iterator[tuple[int, int]]:
        """Tokens and sequences of each micro-batch of a sample of steps."""
        for step in steps[:: max(1, len(steps) // _SAMPLED)]:
            lengths = self.packer.plan(self.rows(step)).lengths
            part_of = deal(lengths, parts)
            tokens = np.bincount(part_of, lengths, parts).astype(int)
            yield from zip(tokens.tolist(), np.bincount(part_of, minlength=parts).tolist(), strict=True)

    def rows(self, step: int) -> Rows:
        """The sequences of a step."""
        size = self.settings.train_batch_size
        positions = np.arange(step * size, (step + 1) * size)
        return self.corpora.rows(positions, self.order_keys, self.settings.order)

    def numbers(self, step: int) -> dict[str, list[int]]:
        """The sequences of a step by their numbers, and those of their corpora and epochs."""
        return {name: values.tolist() for name, values in vars(self.rows(step)).items()}

    def unigram_entropy(self) -> float:
        """See `Masker.unigram_entropy`."""
        return self.packer.masker.unigram_entropy(self.counts)

    def fingerprint(self) -> str:
        """Changes with anything that would change the sequences of some step, or their masks."""
        parts = [
            LAW,
            self.corpora.identity(),
            dataclasses.asdict(self.settings),
            dataclasses.asdict(self.vocabulary),
            xxhash.xxh3_64_hexdigest(self.counts.tobytes()),
        ]
        return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())


class HeldOut:
    """A dataset once through, in fixed order with fixed masks (drawn with the *training* counts), to measure on."""

    def __init__(self, dataset: Dataset, vocabulary: Vocabulary, masking: MaskingSettings, counts: np.ndarray) -> None:
        self.corpora = Corpora.of(dataset)
        self.packer = Packer(self.corpora, Masker(masking, vocabulary, counts), HELD_OUT_SEED)
        self.size = len(dataset)

    def micro_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[MicroBatch]:
        """This rank's share of all sequences, `size` at a time; a rank may have none."""
        for number, first in enumerate(range(0, self.size, size)):
            if number % ranks == rank:
                sequences = np.arange(first, min(first + size, self.size))
                rows = Rows(np.zeros_like(sequences), np.zeros_like(sequences), sequences)
                yield self.packer.pack(self.packer.plan(rows), part=0, total=Total(0, 1, 1))


@dataclass(frozen=True)
class Total:
    """A step, and its tokens over all parts: real ones, and those to predict."""

    step: int
    tokens: int
    masked: int


@dataclass(frozen=True)
class Plan:
    """What is known of sequences before they are read.

    Attributes:
        extents: where they are.
        keys: uint64 [n], random bits of each.
        draws: int64 [n], tokens to predict in each.
    """

    extents: Extents
    keys: np.ndarray
    draws: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Plan":
        return Plan(self.extents[chosen], self.keys[chosen], self.draws[chosen])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence: int64 [n]."""
        return self.extents.lengths

    def total(self, step: int) -> Total:
        """Over all sequences. A tiny step may draw none; its sum of losses is 0 then, whatever divides it."""
        return Total(step, int(self.lengths.sum()), max(int(self.draws.sum()), 1))


class Packer:
    """Reads, masks and packs sequences."""

    def __init__(self, corpora: Corpora, masker: Masker, seed: int) -> None:
        self.corpora, self.masker, self.key = corpora, masker, keyed.key(seed, _MASKS)

    def plan(self, rows: Rows) -> Plan:
        """Of sequences in the order of the stream."""
        extents, keys = self.corpora.extents(rows), rows.keys(self.key)
        return Plan(extents, keys, self.masker.draws(keys, extents.lengths))

    def pack(self, plan: Plan, part: int, total: Total) -> MicroBatch:
        """The micro-batch of some of them."""
        ids, ends = self.corpora.read(plan.extents, self.masker.vocabulary)
        masked, positions, labels = self.masker.mask(ids, ends, plan.keys, plan.draws)
        return MicroBatch(
            input_ids=masked,
            positions=positions_within(ends),
            cu_seqlens=ends.astype(np.int32),
            max_seqlen=int(plan.lengths.max()),
            masked_positions=positions,
            labels=labels,
            step=total.step,
            part=part,
            step_tokens=total.tokens,
            step_masked=total.masked,
        )


@contextlib.contextmanager
def failures_named(place: str) -> Iterator[None]:
    """What fails inside, and is no error with an exit code of its own, becomes one of data that says where and why."""
    try:
        yield
    except DilbertError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({Path(line.filename).name}, line {line.lineno})"
        raise DataError(f"the data of {place} can't be had: {why}") from error


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
