"""Chance as a function of position: a hash of integers, and shuffles that are never stored."""

import numpy as np

ROUNDS = 6


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: a bijection of uint64 that spreads every bit over all others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def position_hash(values: np.ndarray, *words: int) -> np.ndarray:
    """Hash each of `values` together with `words` to uint64, equally on every machine."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = _mix(key + np.uint64(0x9E3779B97F4A7C15) + np.uint64(word & (2**64 - 1)))
    return _mix(_mix(values.astype(np.uint64) + key) ^ key)


def shuffled_places(places: np.ndarray, size: int, *words: int) -> np.ndarray:
    """Where the shuffle of range(size) that `words` name has put each of `places`.

    A Feistel network on the smallest power of two that holds `size`: each round changes one half of
    the bits by a hash of the other, which can be undone, so no two places meet. What falls outside
    is sent through again, until it is inside: the walk of a place ends before it is back at itself.
    """
    bits = max(1, (size - 1).bit_length())
    low = np.uint64(bits // 2)
    low_mask, high_mask = (np.uint64((1 << count) - 1) for count in (bits // 2, bits - bits // 2))
    found = places.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        x = found[outside]
        for turn in range(0, ROUNDS, 2):
            x ^= (position_hash(x & low_mask, *words, turn) & high_mask) << low
            x ^= position_hash(x >> low, *words, turn + 1) & low_mask
        found[outside] = x
        outside = outside[x >= np.uint64(size)]
    return found.astype(np.int64)
