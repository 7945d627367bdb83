"""Masked language modelling: which tokens of a sequence are predicted, and what the model sees in their place.

The choice is keyed by (seed, corpus, epoch, sequence number): a sequence gets the same mask on any rank, in any
micro-batch, and another one in the next epoch. Shares follow Devlin et al. (2019): 15 % of the tokens, 80/10/10; rare
tokens are favoured as XLM does it (Lample and Conneau, 2019): probability proportional to count ^ -0.7.
"""

from dataclasses import dataclass

import numpy as np

from data import compiled, keyed
from data.vocabulary import Vocabulary
from launch.args import flag, require

_COUNT, _CHOICE, _ACTION, _WORD = range(4)  # independent streams of random numbers
_SCALE_BITS = 20


@dataclass(frozen=True)
class MaskingSettings:
    """Masking of the input."""

    mlm_mask_prop: float = flag(
        0.15, "share of the tokens to predict (special tokens count, but are never drawn)", "SHARE"
    )
    word_mask: float = flag(0.8, "share of these that become [MASK]", "SHARE")
    word_keep: float = flag(0.1, "share of these that stay as they are", "SHARE")
    word_rand: float = flag(0.1, "share of these that become a random token", "SHARE")
    mlm_smoothing: float = flag(
        0.7, "rare tokens are favoured: probability ~ count ^ -smoothing; 0: all alike", "EXPONENT"
    )

    def __post_init__(self) -> None:
        require(0 < self.mlm_mask_prop < 1, "mlm_mask_prop", self.mlm_mask_prop, "must be between 0 and 1")
        for name in ("word_mask", "word_keep", "word_rand"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must be from 0 to 1")
        total = self.word_mask + self.word_keep + self.word_rand
        rule = f"with --word-keep {self.word_keep} and --word-rand {self.word_rand} must add up to 1, not {total:g}"
        require(abs(total - 1) < 1e-9, "word_mask", self.word_mask, rule)
        require(self.mlm_smoothing >= 0, "mlm_smoothing", self.mlm_smoothing, "must not be negative")


class Masker:
    """Draws masks; a pure function of the key of each sequence and its ids.

    Attributes:
        scales: float64 [vocabulary], mean of a token's exponential random number: the smallest are drawn. 1 / weight.
    """

    def __init__(self, settings: MaskingSettings, vocabulary: Vocabulary, counts: np.ndarray) -> None:
        self.settings, self.vocabulary = settings, vocabulary
        self.scales = _rounded(np.maximum(counts, 1).astype(np.float64) ** settings.mlm_smoothing)
        self.scales[[i for i in vocabulary.special_ids if i < counts.size]] = np.inf
        keep = settings.word_mask + settings.word_keep
        streams = _CHOICE, keyed.key(_ACTION), keyed.key(_WORD)
        self.rule = np.array([(*streams, settings.word_mask, keep, vocabulary.mask_id, vocabulary.size)], _RULE)

    def unigram_entropy(self, counts: np.ndarray) -> float:
        """What a model would reach that has learnt frequencies alone: the entropy of masked tokens, in nats.

        Each token is taken to be masked in proportion to count x weight, wherever it stands.
        """
        shares = counts / self.scales
        shares = shares[shares > 0] / shares.sum()
        return float(-(shares * np.log(shares)).sum())

    def draws(self, keys: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Tokens to predict in each sequence: share x length, rounded at random without bias.

        Args:
            keys: uint64 [sequences], random bits of each.
            lengths: int64 [sequences], tokens of each.

        Returns:
            int64 [sequences].
        """
        chance = keyed.uniform(keyed.mix(_COUNT, keys))
        target = np.floor(self.settings.mlm_mask_prop * lengths + chance).astype(np.int64)
        return np.minimum(target, np.maximum(lengths - 2, 0))

    def mask(
        self, ids: np.ndarray, ends: np.ndarray, keys: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask sequences.

        The n positions of a sequence with the smallest Exp(1)/weight are distributed as n successive weighted draws
        without replacement (Efraimidis and Spirakis, 2006). Of equal ones the first is taken.

        Args:
            ids: int64 [tokens], sequences one after another; each below the vocabulary's size.
            ends: int64 [sequences + 1], cumulative lengths.
            keys: uint64 [sequences], random bits of each.
            draws: int64 [sequences], tokens to predict in each; fewer where there are not so many that may be.

        Returns:
            masked: int64 [tokens], what the model sees.
            positions: int64 [masked tokens], ascending, where it predicts.
            labels: int64 [masked tokens], the original ids there.
        """
        operations = compiled.operations("stream")
        if not operations:
            return self._mask_in_numpy(ids, ends, keys, draws)
        masked = ids.copy()
        positions, labels = np.empty((2, int(draws.sum()) + 1), np.int64)
        found = operations(
            "mask", ids, ends, draws.size, keys, draws, self.scales, self.rule, masked, positions, labels
        )
        return masked, positions[:found], labels[:found]

    def _mask_in_numpy(
        self, ids: np.ndarray, ends: np.ndarray, keys: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = np.diff(ends)
        segment = np.repeat(np.arange(lengths.size), lengths)
        place = np.arange(ids.size) - ends[:-1][segment]
        bits = keyed.mix(place, keyed.mix(_CHOICE, keys)[segment])
        arrival = exponential(bits) * self.scales[ids]
        rank = np.empty(ids.size, np.int64)
        rank[np.lexsort((arrival, segment))] = place
        positions = np.flatnonzero((rank < draws[segment]) & (arrival < np.inf))
        labels = ids[positions]
        masked = ids.copy()
        masked[positions] = self._replace(labels, bits[positions])
        return masked, positions, labels

    def _replace(self, labels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """[MASK], the token itself, or a random one of the whole vocabulary; bits as independent draws per token."""
        (rule,) = self.rule
        action = keyed.uniform(keyed.mix(bits, rule["action_key"]))
        word = (keyed.uniform(keyed.mix(bits, rule["word_key"])) * rule["words"]).astype(np.int64)
        return np.where(action < rule["mask"], rule["mask_id"], np.where(action < rule["keep"], labels, word))


# As in stream.cpp.
_RULE = np.dtype(
    {
        "names": ["choice", "action_key", "word_key", "mask", "keep", "mask_id", "words"],
        "formats": ["u8", "u8", "u8", "f8", "f8", "i8", "i8"],
    }
)


def exponential(bits: np.ndarray) -> np.ndarray:
    """Exp(1) variates, float64 and above 0, from uint64 of uniform bits: -log(keyed.uniform(bits)), to 2e-9 of it.

    Of operations that IEEE 754 fixes to the last bit, as no library's logarithm is: so masks are the same everywhere.
    log(m) is 2 artanh((m - 1) / (m + 1)), five terms of its series for m from sqrt(1/2) to sqrt(2).
    """
    m, e = np.frexp(keyed.uniform(bits))
    low = m < 0.7071067811865476
    m, e = np.where(low, m + m, m), e - low
    s = (m - 1) / (m + 1)
    z = s * s
    series = (((z * (1 / 9) + 1 / 7) * z + 1 / 5) * z + 1 / 3) * z + 1
    return -(e * 0.6931471805599453 + (s + s) * series)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To 20 bits: a power's last bits differ from machine to machine."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS)
