"""The datasets that a run trains on, as one: `--data A`, or several with their shares, `--data A:0.7 B:0.3`.

Each corpus has a position and an epoch of its own, computed from the position of the stream.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from data import keyed
from data.gather import Extents, Reader
from data.indexed import Dataset
from data.order import OrderSettings, sequences_at
from data.shares import PERIOD, Schedule, quotas
from data.vocabulary import Vocabulary
from launch.errors import ConfigError, DataError


@dataclass(frozen=True)
class Rows:
    """Sequences as the stream names them.

    Attributes:
        corpora: int64 [n], number of the corpus of each.
        epochs: int64 [n], how often its corpus has been gone through before.
        sequences: int64 [n], number within its corpus.
    """

    corpora: np.ndarray
    epochs: np.ndarray
    sequences: np.ndarray

    def __getitem__(self, chosen: Any) -> "Rows":
        return Rows(self.corpora[chosen], self.epochs[chosen], self.sequences[chosen])

    def keys(self, key: np.uint64) -> np.ndarray:
        """Random bits of each, under a key: uint64 [n]."""
        return keyed.keys(key, self.corpora, self.epochs, self.sequences)


@dataclass(frozen=True)
class Corpora:
    """Datasets, and whose turn it is at a position of the stream."""

    datasets: tuple[Dataset, ...]
    schedule: Schedule

    @classmethod
    def open(cls, words: Sequence[str]) -> Self:
        """Open what `--data` names: `PATH`, or several times `PATH:WEIGHT`.

        Raises:
            ConfigError: a weight that is missing or not positive, or a path given twice.
            DataError: what `Dataset.open` finds.
        """
        paths, weights = zip(*map(_split, words), strict=True)
        places = [path.resolve() for path in paths]
        for path, place in zip(paths, places, strict=True):
            if places.count(place) > 1:
                raise ConfigError(f"--data {path}: given twice")
        for word, weight in zip(words, weights, strict=True):
            if weight is None and len(words) > 1:
                raise ConfigError(
                    f"--data {word}: several corpora need weights, as in --data {paths[0]}:0.7 {paths[1]}:0.3; or make "
                    "them one dataset, in which each sequence comes once an epoch: `python -m data.merge`"
                )
            if weight is not None and not 0 < weight < 1e12:
                raise ConfigError(f"--data {word}: the weight must be positive, and a number")
        return cls(tuple(map(Dataset.open, paths)), Schedule(quotas([weight or 1.0 for weight in weights])))

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """One dataset alone."""
        return cls((dataset,), Schedule((PERIOD,)))

    @functools.cached_property
    def reader(self) -> Reader:
        """Reads sequences of all corpora, which it numbers one corpus after another."""
        return Reader([shard for dataset in self.datasets for shard in dataset.shards])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The reader's number of each corpus's first sequence, and behind the last: int64 [corpora + 1]."""
        return np.cumsum([0, *map(len, self.datasets)])

    def rows(self, positions: np.ndarray, seed_keys: Sequence[np.uint64], order: OrderSettings) -> Rows:
        """The sequences at positions of the stream.

        Args:
            positions: int64 [n].
            seed_keys: key of each corpus's order.
        """
        corpora, places = self.schedule.at(positions)
        epochs, sequences = np.empty((2, positions.size), np.int64)
        for number, (dataset, key) in enumerate(zip(self.datasets, seed_keys, strict=True)):
            mine = corpora == number
            epochs[mine], sequences[mine] = sequences_at(places[mine], len(dataset), key, order)
        return Rows(corpora, epochs, sequences)

    def extents(self, rows: Rows) -> Extents:
        """Where sequences are, and their lengths.

        Raises:
            DataError: a damaged index.
        """
        return self.reader.extents(self.starts[rows.corpora] + rows.sequences)

    def read(self, extents: Extents, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """Read sequences.

        Returns:
            ids: int64 [tokens], one sequence after another.
            ends: int64 [n + 1], cumulative lengths, 0 first.

        Raises:
            DataError: an id outside the vocabulary; on a GPU it would end in a crash that names nothing.
        """
        ids, ends = self.reader.ids(extents)
        if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary.size:
            wrong = int(np.argmax((ids < 0) | (ids >= vocabulary.size)))
            shard = extents.shard_of[np.searchsorted(ends, wrong, "right") - 1]
            path = next(dataset.path for dataset in self.datasets if self.reader.shards[shard] in dataset.shards)
            raise DataError(
                f"{path}: holds token id {ids[wrong]}, outside the vocabulary of {vocabulary.size:,}: damaged "
                f"(`python -m data.describe {path} --verify`)"
            )
        return ids, ends

    def counts(self, vocabulary: Vocabulary) -> np.ndarray:
        """Occurrences of each token id in as many sequences as all corpora hold, by the corpora's shares.

        Of one corpus, or where shares are in proportion to sizes, that is the sum of the counts. int64 [vocabulary].
        """
        counts = [matching_counts(dataset, vocabulary) for dataset in self.datasets]
        sizes = np.diff(self.starts)
        scales = self.schedule.quotas / PERIOD * (sizes.sum() / sizes)
        return np.rint(sum(scale * own for scale, own in zip(scales, counts, strict=True))).astype(np.int64)

    def identity(self) -> list[Any]:
        """All that fixes which sequences the stream holds, for its fingerprint."""
        sizes = [(len(dataset), dataset.fingerprint()) for dataset in self.datasets]
        return [sizes, self.schedule.quotas.tolist()]

    # What the user is told.

    @property
    def epoch_size(self) -> int | None:
        """Sequences of an epoch; None where several corpora have one each."""
        return len(self.datasets[0]) if len(self.datasets) == 1 else None

    @property
    def names(self) -> list[str]:
        """Of the corpora: the last part of each path, or all of it where that would leave two alike."""
        short = [dataset.path.name for dataset in self.datasets]
        return short if len(set(short)) == len(short) else [str(dataset.path) for dataset in self.datasets]

    def epochs(self, position: int) -> dict[str, float]:
        """Passes over each corpus before a position of the stream, named as in the log."""
        passes = self.schedule.before(position) / np.diff(self.starts)
        names = ["epoch"] if len(self.datasets) == 1 else [f"epoch_{name}" for name in self.names]
        return dict(zip(names, passes.tolist(), strict=True))

    def summary(self, positions: int) -> str:
        """What so many positions of the stream are, in words."""
        passes = self.epochs(positions).values()
        parts = [f"{epochs:.2f} epochs of {len(dataset):,} sequences"
                 for epochs, dataset in zip(passes, self.datasets, strict=True)]  # fmt: skip
        if len(parts) == 1:
            return parts[0]
        named = zip(self.names, self.schedule.quotas / PERIOD, parts, strict=True)
        return "; ".join(f"{name} {share:.2%}, {part}" for name, share, part in named)

    def facts(self) -> list[dict[str, Any]]:
        """What `environment.json` records of each corpus."""
        shares = (self.schedule.quotas / PERIOD).tolist()
        return [
            {"path": str(dataset.path), "share": share, "sequences": len(dataset), "tokens": dataset.tokens}
            for dataset, share in zip(self.datasets, shares, strict=True)
        ]


def _split(word: str) -> tuple[Path, float | None]:
    """`PATH:WEIGHT`, or `PATH` alone; what exists as it stands is a path, whatever it ends with."""
    path, colon, text = word.rpartition(":")
    if colon and not Path(word).exists() and not Path(f"{word}.idx").exists():
        try:
            return Path(path), float(text)
        except ValueError:
            pass
    return Path(word), None


def matching_counts(dataset: Dataset, vocabulary: Vocabulary) -> np.ndarray:
    """The dataset's token counts, over this vocabulary.

    Raises:
        DataError: not counted, or counted over a larger vocabulary.
    """
    counts = dataset.counts()
    if counts.size > vocabulary.size:
        raise DataError(f"{dataset.path}: counts {counts.size:,} token ids, the model knows {vocabulary.size:,}")
    return np.pad(counts, (0, vocabulary.size - counts.size))
