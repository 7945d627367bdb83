"""Which of several corpora stands at a position of the endless stream, so that each has its share of the sequences.

The stream repeats a period of 65,536 positions. A corpus with q of them has its j-th turn due after (j + 1/2) / q of
the period, and turns are taken in the order in which they are due: shares are exact over a period, and within it no
corpus is more than a turn or two ahead or behind. Which corpus a position belongs to, and how many positions before it
did, are looked up: constant time at any step, and no state.
"""

import math
from collections.abc import Sequence

import numpy as np

from launch.errors import ConfigError

PERIOD = 1 << 16


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Positions of a period for each corpus, in proportion to weights; the rest goes to the largest remainders.

    Raises:
        ConfigError: a share so small that a period has no position for it.
    """
    total = math.fsum(weights)
    shares = np.asarray(weights, np.float64) / total * PERIOD
    whole = np.floor(shares).astype(np.int64)
    most = np.argsort(whole - shares, kind="stable")[: PERIOD - int(whole.sum())]
    whole[most] += 1
    if not whole.all():
        small = weights[int(np.argmin(whole))]
        raise ConfigError(f"--data: the weight {small:g} of {total:g} is below 1 sequence in {PERIOD:,}")
    return tuple(whole.tolist())


class Schedule:
    """The corpora's turns. For one corpus every position is its own."""

    def __init__(self, quotas: Sequence[int]) -> None:
        """
        Args:
            quotas: positions of a period for each corpus; they add up to PERIOD.
        """
        assert sum(quotas) == PERIOD
        self.quotas = np.asarray(quotas, np.int64)
        corpora = np.repeat(np.arange(len(quotas)), quotas)
        turns = np.concatenate([np.arange(quota) for quota in quotas])
        due = ((2 * turns + 1) << 40) // self.quotas[corpora]  # integers: the same on every machine
        self.corpora = corpora[np.argsort(due, kind="stable")]
        self.turns = np.empty(PERIOD, np.int64)
        for corpus in range(len(quotas)):
            mine = self.corpora == corpus
            self.turns[mine] = np.arange(quotas[corpus])

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The corpus of each position, and how many positions before it belong to that corpus: int64 [n] each."""
        periods, within = np.divmod(positions, PERIOD)
        corpora = self.corpora[within]
        return corpora, periods * self.quotas[corpora] + self.turns[within]

    def before(self, position: int) -> np.ndarray:
        """How many positions before this one belong to each corpus: int64 [corpora]."""
        periods, within = divmod(position, PERIOD)
        return periods * self.quotas + np.bincount(self.corpora[:within], minlength=self.quotas.size)
