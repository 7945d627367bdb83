"""Masked language modelling: which tokens of a sequence are predicted, and what the model sees in their place.

The choice is keyed by (seed, epoch, sequence number): a sequence gets the same mask on any rank, in any micro-batch,
and another one in the next epoch. Shares follow Devlin et al. (2019): 15 % of the tokens, 80/10/10; rare tokens are
favoured as XLM does it (Lample and Conneau, 2019): probability proportional to count ^ -0.7.
"""

from dataclasses import dataclass

import numpy as np

from data import keyed
from data.vocabulary import Vocabulary
from launch.args import flag, require

_COUNT, _CHOICE, _ACTION, _WORD = range(4)  # independent streams of random numbers


@dataclass(frozen=True)
class MaskingSettings:
    """Masking of the input."""

    mlm_mask_prop: float = flag(0.15, "share of the tokens to predict (special tokens count, but are never drawn)")
    word_mask: float = flag(0.8, "share of these that become [MASK]")
    word_keep: float = flag(0.1, "share of these that stay as they are")
    word_rand: float = flag(0.1, "share of these that become a random token")
    mlm_smoothing: float = flag(0.7, "rare tokens are favoured: probability ~ count ^ -smoothing; 0: all alike")

    def __post_init__(self) -> None:
        require(0 < self.mlm_mask_prop < 1, "mlm_mask_prop", self.mlm_mask_prop, "must be between 0 and 1")
        for name in ("word_mask", "word_keep", "word_rand"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must be from 0 to 1")
        total = self.word_mask + self.word_keep + self.word_rand
        rule = f"with --word-keep {self.word_keep} and --word-rand {self.word_rand} must add up to 1, not {total:g}"
        require(abs(total - 1) < 1e-9, "word_mask", self.word_mask, rule)
        require(self.mlm_smoothing >= 0, "mlm_smoothing", self.mlm_smoothing, "must not be negative")


class Masker:
    """Draws masks; a pure function of the key of each sequence and its ids."""

    def __init__(self, settings: MaskingSettings, vocabulary: Vocabulary, counts: np.ndarray, seed: int) -> None:
        self.settings, self.vocabulary, self.seed = settings, vocabulary, seed
        weights = np.maximum(counts, 1).astype(np.float64) ** -settings.mlm_smoothing
        weights[[i for i in vocabulary.special_ids if i < weights.size]] = 0
        self.weights = weights

    def draws(self, epochs: np.ndarray, sequences: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Tokens to predict in each sequence: share x length, rounded at random without bias; int64 [sequences]."""
        target = self.settings.mlm_mask_prop * lengths
        chance = keyed.uniform(keyed.mix(sequences, self._keys(epochs, _COUNT)))
        return np.minimum(np.floor(target + chance).astype(np.int64), np.maximum(lengths - 2, 0))

    def mask(
        self, ids: np.ndarray, ends: np.ndarray, epochs: np.ndarray, sequences: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask sequences.

        The n positions of a sequence with the smallest Exp(1)/weight are distributed as n successive weighted draws
        without replacement (Efraimidis and Spirakis, 2006).

        Args:
            ids: int64 [tokens], sequences one after another.
            ends: int64 [sequences + 1], cumulative lengths.
            epochs, sequences: int64 [sequences], the key of each.

        Returns:
            masked: int64 [tokens], what the model sees.
            positions: int64 [masked tokens], ascending, where it predicts.
            labels: int64 [masked tokens], the original ids there.
        """
        lengths = np.diff(ends)
        segment = np.repeat(np.arange(lengths.size), lengths)
        place = np.arange(ids.size) - ends[:-1][segment]
        bits = keyed.mix(place, keyed.mix(sequences, self._keys(epochs, _CHOICE))[segment])
        weights = self.weights[ids]
        with np.errstate(divide="ignore"):  # special tokens: weight 0, infinite, last
            arrival = -np.log(keyed.uniform(bits)) / weights
        rank = np.empty(ids.size, np.int64)
        rank[np.lexsort((arrival, segment))] = place
        chosen = (rank < self.draws(epochs, sequences, lengths)[segment]) & (weights > 0)
        positions = np.flatnonzero(chosen)
        labels = ids[positions]
        masked = ids.copy()
        masked[positions] = self._replace(labels, bits[positions])
        return masked, positions, labels

    def _replace(self, labels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """[MASK], the token itself, or a random one of the whole vocabulary; bits as independent draws per token."""
        action = keyed.uniform(keyed.mix(bits, keyed.key(_ACTION)))
        word = (keyed.uniform(keyed.mix(bits, keyed.key(_WORD))) * self.vocabulary.size).astype(np.int64)
        mask, keep = self.settings.word_mask, self.settings.word_mask + self.settings.word_keep
        return np.where(action < mask, self.vocabulary.mask_id, np.where(action < keep, labels, word))

    def _keys(self, epochs: np.ndarray, stream: int) -> np.ndarray:
        return keyed.mix(epochs, keyed.key(self.seed, stream))
