"""data.masking against exact probabilities of successive weighted draws, and figures worked out by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from data.masking import Masker, MaskingSettings
from data.vocabulary import Vocabulary
from launch.errors import ConfigError

SPECIAL = (0, 1, 2, 3, 4)
PAD, UNK, CLS, SEP, MASK = SPECIAL
SIZE = 1_000
VOCABULARY = Vocabulary(SIZE, CLS, SEP, MASK, PAD, UNK, SPECIAL, "")
GOLDEN_POSITIONS = [5, 9, 11, 12, 15, 16, 17, 24, 29]
GOLDEN_MASKED = [104, 607, 110, 111, 114, 115, 116, 48, 4]
COUNTS = (10**6 // (np.arange(SIZE) + 1)).astype(np.int64)


def masker(seed: int = 1, counts: np.ndarray = COUNTS, **settings: float) -> Masker:
    return Masker(MaskingSettings(**settings), VOCABULARY, counts, seed)


def pack(*sequences: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.asarray(s) for s in sequences]), np.cumsum([0] + [len(s) for s in sequences])


def random_sequences(count: int, seed: int = 0, unknown: float = 0.1) -> list[list[int]]:
    """[CLS], 10 to 60 ids, some of them [UNK], [SEP]."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = generator.integers(5, SIZE, generator.integers(10, 61))
        ids[generator.random(ids.size) < unknown] = UNK
        rows.append([CLS, *ids.tolist(), SEP])
    return rows


def zeros(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


# --- how many ---


def test_the_count_is_rounded_at_random_without_bias() -> None:
    """0.15 x 12 = 1.8: 1 or 2, with the second in 80 % of the cases; 0.15 x 20 = 3 always."""
    for length, low, share in ((12, 1, 0.8), (20, 3, 0.0), (35, 5, 0.25), (512, 76, 0.8)):
        draws = masker().draws(zeros(40_000), np.arange(40_000), np.full(40_000, length))
        assert set(np.unique(draws)) <= {low, low + 1}
        assert abs((draws == low + 1).mean() - share) < 4 * 0.5 / np.sqrt(40_000)


def test_the_share_over_all_lengths_is_15_percent() -> None:
    lengths = np.random.default_rng(0).integers(12, 513, 20_000)
    draws = masker().draws(np.arange(20_000) % 3, np.arange(20_000), lengths)
    assert abs(draws.sum() / lengths.sum() - 0.15) < 1e-4
    assert (np.abs(draws - 0.15 * lengths) < 1).all()


def test_never_more_than_the_words_of_a_sequence() -> None:
    lengths = np.asarray([0, 1, 2, 3, 4, 12])
    draws = masker(mlm_mask_prop=0.99).draws(zeros(6), np.arange(6), lengths)
    assert (draws <= [0, 0, 0, 1, 2, 10]).all()
    assert draws[-1] == 10


def test_draws_tell_what_mask_does() -> None:
    """The plan of a step counts masked tokens from lengths alone."""
    sequences = random_sequences(300)
    ids, ends = pack(*sequences)
    numbers, epochs = np.arange(300) * 7, np.arange(300) % 4
    _, positions, _ = masker().mask(ids, ends, epochs, numbers)
    drawn = np.histogram(positions, ends)[0]
    assert drawn.tolist() == masker().draws(epochs, numbers, np.diff(ends)).tolist()


# --- which ---


def test_positions_and_labels() -> None:
    ids, ends = pack(*random_sequences(200))
    before = ids.copy()
    masked, positions, labels = masker().mask(ids, ends, zeros(200), np.arange(200))
    assert np.array_equal(ids, before)  # the input is left alone
    assert (np.diff(positions) > 0).all()
    assert np.array_equal(labels, ids[positions])
    untouched = np.ones(ids.size, bool)
    untouched[positions] = False
    assert np.array_equal(masked[untouched], ids[untouched])
    assert (masked != ids).sum() > 0.8 * positions.size
    assert 0 <= masked.min()
    assert masked.max() < SIZE


@pytest.mark.parametrize("prop", [0.15, 0.9])
def test_special_tokens_are_never_drawn(prop: float) -> None:
    """Also where a sequence has hardly anything else: then fewer are drawn."""
    scarce = [[CLS, *([UNK] * 30), 7, *([MASK, PAD, SEP] * 3), SEP], [CLS, UNK, SEP]]
    ids, ends = pack(*random_sequences(300, unknown=0.5), *scarce)
    _, positions, labels = masker(mlm_mask_prop=prop).mask(ids, ends, zeros(302), np.arange(302))
    assert not np.isin(labels, SPECIAL).any()
    assert np.unique(positions).size == positions.size


def exact_sets(weights: list[float], draws: int) -> dict[tuple[int, ...], float]:
    """Probability of each set of positions under successive draws without replacement: every order, summed."""
    sets: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(weights)), draws):
        chance, left = 1.0, sum(weights)
        for i in order:
            chance *= weights[i] / left
            left -= weights[i]
        sets[tuple(sorted(order))] = sets.get(tuple(sorted(order)), 0.0) + chance
    return sets


@pytest.mark.parametrize("smoothing", [0.7, 0.0, 1.5])
def test_rare_tokens_are_favoured_as_by_successive_weighted_draws(smoothing: float) -> None:
    """2 of 6 words with counts from 0 to 10,000 (0 weighs as 1): the 15 sets against their exact probabilities."""
    occurrences, words, n = [0, 1, 8, 100, 100, 10_000], [10, 11, 12, 13, 14, 15], 60_000
    counts = COUNTS.copy()
    counts[words] = occurrences
    sequence = [CLS, 10, 11, 12, UNK, 13, 14, 15, UNK, SEP]  # 10 tokens: 2 are drawn
    ids, ends = np.tile(sequence, n), np.arange(n + 1) * 10
    drawer = masker(counts=counts, mlm_mask_prop=0.2, mlm_smoothing=smoothing)
    _, positions, labels = drawer.mask(ids, ends, zeros(n), np.arange(n))
    assert (positions.reshape(n, 2) // 10 == np.arange(n)[:, None]).all()
    pairs = (labels - 10).reshape(n, 2)
    exact = exact_sets([max(count, 1) ** -smoothing for count in occurrences], 2)
    statistic = 0.0
    for (a, b), chance in exact.items():
        observed = ((pairs == [a, b]).all(1)).sum()
        statistic += (observed - n * chance) ** 2 / (n * chance)
    assert len(exact) == 15
    assert statistic < 14 + 4 * np.sqrt(28)  # chi-square, 14 degrees of freedom


def test_the_same_word_at_two_places_is_drawn_as_two() -> None:
    n = 20_000
    ids, ends = np.tile([CLS, 9, 9, 9, 9, 9, 9, 9, 9, SEP], n), np.arange(n + 1) * 10
    _, positions, _ = masker(mlm_mask_prop=0.2).mask(ids, ends, zeros(n), np.arange(n))
    cells = np.bincount(positions % 10, minlength=10)
    assert cells[[0, 9]].tolist() == [0, 0]
    assert (np.abs(cells[1:9] - n / 4) < 5 * np.sqrt(n / 4)).all()


# --- what stands there ---


@pytest.mark.parametrize(("mask", "keep", "rand"), [(0.8, 0.1, 0.1), (0.5, 0.2, 0.3), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0),
                                                    (0.0, 0.0, 1.0)])  # fmt: skip
def test_shares_of_mask_keep_and_random(mask: float, keep: float, rand: float) -> None:
    ids, ends = pack(*random_sequences(5_000, unknown=0))
    drawer = masker(word_mask=mask, word_keep=keep, word_rand=rand)
    masked, positions, labels = drawer.mask(ids, ends, zeros(5_000), np.arange(5_000))
    seen, n = masked[positions], positions.size
    expected = (mask + rand / SIZE, keep + rand / SIZE, rand * (SIZE - 2) / SIZE)
    found = ((seen == MASK).mean(), (seen == labels).mean(), ((seen != MASK) & (seen != labels)).mean())
    for share, wanted in zip(found, expected, strict=True):
        assert abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / n)


def test_random_words_are_uniform_and_know_nothing_of_the_choice() -> None:
    """Chi-square over 50 cells of the vocabulary, 49 degrees of freedom; rare labels too are replaced by any word."""
    ids, ends = pack(*random_sequences(8_000, unknown=0))
    drawer = masker(word_mask=0.0, word_keep=0.0, word_rand=1.0)
    masked, positions, labels = drawer.mask(ids, ends, zeros(8_000), np.arange(8_000))
    for rows in (positions, positions[labels > 900], positions[labels < 100]):
        cells = np.bincount(masked[rows] // (SIZE // 50), minlength=50)
        assert abs(((cells - rows.size / 50) ** 2 / (rows.size / 50)).sum() - 49) < 4 * np.sqrt(98)
    assert abs(np.corrcoef(masked[positions], labels)[0, 1]) < 4 / np.sqrt(positions.size)


# --- of what it is a function ---


def alone(drawer: Masker, sequence: list[int], epoch: int, number: int) -> list[list[int]]:
    ids, ends = pack(sequence)
    return [a.tolist() for a in drawer.mask(ids, ends, np.asarray([epoch]), np.asarray([number]))]


def test_a_sequence_is_masked_the_same_in_any_company() -> None:
    rows, drawer = random_sequences(40), masker()
    ids, ends = pack(*rows)
    masked, positions, labels = drawer.mask(ids, ends, np.arange(40) % 3, np.arange(40) * 11)
    for i, row in enumerate(rows):
        mine = (positions >= ends[i]) & (positions < ends[i + 1])
        together = [masked[ends[i] : ends[i + 1]].tolist(), (positions[mine] - ends[i]).tolist(), labels[mine].tolist()]
        assert together == alone(drawer, row, i % 3, i * 11)


def test_masks_differ_by_epoch_sequence_and_seed() -> None:
    (row,) = random_sequences(1, seed=3)
    keys = list(itertools.product((1, 2), range(10), range(10)))
    masks = {tuple(alone(masker(seed), row, epoch, number)[0]) for seed, epoch, number in keys}
    assert len(masks) > 0.98 * len(keys)


def test_golden_mask() -> None:
    """A change here gives every run other masks: bump `LAW` in data.loader with it."""
    sequence = [CLS, *range(100, 130), SEP]
    drawer = masker(seed=42, mlm_mask_prop=0.3, word_mask=0.4, word_keep=0.3, word_rand=0.3)
    masked, positions, labels = alone(drawer, sequence, 5, 123_456_789)
    assert positions == GOLDEN_POSITIONS
    assert labels == [99 + i for i in positions]
    assert [masked[i] for i in positions] == GOLDEN_MASKED


def test_nothing_to_mask() -> None:
    masked, positions, labels = masker().mask(zeros(0), zeros(1), zeros(0), zeros(0))
    assert masked.size == positions.size == labels.size == 0


# --- settings ---


@pytest.mark.parametrize(("changes", "named"), [
    ({"mlm_mask_prop": 0.0}, "--mlm-mask-prop 0.0"), ({"mlm_mask_prop": 1.0}, "--mlm-mask-prop 1.0"),
    ({"mlm_mask_prop": float("nan")}, "--mlm-mask-prop nan"), ({"word_mask": -0.1}, "--word-mask -0.1"),
    ({"word_keep": 1.1}, "--word-keep 1.1"), ({"word_rand": -1.0}, "--word-rand -1.0"),
    ({"word_mask": 0.7}, "--word-mask 0.7: with --word-keep 0.1 and --word-rand 0.1 must add up to 1, not 0.9"),
    ({"mlm_smoothing": -0.1}, "--mlm-smoothing -0.1"), ({"mlm_smoothing": float("nan")}, "--mlm-smoothing nan"),
])  # fmt: skip
def test_settings_that_are_refused(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MaskingSettings(**changes)


def test_published_settings_are_the_default() -> None:
    assert dataclasses.astuple(MaskingSettings()) == (0.15, 0.8, 0.1, 0.1, 0.7)
    MaskingSettings(word_mask=0.7, word_keep=0.2, word_rand=0.1)  # their sum is 0.9999999999999999
