"""data.order: a permutation for every size, epoch and seed, that looks like numpy's own."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import keyed
from data.order import permute, sequences_at

GOLDEN_STRADDLING = [63, 52, 64, 73, 9, 23, 98, 59, 19, 15]
GOLDEN_FAR = [5553, 5079, 2077, 21626]
GOLDEN_SEVEN = [0, 5, 4, 3, 1, 6, 2]


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    return sequences_at(epoch * n, n, n, seed)[1]


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
    epochs, sequences = sequences_at(95, 10, 100, seed=42)
    assert epochs.tolist() == [0] * 5 + [1] * 5
    assert sequences.tolist() == GOLDEN_STRADDLING
    assert sequences_at(10**9, 4, 25_966, seed=1)[1].tolist() == GOLDEN_FAR
    assert epoch_order(7, 0, 0).tolist() == GOLDEN_SEVEN


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 7), (5, 8), (3, 10), (1, 4), (2, 5), (101, 16)])
def test_steps_give_each_sequence_once_an_epoch(n: int, batch: int) -> None:
    """Also where the batch doesn't divide N, where one step holds several epochs, and where N is 1."""
    steps = [sequences_at(k * batch, batch, n, seed=3) for k in range(4 * n)]  # 4 x batch epochs exactly
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
