"""data.masking against exact probabilities of successive weighted draws, and figures worked out by hand. Both forms."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import keyed
from data.masking import Masker, MaskingSettings, exponential
from data.vocabulary import Vocabulary
from launch.errors import ConfigError

pytestmark = pytest.mark.usefixtures("form")

SPECIAL = (0, 1, 2, 3, 4)
PAD, UNK, CLS, SEP, MASK = SPECIAL
SIZE = 1_000
VOCABULARY = Vocabulary(SIZE, CLS, SEP, MASK, PAD, UNK, SPECIAL, "")
GOLDEN_POSITIONS = [1, 2, 5, 8, 15, 18, 19, 23, 24, 25]
GOLDEN_MASKED = [441, 4, 4, 458, 838, 4, 118, 122, 123, 4]
COUNTS = (10**6 // (np.arange(SIZE) + 1)).astype(np.int64)


Masked = tuple[np.ndarray, np.ndarray, np.ndarray]


def masker(counts: np.ndarray = COUNTS, **settings: float) -> Masker:
    return Masker(MaskingSettings(**settings), VOCABULARY, counts)


def keys(numbers: np.ndarray | int, epochs: np.ndarray | int = 0, seed: int = 1) -> np.ndarray:
    """As the stream makes them; an integer stands for all sequences from 0 on."""
    numbers = np.arange(numbers) if isinstance(numbers, int) else numbers
    return keyed.keys(keyed.key(seed), epochs + np.zeros_like(numbers), numbers)


def draw(drawer: Masker, ids: np.ndarray, ends: np.ndarray, row_keys: np.ndarray) -> Masked:
    return drawer.mask(ids, ends, row_keys, drawer.draws(row_keys, np.diff(ends)))


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


# --- how many ---


def test_the_count_is_rounded_at_random_without_bias() -> None:
    """0.15 x 12 = 1.8: 1 or 2, with the second in 80 % of the cases; 0.15 x 20 = 3 always."""
    for length, low, share in ((12, 1, 0.8), (20, 3, 0.0), (35, 5, 0.25), (512, 76, 0.8)):
        draws = masker().draws(keys(40_000), np.full(40_000, length))
        assert set(np.unique(draws)) <= {low, low + 1}
        assert abs((draws == low + 1).mean() - share) < 4 * 0.5 / np.sqrt(40_000)


def test_the_share_over_all_lengths_is_15_percent() -> None:
    lengths = np.random.default_rng(0).integers(12, 513, 20_000)
    draws = masker().draws(keys(20_000), lengths)
    assert abs(draws.sum() / lengths.sum() - 0.15) < 1e-4
    assert (np.abs(draws - 0.15 * lengths) < 1).all()


def test_never_more_than_the_words_of_a_sequence() -> None:
    lengths = np.asarray([0, 1, 2, 3, 4, 12])
    draws = masker(mlm_mask_prop=0.99).draws(keys(6), lengths)
    assert (draws <= [0, 0, 0, 1, 2, 10]).all()
    assert draws[-1] == 10


def test_mask_takes_as_many_as_are_drawn() -> None:
    """The plan of a step counts masked tokens from lengths alone."""
    ids, ends = pack(*random_sequences(300))
    row_keys = keys(300)
    draws = masker().draws(row_keys, np.diff(ends))
    _, positions, _ = masker().mask(ids, ends, row_keys, draws)
    assert np.histogram(positions, ends)[0].tolist() == draws.tolist()


# --- which ---


def test_positions_and_labels() -> None:
    ids, ends = pack(*random_sequences(200))
    before = ids.copy()
    masked, positions, labels = draw(masker(), ids, ends, keys(200))
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
    _, positions, labels = draw(masker(mlm_mask_prop=prop), ids, ends, keys(302))
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
    _, positions, labels = draw(drawer, ids, ends, keys(n))
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
    _, positions, _ = draw(masker(mlm_mask_prop=0.2), ids, ends, keys(n))
    cells = np.bincount(positions % 10, minlength=10)
    assert cells[[0, 9]].tolist() == [0, 0]
    assert (np.abs(cells[1:9] - n / 4) < 5 * np.sqrt(n / 4)).all()


# --- what stands there ---


@pytest.mark.parametrize(("mask", "keep", "rand"), [(0.8, 0.1, 0.1), (0.5, 0.2, 0.3), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0),
                                                    (0.0, 0.0, 1.0)])  # fmt: skip
def test_shares_of_mask_keep_and_random(mask: float, keep: float, rand: float) -> None:
    ids, ends = pack(*random_sequences(5_000, unknown=0))
    drawer = masker(word_mask=mask, word_keep=keep, word_rand=rand)
    masked, positions, labels = draw(drawer, ids, ends, keys(5_000))
    seen, n = masked[positions], positions.size
    expected = (mask + rand / SIZE, keep + rand / SIZE, rand * (SIZE - 2) / SIZE)
    found = ((seen == MASK).mean(), (seen == labels).mean(), ((seen != MASK) & (seen != labels)).mean())
    for share, wanted in zip(found, expected, strict=True):
        assert abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / n)


def test_random_words_are_uniform_and_know_nothing_of_the_choice() -> None:
    """Chi-square over 50 cells of the vocabulary, 49 degrees of freedom; rare labels too are replaced by any word."""
    ids, ends = pack(*random_sequences(8_000, unknown=0))
    drawer = masker(word_mask=0.0, word_keep=0.0, word_rand=1.0)
    masked, positions, labels = draw(drawer, ids, ends, keys(8_000))
    for rows in (positions, positions[labels > 900], positions[labels < 100]):
        cells = np.bincount(masked[rows] // (SIZE // 50), minlength=50)
        assert abs(((cells - rows.size / 50) ** 2 / (rows.size / 50)).sum() - 49) < 4 * np.sqrt(98)
    assert abs(np.corrcoef(masked[positions], labels)[0, 1]) < 4 / np.sqrt(positions.size)


# --- of what it is a function ---


def alone(drawer: Masker, sequence: list[int], key: np.uint64) -> list[list[int]]:
    ids, ends = pack(sequence)
    return [a.tolist() for a in draw(drawer, ids, ends, np.asarray([key]))]


def test_a_sequence_is_masked_the_same_in_any_company() -> None:
    rows, drawer, row_keys = random_sequences(40), masker(), keys(40)
    ids, ends = pack(*rows)
    masked, positions, labels = draw(drawer, ids, ends, row_keys)
    for i, row in enumerate(rows):
        mine = (positions >= ends[i]) & (positions < ends[i + 1])
        together = [masked[ends[i] : ends[i + 1]].tolist(), (positions[mine] - ends[i]).tolist(), labels[mine].tolist()]
        assert together == alone(drawer, row, row_keys[i])


def test_masks_differ_by_key() -> None:
    (row,) = random_sequences(1, seed=3)
    masks = {tuple(alone(masker(), row, key)[0]) for key in keys(200)}
    assert len(masks) > 0.98 * 200


def test_golden_mask() -> None:
    """A change here gives every run other masks: bump `LAW` in data.loader with it."""
    sequence = [CLS, *range(100, 130), SEP]
    drawer = masker(mlm_mask_prop=0.3, word_mask=0.4, word_keep=0.3, word_rand=0.3)
    masked, positions, labels = alone(drawer, sequence, keyed.key(42, 5, 123_456_789))
    assert positions == GOLDEN_POSITIONS
    assert labels == [99 + i for i in positions]
    assert [masked[i] for i in positions] == GOLDEN_MASKED


def test_nothing_to_mask() -> None:
    none = np.zeros(0, np.int64)
    masked, positions, labels = masker().mask(none, np.zeros(1, np.int64), none.astype(np.uint64), none)
    assert masked.size == positions.size == labels.size == 0


# --- the arrivals ---

BITS = np.random.default_rng(5).integers(0, 2**64, 200_000, np.uint64)
GOLDEN_EXPONENTIAL = {
    0: "0x1.25e4f7b2737fap+5",
    2**64 - 1: "0x1.0000000000000p-53",
    2**63: "0x1.62e42fefa39edp-1",
    0x9E3779B97F4A7C15: "0x1.ecc2caec60094p-2",
    0xBF58476D1CE4E5B9: "0x1.2a162bb7f0f4bp-2",
    12345678901234567890: "0x1.9b38402b4fb8ap-2",
}


def test_exponential_is_minus_the_logarithm() -> None:
    """Also at the ends: the largest is -log(2^-53), the smallest -log(1 - 2^-53)."""
    bits = np.concatenate([BITS, np.asarray([0, 2**12 - 1, 2**12, 2**63, 2**64 - 2**12, 2**64 - 1], np.uint64)])
    found = exponential(bits)
    np.testing.assert_allclose(found, -np.log(keyed.uniform(bits)), rtol=3e-9)
    assert found.max() == pytest.approx(53 * np.log(2), rel=3e-9)
    assert found.min() == pytest.approx(2.0**-53, rel=3e-9)


def test_golden_exponential() -> None:
    """To the last bit, on every machine. A change here gives every run other masks: bump `LAW` in data.loader."""
    found = exponential(np.asarray([*GOLDEN_EXPONENTIAL], np.uint64))
    assert [value.hex() for value in found.tolist()] == list(GOLDEN_EXPONENTIAL.values())


def test_scales_do_not_depend_on_a_powers_last_bits() -> None:
    """Twenty bits of max(count, 1) ^ 0.7: exact numbers, unlike a library's power."""
    scales = masker().scales
    np.testing.assert_allclose(scales[5:], COUNTS[5:] ** 0.7, rtol=2.0**-20)
    mantissas = np.frexp(scales[5:])[0] * 2**20
    assert np.array_equal(mantissas, np.rint(mantissas))
    assert np.isinf(scales[list(SPECIAL)]).all()


# --- both forms are one ---


def both(drawer: Masker, ids: np.ndarray, ends: np.ndarray, draws: np.ndarray) -> tuple[Masked, Masked]:
    """By the form that is set, and by numpy."""
    row_keys = keys(draws.size)
    return drawer.mask(ids, ends, row_keys, draws), drawer._mask_in_numpy(ids, ends, row_keys, draws)


def assert_same(found: tuple[Masked, Masked]) -> None:
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == np.int64
        assert np.array_equal(one, other)


def test_the_same_masks_over_a_million_tokens() -> None:
    sequences = [np.random.default_rng(k).integers(0, SIZE, length) for k, length in
                 enumerate(np.random.default_rng(0).integers(1, 513, 4_000))]  # fmt: skip
    ids, ends = pack(*sequences)
    drawer = masker(word_mask=0.5, word_keep=0.2, word_rand=0.3)
    assert_same(both(drawer, ids, ends, drawer.draws(keys(4_000), np.diff(ends))))


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.lists(st.integers(0, 8), max_size=70), st.integers(0, 80)), max_size=6))
def test_the_same_masks_of_anything(rows: list[tuple[list[int], int]]) -> None:
    """Hardly anything but special tokens, more draws than words, nothing at all."""
    ids = np.asarray([i for row, _ in rows for i in row], np.int64)
    ends = np.cumsum([0, *(len(row) for row, _ in rows)])
    draws = np.asarray([n for _, n in rows], np.int64)
    found, reference = both(masker(), ids, ends, draws)
    assert_same((found, reference))
    words = [sum(i not in SPECIAL for i in row) for row, _ in rows]
    assert np.histogram(found[1], ends)[0].tolist() == np.minimum(words, draws).tolist() if rows else True


@pytest.mark.parametrize("scale", [5e-324, 2e-323, 0.0])
def test_of_equal_arrivals_the_first_is_taken(scale: float) -> None:
    """Scales so small that nearly all products are rounded to the same few numbers."""
    drawer = masker()
    drawer.scales[5:] = scale
    ids, ends = pack(*random_sequences(200))
    draws = np.arange(200) % 30
    found, reference = both(drawer, ids, ends, draws)
    assert_same((found, reference))
    if scale == 0.0:
        first, count = np.flatnonzero(ids[ends[7] : ends[8]] > MASK) + ends[7], draws[7]
        mine = (found[1] >= ends[7]) & (found[1] < ends[8])
        assert found[1][mine].tolist() == first[:count].tolist()


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


def test_the_entropy_of_frequencies():
    """By hand, of tokens 5 to 8 that occur 8, 4, 2 and 2 times: 0.5 x 1 + 0.25 x 2 + 2 x 0.125 x 3 bits. With smoothing
    1 every token that occurs is masked as often as any other. And as masks come out: the labels' own entropy."""
    counts = np.zeros(SIZE, np.int64)
    counts[list(SPECIAL)] = 100
    counts[5:9] = 8, 4, 2, 2
    assert masker(counts, mlm_smoothing=0.0).unigram_entropy(counts) == pytest.approx(1.75 * np.log(2))
    assert masker(counts, mlm_smoothing=1.0).unigram_entropy(counts) == pytest.approx(2 * np.log(2), rel=1e-6)
    generator, drawer = np.random.default_rng(0), masker()
    words = np.arange(5, SIZE)
    ids = generator.choice(words, 400_000, p=COUNTS[words] / COUNTS[words].sum())
    ends = np.arange(0, ids.size + 1, 100)
    row_keys = keys(ends.size - 1)
    labels = drawer.mask(ids, ends, row_keys, drawer.draws(row_keys, np.diff(ends)))[2]
    shares = np.bincount(labels)[np.bincount(labels) > 0] / labels.size
    found = -(shares * np.log(shares)).sum()
    assert drawer.unigram_entropy(np.bincount(ids, minlength=SIZE)) == pytest.approx(found, rel=0.02)
