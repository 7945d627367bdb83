"""data.order: a permutation for every size, epoch and key, that looks like numpy's own. Both forms."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import keyed
from data.order import OrderSettings, permute, sequences_at
from launch.errors import ConfigError

pytestmark = pytest.mark.usefixtures("form")

GOLDEN_STRADDLING = [26, 17, 57, 36, 68, 39, 84, 96, 49, 68]
GOLDEN_FAR = [12356, 6616, 600, 13730]
GOLDEN_SEVEN = [5, 4, 1, 2, 6, 3, 0]
GOLDEN_BLOCKS = [924, 471, 496, 96, 201, 608, 429, 201, 614, 605]


def at(
    start: int, count: int, n: int, seed: int, settings: OrderSettings | None = None
) -> tuple[np.ndarray, np.ndarray]:
    return sequences_at(np.arange(start, start + count), n, keyed.key(seed), settings)


def epoch_order(n: int, seed: int, epoch: int, settings: OrderSettings | None = None) -> np.ndarray:
    return at(epoch * n, n, n, seed, settings)[1]


@pytest.mark.parametrize("n", [*range(1, 70), 97, 100, 101, 127, 128, 129, 961, 1000, 1023, 7919, 10_007])
def test_a_permutation_of_every_size(n: int) -> None:
    assert sorted(permute(np.arange(n), n, keyed.key(1)).tolist()) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(1, 3_000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_under_every_key(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, np.uint64(key))), np.arange(n))


def test_any_position_alone_gives_what_all_together_give() -> None:
    together = permute(np.arange(1_000), 1_000, keyed.key(5))
    alone = [int(permute(np.asarray([i]), 1_000, keyed.key(5))[0]) for i in range(1_000)]
    assert together.tolist() == alone


def test_positions_keep_their_shape_and_type() -> None:
    images = permute(np.arange(12).reshape(3, 4), 12, keyed.key(1))
    assert images.shape == (3, 4)
    assert images.dtype == np.int64
    assert permute(np.zeros(0, np.int64), 12, keyed.key(1)).size == 0


def test_a_huge_corpus_costs_no_more_than_a_small_one() -> None:
    n = 10**12 + 39
    images = permute(np.arange(n - 1_000, n), n, keyed.key(1))
    assert 0 <= images.min()
    assert images.max() < n
    assert np.unique(images).size == 1_000
    assert images.max() - images.min() > n / 2  # spread over all of it


def test_golden_positions() -> None:
    """A change here gives every run another order: bump `LAW` in data.loader with it."""
    epochs, sequences = at(95, 10, 100, seed=42)
    assert epochs.tolist() == [0] * 5 + [1] * 5
    assert sequences.tolist() == GOLDEN_STRADDLING
    assert at(10**9, 4, 25_966, seed=1)[1].tolist() == GOLDEN_FAR
    assert epoch_order(7, 0, 0).tolist() == GOLDEN_SEVEN


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 7), (5, 8), (3, 10), (1, 4), (2, 5), (101, 16)])
def test_steps_give_each_sequence_once_an_epoch(n: int, batch: int) -> None:
    """Also where the batch doesn't divide N, where one step holds several epochs, and where N is 1."""
    steps = [at(k * batch, batch, n, seed=3) for k in range(4 * n)]  # 4 x batch epochs exactly
    epochs, sequences = (np.concatenate(column) for column in zip(*steps, strict=True))
    assert epochs.tolist() == [position // n for position in range(4 * n * batch)]
    for epoch in range(4 * batch):
        assert np.array_equal(np.sort(sequences[epochs == epoch]), np.arange(n))
        assert sequences[epochs == epoch].tolist() == epoch_order(n, 3, epoch).tolist()


def test_small_domains_reach_every_order() -> None:
    for n in (1, 2, 3, 4, 5):
        reached = {tuple(permute(np.arange(n), n, keyed.key(k)).tolist()) for k in range(2_000)}
        assert reached == set(itertools.permutations(range(n)))


@pytest.mark.parametrize("n", [1_000, 1_009, 1_024])
def test_images_are_uniform_over_keys(n: int) -> None:
    """Where the first, a middle and the last position go, over 6,000 keys: chi-square over 50 cells (49 +- 9.9)."""
    positions = np.asarray([0, n // 2, n - 1])
    images = np.stack([permute(positions, n, keyed.key(9, k)) for k in range(6_000)])
    for column in images.T:
        observed = np.bincount(column * 50 // n, minlength=50)
        expected = 6_000 * np.bincount(np.arange(n) * 50 // n) / n
        assert 49 - 4 * 9.9 < ((observed - expected) ** 2 / expected).sum() < 49 + 4 * 9.9


def statistics(order: np.ndarray) -> list[float]:
    """Figures of an order that a visible pattern would shift, each of about unit deviation for a random one."""
    n = order.size
    ascents = (np.diff(order) > 0).sum()
    jump = np.abs(np.diff(order)).mean() / n
    return [
        np.corrcoef(np.arange(n), order)[0, 1] * np.sqrt(n),  # with its position
        np.corrcoef(order[:-1], order[1:])[0, 1] * np.sqrt(n),  # with its neighbour
        np.corrcoef(order[:-32], order[32:])[0, 1] * np.sqrt(n),  # with the one a row of the rectangle on
        (ascents - (n - 1) / 2) / np.sqrt((n + 1) / 12),
        (jump - 1 / 3) * np.sqrt(n) * 4,
        (order == np.arange(n)).sum() - 1.0,  # fixed points: Poisson(1)
        (np.abs(np.diff(order)) == 1).sum() / np.sqrt(2) - np.sqrt(2),  # neighbours that stayed neighbours
    ]


def test_orders_show_no_pattern() -> None:
    """Means and deviations over 300 keys as those of numpy's permutations of the same size."""
    n, count = 1_024, 300
    generator = np.random.default_rng(0)
    ours = np.asarray([statistics(epoch_order(n, 7, epoch)) for epoch in range(count)])
    numpys = np.asarray([statistics(generator.permutation(n)) for _ in range(count)])
    spread = numpys.std(0)
    assert (np.abs(ours.mean(0) - numpys.mean(0)) < 4 * spread * np.sqrt(2 / count)).all()
    assert (np.abs(ours.std(0) / spread - 1) < 0.25).all()


def test_successive_epochs_are_uncorrelated() -> None:
    orders = np.stack([epoch_order(10_000, 1, epoch) for epoch in range(20)])
    correlations = np.corrcoef(orders)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(10_000)
    assert np.abs(correlations.mean()) < 4 / np.sqrt(10_000 * correlations.size)


# --- blocks ---

BLOCKS = [(100, 7, 3), (100, 10, 4), (100, 10, 10), (100, 10, 99), (96, 16, 2), (97, 16, 2), (33, 32, 64), (17, 1, 5),
          (5, 4, 1), (64, 8, 1), (1_000, 25, 8)]  # fmt: skip
by_blocks = functools.partial(OrderSettings, "blocks")


@pytest.mark.parametrize(("n", "block", "window"), BLOCKS)
def test_each_sequence_once_an_epoch_by_blocks(n: int, block: int, window: int) -> None:
    orders = [epoch_order(n, 4, epoch, by_blocks(block, window)).tolist() for epoch in range(20)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert len(set(map(tuple, orders))) > 15


@pytest.mark.parametrize(("n", "block", "window"), BLOCKS)
def test_a_window_holds_few_stretches_of_neighbours(n: int, block: int, window: int) -> None:
    """So many as it has blocks, and the rest that fills none; one more where a stretch goes over the corpus's end."""
    cuts = np.arange(1, (n // block - 1) // window + 1) * block * window  # the rest is in the last window
    for epoch in range(20):
        for chosen in np.split(epoch_order(n, 4, epoch, by_blocks(block, window)), cuts):
            neighbours = np.diff(np.sort(chosen)) == 1
            assert np.sum(~neighbours) + 1 <= min(window, len(chosen) // block) + 2


def test_blocks_and_the_sequences_of_a_window_are_in_random_order() -> None:
    """Of 100 blocks of 10, mixed 10 at a time: neighbours stay within a window, but hardly side by side."""
    order = epoch_order(1_000, 1, 0, by_blocks(10, 10))
    place = np.argsort(order)
    apart = np.abs(np.diff(place))
    assert np.mean(apart < 100) > 0.85  # the same block, so the same window: 9 of 10 neighbours
    assert np.mean(apart == 1) < 0.05
    windows = [set(order[start : start + 100] // 10) for start in range(0, 1_000, 100)]
    assert np.ptp([min(window) for window in windows]) > 10


def test_a_corpus_that_is_one_block_is_in_random_order() -> None:
    assert epoch_order(50, 1, 0, by_blocks(64, 4)).tolist() == epoch_order(50, 1, 0).tolist()


def test_any_place_alone_gives_what_all_together_give_by_blocks() -> None:
    settings = by_blocks(7, 3)
    together = at(0, 300, 100, 1, settings)[1].tolist()
    assert [int(at(i, 1, 100, 1, settings)[1][0]) for i in range(300)] == together


def test_blocks_of_a_huge_corpus_cost_no_more_than_of_a_small_one() -> None:
    n, settings = 10**12 + 39, by_blocks(1_024, 64)
    epochs, sequences = at(3 * n - 200_000, 200_000, n, 1, settings)
    assert set(epochs.tolist()) == {2}
    assert np.unique(sequences).size == 200_000
    assert 0 <= sequences.min()
    assert sequences.max() < n
    assert np.unique(sequences // 1_024).size < 200_000 / 1_024 * 3  # read in blocks all the same


def test_golden_blocks() -> None:
    """A change here gives every run another order: bump `LAW` in data.loader with it."""
    assert at(995, 10, 1_000, 42, by_blocks(25, 8))[1].tolist() == GOLDEN_BLOCKS


@pytest.mark.parametrize("wrong", [{"order_block": 0}, {"order_window": -1}])
def test_settings_that_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        OrderSettings(**wrong)
