"""Random numbers that are a function of (seed, position), with no state that others could move on.

Philox2x64-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): a counter goes
through ten rounds of multiplication keyed by the seed. It passes BigCrush; neighbouring seeds share nothing.
"""

from __future__ import annotations

_MASK = 2**64 - 1
_MULTIPLIER = 0xD2B74407B1CE6E93
_KEY_STEP = 0x9E3779B97F4A7C15
_ROUNDS = 10


def philox(key: int, low: int, high: int) -> tuple[int, int]:
    """Two random words of 64 bits, for a key and a counter of two words."""
    for _ in range(_ROUNDS):
        product = low * _MULTIPLIER
        low, high = (product >> 64) ^ key ^ high, product & _MASK
        key = (key + _KEY_STEP) & _MASK
    return low, high


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), of 53 random bits, for the draw of a sequence's token.

    Args:
        seed: any integer of 64 bits, signed or not.
        position: the drawn token's index in its sequence.
    """
    word, _ = philox(seed & _MASK, position, 0)
    return (word >> 11) * 2.0**-53
