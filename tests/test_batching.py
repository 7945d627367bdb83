"""data.batching against hand-worked deals, and the best possible ones where all can be tried."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batching import MicroBatch, _deal_in_python, deal, positions_within

pytestmark = pytest.mark.usefixtures("form")


def loads(lengths: np.ndarray, parts: int) -> np.ndarray:
    return np.bincount(deal(lengths, parts), lengths, minlength=parts)


def test_a_deal_by_hand() -> None:
    """7 to part 0, 5 to part 1, 4 to part 1 (5 < 7), 3 to part 0 (7 < 9), 1 to part 1 (9 < 10): 10 and 10."""
    assert deal(np.asarray([1, 7, 3, 5, 4]), 2).tolist() == [1, 0, 0, 1, 1]


def test_ties_go_by_number() -> None:
    """Equal lengths in the order of the step, equal parts from the first: every rank must deal alike."""
    assert deal(np.full(7, 9), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert deal(np.asarray([5, 9, 5, 9]), 2).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("parts", [1, 2, 8, 32])
def test_balance_at_64_sequences_a_part(parts: int) -> None:
    """Lengths as of real text, short ones many, cut at 512."""
    for seed in range(5):
        lengths = np.clip(np.random.default_rng(seed).lognormal(4.8, 0.8, 64 * parts), 12, 512).astype(np.int64)
        tokens = loads(lengths, parts)
        assert tokens.sum() == lengths.sum()
        assert tokens.max() / tokens.mean() < 1.01
        contiguous = lengths.reshape(parts, 64).sum(1)
        assert parts == 1 or tokens.max() < contiguous.max()


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=80), parts=st.integers(1, 20))
def test_every_part_gets_a_sequence_if_there_are_enough(lengths: list[int], parts: int) -> None:
    part_of = deal(np.asarray(lengths), parts)
    assert part_of.dtype == np.int64
    assert np.unique(part_of).size == min(parts, len(lengths))
    assert 0 <= part_of.min()
    assert part_of.max() < parts


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7), parts=st.integers(1, 3))
def test_within_grahams_bound_of_the_best_deal(lengths: list[int], parts: int) -> None:
    """The longest part is at most 4/3 - 1/(3m) times what the best of all deals has."""
    deals = itertools.product(range(parts), repeat=len(lengths))
    best = min(max(np.bincount(d, lengths, minlength=parts)) for d in deals)
    assert loads(np.asarray(lengths), parts).max() <= (4 / 3 - 1 / (3 * parts)) * best + 1e-9


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), max_size=300), parts=st.integers(1, 40))
def test_both_forms_deal_alike(lengths: list[int], parts: int) -> None:
    """Few different lengths, so that nearly every choice is a tie."""
    array = np.asarray(lengths, np.int64)
    order = np.argsort(-array, kind="stable")
    assert deal(array, parts).tolist() == _deal_in_python(array, order, parts).tolist()


def test_positions_restart_in_each_sequence() -> None:
    assert positions_within(np.asarray([0, 3, 4, 6])).tolist() == [0, 1, 2, 0, 0, 1]
    assert positions_within(np.asarray([0])).tolist() == []
    assert positions_within(np.asarray([0, 3])).dtype == np.int64


def test_a_micro_batch_counts_its_real_tokens() -> None:
    ids = np.arange(6)
    batch = MicroBatch(ids, ids, np.asarray([0, 6], np.int32), 6, ids[:1], ids[:1], 0, 0, 6, 1)
    assert batch.tokens == 6
