"""Which sequence stands at a position of the endless stream: a keyed permutation per epoch, computed on the fly.

A Feistel network over a rectangle a x b that covers [0, n), with modular addition for rounds and cycle walking for
the few values outside (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains"). There is no index to build
or to load: any position of any epoch costs the same, whatever the size of the corpus.
"""

import math

import numpy as np

from data import keyed

ROUNDS = 6
_ORDER = 4  # a stream of random numbers of its own, beside those of data.masking


def permute(positions: np.ndarray, n: int, key: np.uint64) -> np.ndarray:
    """Images of positions under a pseudo-random permutation of [0, n).

    Args:
        positions: integers in [0, n).
        n: size of the domain.
        key: selects the permutation (`keyed.key`).

    Returns:
        int64, the shape of `positions`.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    values = np.asarray(positions).astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _network(values[outside], np.uint64(a), np.uint64(b), key)
        outside = values >= n
    return values.astype(np.int64)


def _network(values: np.ndarray, a: np.uint64, b: np.uint64, key: np.uint64) -> np.ndarray:
    """One pass of the Feistel network: a bijection of [0, a * b)."""
    left: np.ndarray = values // b
    right: np.ndarray = values % b
    for number in range(ROUNDS):
        round_key = keyed.mix(np.asarray([number]), key)
        if number % 2 == 0:
            left = (left + keyed.mix(right, round_key) % a) % a
        else:
            right = (right + keyed.mix(left, round_key) % b) % b
    return left * b + right


def sequences_at(start: int, count: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions start .. start + count - 1 of the endless stream over n sequences; they may straddle epochs.

    Returns:
        epochs: int64 [count].
        sequences: int64 [count], each number of [0, n) once an epoch.
    """
    positions = np.arange(start, start + count)
    epochs = positions // n
    sequences = np.empty(count, np.int64)
    for epoch in range(start // n, (start + count - 1) // n + 1):
        mine = epochs == epoch
        sequences[mine] = permute(positions[mine] % n, n, keyed.key(seed, _ORDER, epoch))
    return epochs, sequences
