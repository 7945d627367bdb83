"""Counter-based random numbers: a number is a pure function of a key and a counter, so no generator state exists.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
generators").
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray | int, key: np.ndarray | np.uint64) -> np.ndarray:
    """uint64 of uniform bits for every element of `x` under `key`; a bijection of uint64 for a fixed key."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        z = np.asarray(np.asarray(x, np.uint64) * _GOLDEN + key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """One key from several numbers, their order included: key(1, 2) != key(2, 1)."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix(np.asarray([int(part) % (1 << 64)], np.uint64), mix(state, np.uint64(1)))
    return state[0]


def keys(key: np.ndarray | np.uint64, *columns: np.ndarray) -> np.ndarray:
    """A key for each row of some columns of integers [rows]: `key` mixed with the row's numbers; uint64 [rows]."""
    state = np.asarray(key)
    for column in columns:
        state = mix(column, mix(state, np.uint64(1)))
    return state


def uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in (0, 1), 52 random bits each, from uint64 of uniform bits; never 0, so its logarithm is finite, and
    never 1 (with 53 bits, adding the half would round the largest up to it)."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
