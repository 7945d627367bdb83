"""data.keyed against SplitMix64 in Python's own integers, and against its published outputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import keyed

U64 = st.integers(0, 2**64 - 1)

GOLDEN_KEYS = [
    8841707400507832957, 13830413928045401970, 7155078866149181453,
    4923420425738909839, 17734248350243529385, 2060944554742057067,
]  # fmt: skip


def split_mix(x: int, key: int) -> int:
    """The finaliser of SplitMix64 in exact integers, as the paper's listing has it."""
    z = (x * 0x9E3779B97F4A7C15 + key) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_mix_gives_the_published_outputs_of_splitmix64() -> None:
    """The generator seeded with s returns mix(1), mix(2) ... under key s; these are its outputs for 1234567."""
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    assert keyed.mix(np.arange(1, 6), np.uint64(1234567)).tolist() == published


@settings(deadline=None)
@given(x=U64, key=U64)
def test_mix_equals_exact_integers(x: int, key: int) -> None:
    assert int(keyed.mix(np.asarray([x], np.uint64), np.uint64(key))[0]) == split_mix(x, key)


def test_mix_takes_a_key_per_element() -> None:
    keys = np.asarray([5, 6, 7], np.uint64)
    assert keyed.mix(np.asarray([1, 1, 2]), keys).tolist() == [split_mix(1, 5), split_mix(1, 6), split_mix(2, 7)]


def test_key_is_a_chain_of_mixes() -> None:
    state = 0
    for part in (11, 0, 2**64 - 3):
        state = split_mix(part, split_mix(state, 1))
    assert int(keyed.key(11, 0, -3)) == state


def test_keys_of_rows_are_the_keys_of_their_numbers() -> None:
    columns = np.asarray([[0, 1, 2], [7, 0, 2**62], [5, 5, 5]])
    assert keyed.keys(keyed.key(42), *columns).tolist() == [int(keyed.key(42, *row)) for row in columns.T]
    assert keyed.keys(keyed.key(1), columns).shape == columns.shape


def test_golden_keys() -> None:
    """A change here gives every run other sequences and masks: bump `LAW` in data.loader with it."""
    found = [int(keyed.key(*parts)) for parts in [(0,), (1,), (0, 0), (1, 2), (2, 1), (42, 4, 7)]]
    assert found == GOLDEN_KEYS


def test_key_tells_order_number_and_sign_of_its_parts() -> None:
    parts = [(1, 2), (2, 1), (1,), (2,), (1, 0), (0, 1), (0,), (0, 0), (0, 0, 0), (-1,), (1, -2), (), (1, 2, 0)]
    assert len({int(keyed.key(*part)) for part in parts}) == len(parts)
    grid = {int(keyed.key(a, b)) for a in range(100) for b in range(100)}
    assert len(grid) == 100 * 100


def test_key_takes_numpys_integers() -> None:
    assert keyed.key(np.int64(3), np.int32(4)) == keyed.key(3, 4)


@pytest.mark.parametrize("bits", [0, 1, 2**63, 2**64 - 1])
def test_uniform_is_strictly_inside_the_unit_interval(bits: int) -> None:
    value = keyed.uniform(np.asarray([bits], np.uint64))[0]
    assert 0 < value < 1
    assert abs(value - bits / 2**64) <= 2.0**-52
    assert np.isfinite(np.log(value))
    assert -np.log(value) > 0


def test_uniform_is_uniform_over_counters_and_over_keys() -> None:
    """Chi-square over 100 cells, 99 degrees of freedom: mean 99, deviation 14.1; fixed keys, so it can't flicker."""
    by_counter = keyed.uniform(keyed.mix(np.arange(100_000), keyed.key(1)))
    by_key = keyed.uniform(keyed.mix(np.zeros(100_000, np.int64), keyed.mix(np.arange(100_000), keyed.key(2))))
    for values in (by_counter, by_key):
        cells = np.bincount((values * 100).astype(int), minlength=100)
        assert 99 - 4 * 14.1 < ((cells - 1000) ** 2 / 1000).sum() < 99 + 4 * 14.1
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(100_000)


def test_every_bit_depends_on_every_bit() -> None:
    """Flipping one bit of the counter flips each bit of the output about half the time."""
    x = keyed.mix(np.arange(2_000), keyed.key(3))
    for bit in range(64):
        flipped = keyed.mix(x, np.uint64(9)) ^ keyed.mix(x ^ np.uint64(1 << bit), np.uint64(9))
        shares = np.unpackbits(flipped.view(np.uint8)).reshape(-1, 64).mean(0)
        assert (abs(shares - 0.5) < 0.06).all()  # 5 deviations of a fair coin thrown 2,000 times
