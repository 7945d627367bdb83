"""Which sequence stands at a position of a corpus's endless stream: a keyed permutation per epoch, computed on the fly.

A Feistel network over a rectangle a x b that covers [0, n), with modular addition for rounds and cycle walking for
the few values outside (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains"). There is no index to build
or to load: any position of any epoch costs the same, whatever the size of the corpus.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data import compiled, keyed
from launch.args import flag, require

ROUNDS = 6
_WHOLE, _BLOCKS, _WINDOW, _BEGIN = range(4)  # independent random numbers of an epoch


@dataclass(frozen=True)
class OrderSettings:
    """Order of the sequences."""

    order: Literal["random", "blocks"] = flag(
        "random", "blocks: neighbours stay near each other, for storage that is slow at reading here and there"
    )
    order_block: int = flag(1024, "neighbouring sequences that stay together, with --order blocks", "SEQUENCES")
    order_window: int = flag(64, "such blocks that are mixed with each other", "BLOCKS")

    def __post_init__(self) -> None:
        for name in ("order_block", "order_window"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


def sequences_at(
    places: np.ndarray, n: int, key: np.uint64, settings: OrderSettings | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The sequences at places of the endless stream over n sequences; places may straddle epochs.

    Args:
        places: int64 [count].
        key: of the corpus (`keyed.key`).
        settings: none for the default ones.

    Returns:
        epochs: int64 [count].
        sequences: int64 [count], each number of [0, n) once an epoch.
    """
    settings = settings or OrderSettings()
    epochs, within = np.divmod(places, n)
    keys = keyed.keys(key, epochs)
    if settings.order == "blocks" and settings.order_block < n:
        return epochs, _by_blocks(within, n, keys, settings)
    return epochs, permute(within, n, keyed.mix(_WHOLE, keys))


def _by_blocks(within: np.ndarray, n: int, keys: np.ndarray, settings: OrderSettings) -> np.ndarray:
    """Blocks of neighbouring sequences in random order, and the sequences of a window of blocks in random order.

    An epoch begins anywhere in the corpus, which is a ring here. The rest that fills no block is in the last window.
    """
    size, blocks = settings.order_block, n // settings.order_block
    window_size = size * settings.order_window
    last = (blocks - 1) // settings.order_window
    window = np.minimum(within // window_size, last)
    start = window * window_size
    slot = within - start
    for number, mine in ((window_size, window < last), (n - last * window_size, window == last)):
        slot[mine] = permute(slot[mine], number, keyed.keys(keyed.mix(_WINDOW, keys[mine]), window[mine]))
    block, inside = np.divmod(start + slot, size)
    whole = block < blocks
    block[whole] = permute(block[whole], blocks, keyed.mix(_BLOCKS, keys[whole]))
    begin = keyed.mix(_BEGIN, keys) % np.uint64(n)
    return (begin.astype(np.int64) + block * size + inside) % n


def permute(positions: np.ndarray, n: int, keys: np.ndarray | np.uint64) -> np.ndarray:
    """Images of positions under pseudo-random permutations of [0, n).

    Args:
        positions: integers in [0, n).
        n: size of the domain.
        keys: select the permutation, for all positions or for each.

    Returns:
        int64, the shape of `positions`.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    values = np.array(positions, np.uint64)
    keys = np.ascontiguousarray(np.broadcast_to(keys, values.shape))
    if operations := compiled.operations("stream"):
        operations("permute", values, keys, values.size, n, a, b, ROUNDS)
    else:
        _permute_in_numpy(values, keys, n, np.uint64(a), np.uint64(b))
    return values.astype(np.int64)


def _permute_in_numpy(values: np.ndarray, keys: np.ndarray, n: int, a: np.uint64, b: np.uint64) -> None:
    """In place."""
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _network(values[outside], keys[outside], a, b)
        outside = values >= n


def _network(values: np.ndarray, keys: np.ndarray, a: np.uint64, b: np.uint64) -> np.ndarray:
    """One pass of the Feistel network: a bijection of [0, a * b)."""
    left, right = np.divmod(values, b)
    for number in range(ROUNDS):
        round_keys = keyed.mix(number, keys)
        if number % 2 == 0:
            left = (left + keyed.mix(right, round_keys) % a) % a
        else:
            right = (right + keyed.mix(left, round_keys) % b) % b
    return left * b + right
