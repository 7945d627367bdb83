"""data.shares against counts taken one position after another, and shares worked out by hand."""

import numpy as np
import pytest

from data.shares import PERIOD, Schedule, quotas
from launch.errors import ConfigError

WEIGHTS = [
    [1.0], [0.7, 0.3], [1, 1, 1], [5, 3, 1, 1, 0.01], [0.97, 0.01, 0.01, 0.01], [1] * 10, list(range(1, 30)),
    [3e-9, 1e-9], [65_535, 1],
]  # fmt: skip


def test_quotas_by_hand() -> None:
    """0.7 of 65,536 is 45,875.2, 0.3 of it 19,660.8: the larger remainder gets the one that is left."""
    assert quotas([0.7, 0.3]) == (45_875, 19_661)
    assert quotas([1, 1, 1]) == (21_846, 21_845, 21_845)
    assert quotas([2, 1, 1]) == quotas([0.5, 0.25, 0.25]) == (32_768, 16_384, 16_384)
    assert quotas([65_535, 1]) == (65_535, 1)
    assert quotas([7]) == (PERIOD,)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_quotas_are_the_shares_rounded(weights: list[float]) -> None:
    exact = np.asarray(weights) / sum(weights) * PERIOD
    assert sum(quotas(weights)) == PERIOD
    assert (np.abs(np.asarray(quotas(weights)) - exact) < 1).all()


def test_a_share_too_small_for_a_period_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--data: the weight 1e-06 of 1 is below 1 sequence in 65,536"):
        quotas([1 - 1e-6, 1e-6])


def test_turns_by_hand() -> None:
    """A quarter is due after 1/2, 3/2 ... of its turns, which take 4 each: at 2, 6, 10; the rest is in between."""
    schedule = Schedule(quotas([3, 1]))
    assert schedule.at(np.arange(12))[0].tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert schedule.at(np.arange(8))[1].tolist() == [0, 1, 0, 2, 3, 4, 1, 5]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_corpus_has_its_positions_in_order(weights: list[float]) -> None:
    """Counted one after another over two periods."""
    schedule = Schedule(quotas(weights))
    corpora, own = schedule.at(np.arange(2 * PERIOD))
    assert np.bincount(corpora).tolist() == [2 * quota for quota in quotas(weights)]
    for corpus in range(len(weights)):
        assert np.array_equal(own[corpora == corpus], np.arange(2 * quotas(weights)[corpus]))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_corpus_is_far_ahead_or_behind(weights: list[float]) -> None:
    corpora, _ = Schedule(quotas(weights)).at(np.arange(PERIOD))
    taken = np.cumsum(corpora[:, None] == np.arange(len(weights)), axis=0)
    due = np.outer(np.arange(1, PERIOD + 1), quotas(weights)) / PERIOD
    assert np.abs(taken - due).max() < 2


@pytest.mark.parametrize("start", [0, 10**6, 10**9 * 4096, 2**62])
def test_any_position_costs_the_same_and_agrees_with_its_neighbours(start: int) -> None:
    schedule = Schedule(quotas([0.6, 0.3, 0.1]))
    corpora, own = schedule.at(np.arange(start, start + 1_000))
    before = schedule.before(start)
    for corpus in range(3):
        mine = own[corpora == corpus]
        assert mine.tolist() == list(range(int(before[corpus]), int(before[corpus]) + mine.size))
    assert schedule.before(start + 1_000).tolist() == (before + np.bincount(corpora)).tolist()
    assert int(before.sum()) == start


def test_one_corpus_has_every_position() -> None:
    corpora, own = Schedule((PERIOD,)).at(np.asarray([0, 5, PERIOD, 10**15]))
    assert corpora.tolist() == [0, 0, 0, 0]
    assert own.tolist() == [0, 5, PERIOD, 10**15]
